"""Data sets as they come, and the policy of clips: real videos in every layout, by the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_encode import SIZES, model_of
from typer.testing import CliRunner

from pvdm_cli import decoding
from pvdm_cli.cli.app import app
from pvdm_cli.config import Policy
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.catalog import Source, find_videos
from pvdm_cli.data.clips import Clips
from pvdm_cli.data.feed import Clip, Ended, Failed, Job, clips_of
from pvdm_cli.data.selection import select
from pvdm_cli.encoding import encode_videos, identity_of
from pvdm_cli.errors import ConfigError, DataError
from pvdm_cli.model import Model, save_model
from pvdm_cli.training.diffusion import _split_rows
from pvdm_cli.video.read import Geometry, read

CLIP = SIZES.clip  # 16 frames of 32 x 48
Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(0)


@pytest.fixture(scope="module")
def run(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Call the command with the model: exit code, what --json says, stderr."""
    path = tmp_path_factory.mktemp("model") / "ae"
    save_model(model, path)

    def call(*words: object) -> tuple[int, Any, str]:
        ending = ["--autoencoder", str(path), "--device", "cpu", "--json"]
        done = CliRunner().invoke(app, [*map(str, words), *ending])
        error = "" if done.exception is None else str(done.exception)
        return done.exit_code, json.loads(done.stdout or "null"), done.stderr + error

    return call


@pytest.fixture(scope="module")
def sky(shared: Path) -> np.ndarray:
    return read(shared / "data" / "sky48_128" / "sky_00.mp4")


