"""What is scored: videos found, windows cut, features kept, and how sure a distance is."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scoring import Quick, noise, use_quick_detector, write_noise

from pvdm_cli.errors import DataError, PvdmError
from pvdm_cli.evaluation import contents, spread
from pvdm_cli.evaluation.features import features_folder
from pvdm_cli.evaluation.footage import find_footage
from pvdm_cli.evaluation.fvd import FvdResult, measure_fvd, shuffled
from pvdm_cli.evaluation.protocol import FvdRequest
from pvdm_cli.evaluation.reel import Reel, Window
from pvdm_cli.evaluation.shared import features_of
from pvdm_cli.files import sha256
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.resize import Geometry
from pvdm_cli.video.write import write_video

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)


def score(real: Path, fake: Path, reporter: Reporter = SILENT, **settings: object) -> FvdResult:
    return measure_fvd(real, fake, FvdRequest(**settings), CPU, reporter)  # type: ignore[arg-type]


def clips_of(reel: Reel) -> Iterator[np.ndarray]:
    return reel.read(reel.coming(1), [])


def test_videos_are_found_in_folders_arrays_and_lists(tmp_path: Path) -> None:
    folder = write_noise(tmp_path / "videos", 9, 9, suffix="mp4")
    write_video(folder / "frames", noise(3, 9), 8)
    several = np.stack([noise(i, 9) for i in range(3)])
    np.savez(folder / "many.npz", frames=several)
    names = [video.name for video in find_footage(folder)]
    assert names == ["0.mp4", "1.mp4", "frames", *(f"many.npz#{i:05d}" for i in range(3))]
    (tmp_path / "list.txt").write_text("# mine\nvideos/1.mp4\n\nvideos/many.npz\n")
    listed = find_footage(tmp_path / "list.txt")
    assert [video.name for video in listed] == [
        "videos/1.mp4", *(f"videos/many.npz#{i:05d}" for i in range(3))
    ]  # fmt: skip
    clip = listed[3].clip(Geometry(16, 24), start=2, count=3, stride=2)
    np.testing.assert_array_equal(clip, several[2, 2:8:2])
    assert {video.size() for video in find_footage(folder)} == {(16, 24)}
    assert {video.num_frames() for video in find_footage(folder)} == {9}


def test_what_names_no_videos_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("# nothing\n")
    with pytest.raises(DataError, match="names no videos"):
        find_footage(tmp_path / "list.txt")
    with pytest.raises(DataError, match="no such file"):
        find_footage(tmp_path / "nowhere")
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("")
    with pytest.raises(DataError, match=r"run is a training run: .*pvdm sample"):
        find_footage(run)
    write_noise(run / "samples", 9, suffix="mp4")
    with pytest.raises(DataError, match=r"samples shows a training run: .* give \S+run as --model"):
        find_footage(run / "samples")
    (run / "samples" / "video-00000.json").write_text("{}")  # `pvdm sample --out RUN/samples`
    assert len(find_footage(run / "samples")) == 1


@pytest.mark.parametrize(
    ("window", "num_frames", "starts"),
    [
        (Window(16, 1, "start", 0), 16, [0]),
        (Window(16, 1, "start", 16), 31, []),
        (Window(16, 1, "start", 16), 32, [16]),
        (Window(16, 8, "start"), 120, []),
        (Window(16, 8, "start"), 121, [0]),  # the last frame is number 120
        (Window(16, 1, "all"), 50, [0, 16, 32]),
        (Window(16, 1, "one"), 15, []),
        (Window(16, 1, "one"), 16, [0]),
    ],
)
def test_windows_begin_where_the_rule_says(
    window: Window, num_frames: int, starts: list[int]
) -> None:
    assert list(window.starts(num_frames, np.random.default_rng(0))) == starts


def test_random_windows_reach_every_start_and_depend_on_seed_and_video_alone(
    tmp_path: Path,
) -> None:
    window = Window(9, 1, "one")
    drawn = {window.starts(12, np.random.default_rng((0, i)))[0] for i in range(60)}
    assert drawn == {0, 1, 2, 3}
    videos = find_footage(write_noise(tmp_path / "videos", 30, 30, 30))
    first, again, other = (
        list(clips_of(Reel(videos[:count], window, Geometry(16, 24), 99, seed)))
        for count, seed in ((3, 1), (2, 1), (3, 2))
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=False))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_an_order_is_a_permutation_that_the_seed_decides(tmp_path: Path) -> None:
    videos = find_footage(write_noise(tmp_path / "videos", *(1 for _ in range(12))))
    assert sorted(shuffled(videos, 0)) == videos
    assert shuffled(videos, 0) == shuffled(videos, 0)
    assert shuffled(videos, 0) != shuffled(videos, 1)


def test_real_frames_can_take_the_way_through_jpeg(tmp_path: Path) -> None:
    videos = find_footage(write_noise(tmp_path / "videos", 9))
    plain, stored = (
        next(clips_of(Reel(videos, Window(9), Geometry(16, 24), 1, jpeg=jpeg)))
        for jpeg in (False, True)
    )
    assert plain.shape == stored.shape
    assert 0 < np.abs(plain.astype(int) - stored).mean() < 20


def test_at_most_so_many_clips_are_read(tmp_path: Path) -> None:
    videos = find_footage(write_noise(tmp_path / "videos", 40, 40, 40))
    reel = Reel(videos, Window(9, 1, "all"), Geometry(16, 24), 6)
    found = features_of(reel, Quick(None, "quick", "0" * 64).stream, "clips", SILENT)  # type: ignore[arg-type]
    assert len(found) == 6
    assert (reel.clips, reel.used, reel.seen) == (6, 2, 2)


def test_features_of_real_videos_are_kept_until_something_they_depend_on_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    real = write_noise(tmp_path / "real", 20, 20, 20)
    fake = write_noise(tmp_path / "fake", 20, 20, first=7)
    first = score(real, fake)
    assert not first.real.kept
    again = score(real, fake)
    assert again.real.kept
    assert not again.fake.kept
    assert again.fvd == first.fvd
    assert (again.real.clips, again.real.path) == (3, real)
    assert not score(real, fake, seed=1).real.kept
    assert not score(real, fake, protocol="pvdm").real.kept
    assert not score(real, fake, keep=False).real.kept
    for path in features_folder().iterdir():
        path.write_bytes(path.read_bytes()[:50])
    assert score(real, fake).fvd == first.fvd  # damaged: computed anew


def test_features_are_known_by_what_the_videos_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    real = write_noise(tmp_path / "real", 20, 20, 20)
    for i in (0, 1):  # not compressed: of one size
        np.savez(real / f"{i}.npz", frames=noise(i, 20))
    write_video(real / "frames", noise(9, 20), 8)  # a folder of png
    fake = write_noise(tmp_path / "fake", 20, 20, first=7)
    first = score(real, fake)
    hashed: list[Path] = []
    monkeypatch.setattr(contents, "sha256", lambda path: hashed.append(path) or sha256(path))
    assert score(real, fake).real.kept
    assert hashed == []
    os.utime(real / "0.npz", ns=(1, 1))  # touched
    real = real.rename(tmp_path / "moved")
    moved = score(real, fake)
    assert (moved.real.kept, moved.real.path, moved.fvd) == (True, real, first.fvd)
    assert len(hashed) == 23
    write_video(real / "frames", noise(10, 20), 8)
    other = score(real, fake)
    assert not other.real.kept
    assert other.fvd != first.fvd
    before = (real / "0.npz").stat()
    (real / "0.npz").write_bytes((real / "1.npz").read_bytes())
    os.utime(real / "0.npz", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert score(real, fake).real.kept  # neither size nor time tells
    assert not score(real, fake, rehash=True).real.kept
    assert score(real, fake).real.kept  # now known


def test_videos_in_place_of_those_left_out_count_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    real = write_noise(tmp_path / "real", 20, 5, 20, 20)  # the third comes in for the second
    fake = write_noise(tmp_path / "fake", 20, 20, first=7)
    only = {"num": 2, "real_order": "sorted"}
    first = score(real, fake, **only)
    assert score(real, fake, **only).real.kept
    write_video(real / "3.npz", noise(20, 20), 8)  # never looked at
    assert score(real, fake, **only).real.kept
    write_video(real / "2.npz", noise(30, 20), 8)
    other = score(real, fake, **only)
    assert not other.real.kept
    assert other.fvd != first.fvd


def test_repeats_draw_real_clips_anew_and_the_rest_comes_from_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    real = write_noise(tmp_path / "real", *(30 for _ in range(8)))
    fake = write_noise(tmp_path / "fake", *(16 for _ in range(6)), first=30)
    features = tmp_path / "features.npz"
    more = {"repeats": 3, "bootstrap": 4, "counts": [2, 4, 99], "yardsticks": True}
    result = score(real, fake, save_features=features, **more)
    assert result.repeats[0] == result.fvd
    assert len(set(result.repeats)) == 3
    assert len(set(result.bootstrap)) == 4
    assert list(result.counts) == [2, 4]
    assert result.extrapolated is not None
    assert set(result.yardsticks) == {"real_halves", "still", "shuffled"}
    saved = np.load(features)
    assert (saved["real"].shape, saved["fake"].shape) == ((8, 400), (6, 400))
    assert spread.distance(saved["real"], saved["fake"], 0) == pytest.approx(result.fvd)
    with pytest.raises(PvdmError, match="ending in"):
        score(real, fake, save_features=tmp_path / "features")


def test_shuffling_and_stilling_change_what_the_ends_of_a_clip_show(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    real = tmp_path / "real"
    real.mkdir()
    for i in range(4):  # from dark to bright: the last frame is far from the first
        ramp = np.linspace(10 * i, 200, 16).astype(np.uint8)[:, None, None, None]
        write_video(real / f"{i}.npz", np.broadcast_to(ramp, (16, 16, 24, 3)).copy(), 8)
    found = score(real, real, yardsticks=True)
    assert found.fvd < 1e-6
    assert min(found.yardsticks["still"], found.yardsticks["shuffled"]) > 1e-2


def test_a_line_through_one_over_n_ends_at_infinitely_many() -> None:
    assert spread.extrapolate({100: 5 + 3 / 100, 50: 5 + 3 / 50, 25: 5 + 3 / 25}) == pytest.approx(
        5
    )
    assert spread.extrapolate({100: 5.0}) is None


def test_fewer_clips_score_higher_and_the_extrapolation_undoes_most_of_it() -> None:
    """Two draws from one Gaussian: their true distance is 0."""
    real, fake = (RNG.normal(size=(2000, 30)).astype(np.float32) for _ in range(2))
    found = spread.at_counts(real, fake, 0, counts=[250, 500, 1000, 2000], seed=0)
    scores = list(found.values())
    assert scores == sorted(scores, reverse=True)
    end = spread.extrapolate(found)
    assert end is not None
    assert abs(end) < 0.5 * scores[-1]


def test_halves_are_nearer_than_another_set() -> None:
    real = RNG.normal(size=(200, 10)).astype(np.float32)
    half = spread.halves(real, 0, seed=0)
    assert half is not None
    assert half < spread.distance(real, real + 1, 0)
    assert spread.halves(real[:3], 0, seed=0) is None


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    """A reel holds one clip at a time; the detector two batches."""
    videos = find_footage(write_noise(tmp_path / "videos", 32)) * 100
    reel = Reel(videos, Window(16, 1, "all"), Geometry(16, 24), 150)
    alive: list[int] = []

    def watched() -> object:
        for number, clip in enumerate(clips_of(reel)):
            alive.append(number)
            yield clip

    detector = Quick(None, "quick", "0" * 64)  # type: ignore[arg-type]
    done = 0
    for features in detector.stream(watched()):  # type: ignore[arg-type]
        done += len(features)
        assert len(alive) - done <= 8  # read ahead: one batch waiting, one being put together
    assert done == 150
