"""Clips for training: keyed draws, the same from memory and from disk."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from pvdm_cli.config import ClipConfig
from pvdm_cli.data import clips as clips_module
from pvdm_cli.data.catalog import find_videos
from pvdm_cli.data.clips import Clips
from pvdm_cli.errors import DataError, VideoError
from pvdm_cli.video.read import Geometry, probe, read
from pvdm_cli.video.write import write_video

CLIP = ClipConfig(frames=4, height=16, width=24)
STRIDED = CLIP.model_copy(update={"frame_stride": 3})
FRAMES = {"a.mp4": 19, "b": 12, "c.gif": 10, "d.mkv": 4, "e.mp4": 3}  # two lengths unknown
RATES = (10, 4, 10, 20, 10)


def noise(frames: int, seed: int) -> np.ndarray:
    """Blocks of colour that change from frame to frame, and keep through compression."""
    blocks = np.random.default_rng(seed).integers(0, 255, (frames, 4, 6, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=1).repeat(8, axis=2)


def write_matroska(path: Path, frames: np.ndarray, fps: int) -> None:
    """A container that does not say how many frames it holds."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, ((name, count), fps) in enumerate(zip(FRAMES.items(), RATES, strict=True)):
        write = write_matroska if name.endswith("mkv") else write_video
        write(folder / name, noise(count, seed), fps=Fraction(fps))
    return folder


def load(folder: Path, clip: ClipConfig = CLIP, memory_gb: float = 1) -> Clips:
    return Clips.load(find_videos(folder), clip, memory_gb=memory_gb)


def test_videos_too_short_or_broken_are_left_out_with_their_reason(
    videos: Path, tmp_path: Path
) -> None:
    found = load(videos)
    assert [video.source.name for video in found.videos] == ["a.mp4", "b", "c.gif", "d.mkv"]
    assert [video.num_frames for video in found.videos] == [19, 12, 10, 4]
    assert found.skipped == {"e.mp4": "only 3 frames, a clip needs 4"}
    (tmp_path / "x.mp4").write_bytes(b"no video")
    (tmp_path / "y.mp4").symlink_to(videos / "a.mp4")
    broken = load(tmp_path)
    assert len(broken) == 1
    assert broken.skipped.keys() == {"x.mp4"}


@pytest.mark.parametrize("memory_gb", [0, 1])
def test_only_short_videos_are_refused_naming_the_first(videos: Path, memory_gb: float) -> None:
    clip = CLIP.model_copy(update={"frames": 20})
    with pytest.raises(DataError, match=r"a clip of 20 frames \(a\.mp4: only 19 frames"):
        load(videos, clip, memory_gb)
    with pytest.raises(DataError, match="there are none"):
        Clips.load([], clip, memory_gb=memory_gb)


@pytest.mark.parametrize("clip", [CLIP, STRIDED], ids=["each frame", "every third frame"])
def test_clips_decoded_on_demand_equal_those_held_in_memory(videos: Path, clip: ClipConfig) -> None:
    held, streamed = load(videos, clip), load(videos, clip, memory_gb=0)
    assert all(video.frames is not None for video in held.videos)
    assert all(video.frames is None for video in streamed.videos)
    assert [v.num_frames for v in held.videos] == [v.num_frames for v in streamed.videos]
    assert held.skipped == streamed.skipped
    assert held.fps == streamed.fps
    for step in range(3):
        assert torch.equal(held.draw(7, step, range(4)), streamed.draw(7, step, range(4)))
    assert torch.equal(held.first_windows(9), streamed.first_windows(9))


def test_memory_holds_what_fits_and_no_more(videos: Path) -> None:
    frame = CLIP.height * CLIP.width * 3
    found = load(videos, memory_gb=(12 + 10) * frame / 1e9)  # a.mp4 leaves too little for b
    held = [video.source.name for video in found.videos if video.frames is not None]
    assert held == ["a.mp4"]


def test_a_length_that_the_header_does_not_tell_is_counted_before_reading(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = [s for s in find_videos(videos) if probe(s.path).num_frames is None]
    assert [source.name for source in unknown] == ["d.mkv"]
    found = Clips.load(unknown, CLIP, memory_gb=0)
    assert found.videos[0].frames is None
    monkeypatch.setattr(clips_module, "read", None)  # nothing is decoded whole
    assert Clips.load(unknown, CLIP, memory_gb=0).videos[0].num_frames == 4


def test_a_stride_takes_every_third_frame_and_lowers_the_rate(videos: Path) -> None:
    found = load(videos, STRIDED)
    assert [video.source.name for video in found.videos] == ["a.mp4", "b", "c.gif"]
    assert [video.num_frames for video in found.videos] == [7, 4, 4]
    frames = read(videos / "a.mp4", Geometry.of(CLIP))
    np.testing.assert_array_equal(found.window(0, 2), frames[[6, 9, 12, 15]])
    assert found.fps == pytest.approx(10 / 3)
    assert load(videos).fps == pytest.approx(10)


def test_a_sample_depends_on_seed_step_and_number_alone(videos: Path) -> None:
    found = load(videos)
    whole = found.draw(5, 3, range(6))
    assert whole.shape == (6, 4, 16, 24, 3)
    assert whole.dtype == torch.uint8
    parts = [found.draw(5, 3, range(start, start + 2)) for start in (0, 2, 4)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(found.draw(5, 3, [4]), whole[4:5])
    assert not torch.equal(found.draw(5, 4, range(6)), whole)
    assert not torch.equal(found.draw(6, 3, range(6)), whole)


def test_half_of_the_samples_are_mirrored_when_asked_for(videos: Path) -> None:
    found = load(videos)
    plain, flipped = found.draw(5, 3, range(64)), found.draw(5, 3, range(64), flip=True)
    same = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    turned = [torch.equal(a.flip(2), b) for a, b in zip(plain, flipped, strict=True)]
    assert all(a or b for a, b in zip(same, turned, strict=True))
    assert 16 < sum(same) < 48


def test_draws_reach_every_video_and_every_start(videos: Path) -> None:
    seen = set()

    class Recorded(Clips):
        def window(self, video: int, start: int) -> np.ndarray:
            seen.add((video, start))
            return super().window(video, start)

    found = load(videos)
    Recorded(found.clip, found.videos, {}).draw(0, 0, range(600))
    counts = (16, 9, 7, 1)
    assert seen == {(video, start) for video, n in enumerate(counts) for start in range(n)}


def test_first_windows_start_the_first_videos(videos: Path) -> None:
    found = load(videos)
    first = found.first_windows(2)
    assert first.shape == (2, 4, 16, 24, 3)
    np.testing.assert_array_equal(first[1].numpy(), found.window(1, 0))


def test_a_video_that_goes_away_is_named_when_it_is_drawn(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", noise(6, 0), fps=8)
    found = load(tmp_path, memory_gb=0)
    draw: Callable[[], torch.Tensor] = lambda: found.draw(0, 0, range(1))  # noqa: E731
    assert draw().shape[0] == 1
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(VideoError, match=r"a\.mp4: No such file"):
        draw()