@pytest.fixture(scope="module")
def wide(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide (96 x 24) pieces of real skies as arrays of 32 and of 9 frames."""
    folder = tmp_path_factory.mktemp("wide")
    for number, source in enumerate(find_videos(shared / "data" / "sky48_128")[:3]):
        np.save(folder / f"{number}.npy", read(source.path)[:, 40:64, :96])
    np.save(folder / "short.npy", np.load(folder / "0.npy")[:9])
    return folder


def test_every_layout_of_the_same_frames_gives_the_same_latents(
    model: Model, sky: np.ndarray, tmp_path: Path
) -> None:
    root = tmp_path / "set"
    clip = root / "train" / "video" / "clip"
    clip.mkdir(parents=True)
    for number, frame in enumerate(sky):
        Image.fromarray(frame).save(clip / f"{number}.png")
    np.save(root / "a.npy", sky)
    np.save(root / "set.npy", np.stack([sky, sky[::-1]]))
    np.savez(root / "m.npz", one=sky, other=sky[:20])
    first, *others = [Image.fromarray(frame) for frame in sky]
    first.save(root / "stack.tif", save_all=True, append_images=others)
    result = encode_videos(model, select(root).sources, tmp_path / "cache")
    cache = Cache.open(tmp_path / "cache")
    assert (result.videos, result.clips, result.skipped) == (7, 13, [])
    names = [row.path for row in cache.videos]
    assert names == [
        "a.npy", "m.npz#one", "m.npz#other", "set.npy#00000", "set.npy#00001", "stack.tif",
        "train/video/clip",
    ]  # fmt: skip
    by_name = {
        row.path: cache.read([*cache.rows_of(row.video)], dtype=torch.float32)
        for row in cache.videos
    }
    for name in ("m.npz#one", "set.npy#00000", "stack.tif", "train/video/clip"):
        torch.testing.assert_close(by_name[name], by_name["a.npy"], atol=2e-3, rtol=0)
    assert not torch.allclose(by_name["set.npy#00001"], by_name["a.npy"], atol=2e-3)
    again = encode_videos(model, select(root).sources, tmp_path / "cache")
    assert again.new_clips == 0


def test_grey_videos_are_grey(model: Model, sky: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "g.npy", sky[..., 1])
    (source,) = find_videos(tmp_path)
    identity = identity_of(model)
    clip = next(clips_of(Job(0, source.piece), identity))
    assert isinstance(clip, Clip)
    assert (clip.frames[..., 0] == clip.frames[..., 2]).all()


@pytest.mark.slow
def test_a_table_of_stretches_encodes_them_with_their_classes(
    run: Run, shared: Path, tmp_path: Path
) -> None:
    video = shared / "data" / "odd" / "moviepy_chaplin.mp4"  # 241 frames, 25 a second
    (tmp_path / "videos").symlink_to(video.parent)
    table = tmp_path / "clips.csv"
    name = f"videos/{video.name}"
    table.write_text(
        f"path,start,end,start_frame,end_frame,label\n{name},2,2.8,,,walk\n"
        f"{name},,,50,70,walk\n{name},9,,,,stand\n{name},99,,,,walk\nvideos/lost.mp4,,,,,walk\n"
    )
    code, result, said = run("encode", table, "--out", tmp_path / "cache")
    assert (code, result["videos"], result["clips"]) == (3, 3, 3), said
    assert result["classes"] == ["stand", "walk"]
    assert result["missing"] == ["videos/lost.mp4"]
    assert result["skipped"] == [
        {"path": f"{name}#99-s", "reason": "only 0 frames, a clip needs 16"}
    ]
    cache = Cache.open(tmp_path / "cache")
    assert [row.path for row in cache.videos] == [
        f"{name}#2-2.8s", f"{name}#50-70", f"{name}#9-s", f"{name}#99-s",
    ]  # fmt: skip
    assert cache.index.tolist() == [[0, 0, 1], [1, 0, 1], [2, 0, 0]]
    torch.testing.assert_close(cache.read([0]), cache.read([1]), atol=2e-3, rtol=0)
    frames = read(video, Geometry.of(CLIP), start=50, count=16)
    job = Job(0, select(table).sources[0].piece)
    clip = next(clips_of(job, identity_of(model_of(0))))
    assert isinstance(clip, Clip)
    np.testing.assert_array_equal(clip.frames, frames)
    targets = decoding._targets(cache.videos[:3], tmp_path, "mp4")
    assert [path.name for path in targets] == [
        "moviepy_chaplin#2-2.8s.mp4", "moviepy_chaplin#50-70.mp4", "moviepy_chaplin#9-s.mp4",
    ]  # fmt: skip


@pytest.mark.slow
def test_ucf101_is_encoded_by_its_lists(run: Run, shared: Path, tmp_path: Path) -> None:
    lists = tmp_path / "ucf" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    for source in find_videos(shared / "data" / "ucf101"):
        (tmp_path / "ucf" / source.name).symlink_to(source.path)
    first, second = (f"SoccerJuggling/v_SoccerJuggling_{g}_c01.avi" for g in ("g23", "g24"))
    (lists / "trainlist01.txt").write_text(f"{second} 84\n")
    (lists / "testlist01.txt").write_text(f"{first}\n")
    (lists / "trainlist02.txt").write_text(f"{first} 84\nArchery/v_Archery_g01_c01.avi 2\n")
    out = tmp_path / "c"
    options = ["--window-stride", 64, "--labels", "folders"]
    for side, fold, code, name in (
        ("train", 1, 0, "g24"), ("test", 1, 0, "g23"), ("train", 2, 3, "g23"),
    ):  # fmt: skip
        words = ["encode", tmp_path / "ucf", "--split", side, "--fold", fold, *options]
        exit_code, result, said = run(*words, "--out", out / f"{side}{fold}")
        assert exit_code == code, said
        cache = Cache.open(out / f"{side}{fold}")
        assert [row.path for row in cache.videos] == [f"v_SoccerJuggling_{name}_c01.avi"]
        assert result["classes"] == ["SoccerJuggling"]
        assert (cache.manifest.selection.split, cache.manifest.selection.fold) == (side, fold)
    assert result["missing"] == ["Archery/v_Archery_g01_c01.avi"]


def clips_at(folder: Path, policy: Policy, **changes: Any) -> dict[str, list[Any]]:
    """Events of each video of a folder under a policy."""
    identity = identity_of(model_of(0), policy=policy).model_copy(update=changes)
    return {
        s.name: list(clips_of(Job(0, s.piece, name=s.name, mirror=s.mirrored), identity))
        for s in select(folder, flip=policy.flip).sources
    }


def test_short_videos_are_skipped_looped_or_held(wide: Path) -> None:
    frames = read(wide / "short.npy", Geometry.of(CLIP))
    assert clips_at(wide, Policy())["short.npy"] == [Failed(0, "only 9 frames, a clip needs 16")]
    for how, numbers in (
        ("loop", [*range(9), *range(7)]),
        ("hold", [*range(9), *[8] * 7]),
    ):
        clip, ended = clips_at(wide, Policy(short=how))["short.npy"]
        np.testing.assert_array_equal(clip.frames, frames[numbers])
        assert ended == Ended(0, 9, None, f"9 frames made 16: {how}")
        memory, disk = (
            Clips.load(find_videos(wide), CLIP, memory_gb=gb, policy=Policy(short=how))
            for gb in (1, 0)
        )
        assert [video.num_frames for video in disk.videos] == [32, 32, 32, 16]
        for clips in (memory, disk):
            assert not clips.skipped
            np.testing.assert_array_equal(clips.window(3, 0), frames[numbers])


def test_a_letterbox_shows_all_of_a_frame_on_black(wide: Path) -> None:
    clip = clips_at(wide, Policy(crop="letterbox"))["1.npy"][0].frames
    whole = read(wide / "1.npy", Geometry(12, 48))[:16]  # 96 x 24 into 48 x 32
    np.testing.assert_array_equal(clip[:, 10:22], whole)
    assert not clip[:, :10].any()
    assert not clip[:, 22:].any()


def test_a_random_crop_goes_by_seed_and_name_alone(wide: Path) -> None:
    one, again = (clips_at(wide, Policy(crop="random", seed=7)) for _ in range(2))
    other = clips_at(wide, Policy(crop="random", seed=6))
    centre = clips_at(wide, Policy())
    for name in ("0.npy", "1.npy", "2.npy"):
        np.testing.assert_array_equal(one[name][0].frames, again[name][0].frames)
        assert (one[name][0].frames != other[name][0].frames).any()
        assert (one[name][0].frames != centre[name][0].frames).any()
    # Clips that follow each other show the same part.
    first, second = (clip.frames for clip in one["0.npy"][:2])
    joined = clips_at(wide, Policy(crop="random", seed=7), window_stride=8)["0.npy"][1].frames
    np.testing.assert_array_equal(joined, np.concatenate([first[8:], second[:8]]))
    part = Clips.load(
        find_videos(wide)[:1], CLIP, memory_gb=1, policy=Policy(crop="random", seed=7)
    )
    np.testing.assert_array_equal(part.window(0, 16), second)


def test_a_rate_picks_frames_by_time_and_is_the_rate_of_the_cache(
    model: Model, shared: Path, tmp_path: Path
) -> None:
    sources = find_videos(shared / "data" / "weizmann72_64")[:2]  # 25 frames a second
    encode_videos(model, sources, tmp_path / "c", policy=Policy(rate=10), window_stride=4)
    cache = Cache.open(tmp_path / "c")
    assert (cache.manifest.fps, cache.manifest.clip.frame_stride) == (10, 1)
    assert cache.videos[0].fps == 25
    frames = read(sources[0].path)
    picked = read(sources[0].path, rate=10)
    np.testing.assert_array_equal(picked[:4], frames[[0, 2, 5, 7]])  # 0, 0.1, 0.2, 0.3 s
    assert cache.videos[0].frames == len(picked)
    clips = Clips.load(sources, CLIP, memory_gb=0, policy=Policy(rate=10))
    assert (clips.fps, clips.videos[0].num_frames) == (10, len(picked))
    with pytest.raises(ConfigError, match="--rate picks frames by time, --frame-stride by number"):
        identity_of(model, frame_stride=2, policy=Policy(rate=10))


@pytest.mark.slow
def test_a_frame_without_rate_is_skipped_saying_how_to_give_one(
    run: Run, wide: Path, tmp_path: Path
) -> None:
    words = ["encode", wide, "--rate", 5, "--out", tmp_path / "c"]
    code, _, said = run(*words)
    assert code == 1
    assert "none of the 4 videos could be encoded" in said
    assert "0.npy: has no frame rate of its own; give one by --fps" in said
    code, result, said = run(*words[:-1], tmp_path / "d", "--fps", 5)
    assert (code, result["fps"], result["videos"]) == (3, 5, 3), said
    code, result, _ = run("encode", wide, "--fps", 6, "--frame-stride", 2, "--out", tmp_path / "e")
    assert (code, result["fps"], result["clips"]) == (3, 3, 3)
    assert Cache.open(tmp_path / "e").manifest.clip.frame_stride == 2


def test_mirrored_copies_are_videos_of_their_own_on_the_same_side(
    model: Model, wide: Path, tmp_path: Path
) -> None:
    policy = Policy(flip=True, crop="random")
    found = select(wide, flip=True)
    encode_videos(model, found.sources, tmp_path / "c", policy=policy, labelled=found)
    cache = Cache.open(tmp_path / "c")
    names = {row.video: row.path for row in cache.videos}
    pairs = cache.pairs()
    assert len(pairs.first) == 6
    assert torch.equal(cache.index[pairs.first, 0], cache.index[pairs.next, 0])
    train, held = _split_rows(cache, 0.3)
    sides = [{names[v] for v in cache.index[rows, 0].tolist()} for rows in (train, held)]
    assert all({name + "#mirrored" for name in side if "#" not in name} <= side for side in sides)
    assert all(sides)
    events = clips_at(wide, policy)
    left, right = events["1.npy"][0].frames, events["1.npy#mirrored"][0].frames
    np.testing.assert_array_equal(left, right[:, :, ::-1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--crop", "letterbox"], "policy.crop=centre (now letterbox)"),
        (["--short", "hold"], "policy.short=skip (now hold)"),
        (["--flip"], "policy.flip=False (now True)"),
        (["--rate", 4, "--fps", 8], "policy.fps=None (now 8.0), policy.rate=None (now 4.0)"),
        (["--frame-stride", 2], "clip.frame_stride=1 (now 2)"),
        (["--window-stride", 1], "window_stride=16 (now 1)"),
    ],
)
def test_a_cache_is_of_one_policy(
    run: Run, wide: Path, wide_cache: Path, options: list[object], said: str
) -> None:
    code, _, error = run("encode", wide, "--out", wide_cache, *options)
    assert code == 1
    assert f"was made with {said}: choose another --out" in error


@pytest.fixture(scope="module")
def wide_cache(run: Run, wide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cache") / "c"
    code, _, _ = run("encode", wide, "--out", out, "--exclude", "2*")
    assert code == 3
    return out


def test_a_cache_says_how_it_was_chosen_and_cut_and_older_ones_still_open(
    run: Run, wide: Path, wide_cache: Path
) -> None:
    manifest = wide_cache / "manifest.json"
    said = json.loads(manifest.read_text())
    assert said["selection"] == {"include": [], "exclude": ["2*"], "split": "all", "fold": 1}
    assert said["policy"] == Policy().model_dump()
    for key in ("selection", "policy", "holdout", "sha256", "lists"):
        del said[key]
    manifest.write_text(json.dumps(said))
    assert len(Cache.open(wide_cache)) == 4
    code, result, _ = run("encode", wide, "--out", wide_cache, "--exclude", "2*")
    assert (code, result["new_clips"], result["clips"]) == (3, 0, 4)


def test_training_takes_the_frame_stride_of_the_cache(
    model: Model, wide: Path, tmp_path: Path
) -> None:
    from pvdm_cli.training.diffusion import check_stride

    encode_videos(model, find_videos(wide)[:1], tmp_path / "c", frame_stride=2)
    cache = Cache.open(tmp_path / "c")
    with pytest.raises(DataError, match=r"frame_stride=2-th frame.*; give clip\.frame_stride=2"):
        check_stride(cache, CLIP)
    check_stride(cache, CLIP.model_copy(update={"frame_stride": 2}))


def test_ls_tells_what_encode_then_makes(run: Run, wide: Path, tmp_path: Path) -> None:
    options = ["--window-stride", 8, "--flip", "--fps", 16]
    code, told, _ = run("data", "ls", wide, *options)
    assert code == 0
    assert told["short"][0] == {"path": "short.npy", "reason": "9 frames, a clip needs 16"}
    assert (told["videos"], told["usable"], told["frames"]) == (8, 6, 2 * (3 * 32 + 9))
    assert told["resolutions"] == {"96x24": 8}
    assert told["rates"] == {"unknown": 8}
    assert told["codecs"] == {"npy": 8}
    assert told["hours"] == pytest.approx(told["frames"] / 16 / 3600)
    assert told["encode_seconds"] > 0
    assert told["measured_clips"] > 0
    _, made, _ = run("encode", wide, *options, "--out", tmp_path / "c")
    assert told["clips"] == made["clips"] == 18
    assert told["cache_bytes"] == pytest.approx(made["bytes"], rel=0.2)  # but for headers


@pytest.mark.slow
def test_ls_names_every_odd_file_among_good_ones(run: Run, shared: Path, tmp_path: Path) -> None:
    for source in find_videos(shared / "data" / "odd"):
        if source.path.stat().st_size < 100_000:  # those that decode quickly
            (tmp_path / source.name).symlink_to(source.path)
    good = shared / "data" / "sky48_128" / "sky_00.mp4"
    cut = tmp_path / "cut.mp4"
    cut.write_bytes((shared / "data/odd/moviepy_example_mask.mp4").read_bytes()[:-2000])
    (tmp_path / "good.mp4").symlink_to(good)
    code, told, _ = run("data", "ls", tmp_path, "--no-time")
    assert code == 3
    broken = {entry["path"]: entry["reason"] for entry in told["broken"]}
    assert {"empty.mp4", "text.avi", "truncated_noindex_realshort.mp4", "cut.mp4"} == set(broken)
    assert broken["empty.mp4"] == "the file is empty"
    assert {entry["path"] for entry in told["short"]} == {
        "h265_video.mp4", "video_0.mov", "video_90.mov",
    }  # fmt: skip
    assert told["encode_seconds"] is None
    code, full, _ = run("data", "ls", tmp_path, "--no-time", "--full")
    broken |= {entry["path"]: entry["reason"] for entry in full["broken"]}
    assert code == 3
    assert {"corrupted.mp4"} < set(broken)
    assert "cannot be decoded after" in broken["corrupted.mp4"]
    assert set(full["frames_counted_by"]) == {"decoding"}
    code, made, _ = run("encode", tmp_path, "--out", tmp_path / "c")
    assert code == 3
    assert made["clips"] == full["clips"]
    assert {e["path"] for e in made["skipped"]} == {
        e["path"] for e in [*full["broken"], *full["short"]]
    }


def test_ls_is_read_in_80_columns(
    model: Model, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(model, Path("ae"))
    (tmp_path / "v").symlink_to(shared / "data" / "cctv300_128")
    lines = [f"v/{name},fight" for name in ("fi001.mp4", "fi018.mp4", "lost.mp4")]
    Path("t.csv").write_text("\n".join(["path,label", *lines]))
    options = ["--autoencoder", "ae", "--device", "cpu"]
    done = CliRunner().invoke(app, ["data", "ls", "t.csv", *options])
    assert done.exit_code == 3, done.output
    shown = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout
    for line in (
        "videos 2 of 2 give clips", "missing 1", "frames 113; 2 videos told by headers",
        "clips 6 of 16 frames, 48x32; one every 16", f"label fight 2 {'█' * 20}",
        "v/lost.mp4 missing: named, but not there",
    ):  # fmt: skip
        assert line in shown, done.stdout
    assert any(line.startswith("encoding about") for line in shown)


def test_the_same_table_trains_and_is_described(shared: Path, tmp_path: Path) -> None:
    folder = shared / "data" / "sky48_128"
    table = tmp_path / "t.csv"
    table.write_text(f"path,end_frame\n{folder}/sky_00.mp4,20\n{folder}/sky_01.mp4,\n")
    clips = Clips.load(select(table).sources, CLIP, memory_gb=1)
    assert [video.num_frames for video in clips.videos] == [20, 32]
    told = json.loads(CliRunner().invoke(app, ["info", str(table), "--json"]).stdout)
    assert (told["kind"], told["videos"]) == ("videos", 2)
    assert Source(table, "t.csv") not in find_videos(table)
