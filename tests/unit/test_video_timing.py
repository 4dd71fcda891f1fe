"""Which frames of a video are taken, by time and by number; real files of varying rate."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pvdm_cli.errors import VideoError
from pvdm_cli.video import containers
from pvdm_cli.video.read import Piece, count_frames, probe, read
from pvdm_cli.video.timing import WHOLE, Cut, at_rate, cut_out, length_at_rate
from pvdm_cli.video.write import write_video


def numbers(times: list[float], rate: float) -> list[int]:
    return [number for _, number in at_rate(iter([(t, i) for i, t in enumerate(times)]), rate)]


def even(count: int, fps: float) -> list[float]:
    return [3 + number / fps for number in range(count)]


@pytest.mark.parametrize(("fps", "rate"), [(30, 10), (25, 10), (30, 30), (29.97, 8), (10, 25)])
def test_the_nearest_frame_is_taken_at_each_time(fps: float, rate: float) -> None:
    times = np.array(even(61, fps))
    found = numbers(list(times), rate)
    wanted = np.arange(len(found)) / rate
    distance = np.abs((times - times[0])[None] - wanted[:, None])
    np.testing.assert_allclose(distance.min(1), distance[np.arange(len(found)), found], atol=1e-9)
    assert wanted[-1] <= (61 - 0.5) / fps < len(found) / rate + 1e-9  # to the end, no further
    assert len(found) == length_at_rate(61, fps, rate)


def test_the_same_rate_takes_every_frame_and_half_of_it_every_second() -> None:
    assert numbers(even(7, 24), 24) == list(range(7))
    assert numbers(even(8, 24), 12) == [0, 2, 4, 6]
    assert numbers(even(3, 10), 20) == [0, 0, 1, 1, 2]  # slower ones repeat frames
    assert numbers([0.0], 8) == [0]
    assert numbers([], 8) == []


def test_a_varying_rate_is_evened_out() -> None:
    assert numbers([0, 0.1, 0.2, 0.3, 1.3, 1.4], 5) == [0, 2, 3, 3, 3, 4, 4, 5]
    assert numbers([0, 0.1, 0.05, 0.3], 10) == [0, 1, 2, 3]  # a clock that steps back


def test_a_stretch_excludes_its_end() -> None:
    timed = [(t, i) for i, t in enumerate(even(10, 10))]
    timed = [(t - 3, i) for t, i in timed]
    assert [i for _, i in cut_out(iter(timed), Cut(0.2, 0.5))] == [2, 3, 4]
    assert [i for _, i in cut_out(iter(timed), Cut(2, 5, in_frames=True))] == [2, 3, 4]
    assert [i for _, i in cut_out(iter(timed), Cut(0.75))] == [8, 9]
    for cut in (Cut(0.2, 0.5), Cut(0.75), Cut(0.31, 9), Cut(7, 12, in_frames=True), WHOLE):
        assert cut.length(10, 10) == len(list(cut_out(iter(timed), cut)))
    assert Cut(1, 2).length(10, None) is None


def write_varying(path: Path, times: list[int]) -> np.ndarray:
    """A video whose frames (grey levels) are shown at these milliseconds."""
    levels = np.linspace(0, 240, len(times)).round().astype(np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        stream.codec_context.time_base = Fraction(1, 1000)
        for level, time in zip(levels, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((16, 16), level), format="gray")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return levels


def test_a_file_of_varying_rate_is_read_by_its_own_clock(tmp_path: Path) -> None:
    times = [0, 40, 80, 120, 520, 920, 960, 1000]
    levels = write_varying(tmp_path / "v.mkv", times)
    found = read(tmp_path / "v.mkv", rate=10)[:, 0, 0, 0]
    nearest = [int(np.argmin(np.abs(np.array(times) - 100 * k))) for k in range(len(found))]
    assert len(found) == 11
    np.testing.assert_allclose(found, levels[nearest], atol=1)
    assert count_frames(tmp_path / "v.mkv", rate=10) == 11
    cut = Piece(tmp_path / "v.mkv", cut=Cut(0.1, 0.95))
    np.testing.assert_allclose(read(cut)[:, 0, 0, 0], levels[3:6], atol=1)


def test_gif_frames_have_times_and_frames_in_a_folder_need_a_rate(tmp_path: Path) -> None:
    frames = np.arange(0, 240, 20, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 8, 8, 3), np.uint8
    )
    write_video(tmp_path / "v.gif", frames, fps=10)
    assert len(read(tmp_path / "v.gif", rate=5)) == 6
    write_video(tmp_path / "v", frames, fps=10)
    with pytest.raises(VideoError, match="has no frame rate of its own; give one by --fps"):
        read(tmp_path / "v", rate=5)
    assert read(tmp_path / "v", rate=5, fps=10)[:, 0, 0, 0].tolist() == [0, 40, 80, 120, 160, 200]
    piece = Piece(tmp_path / "v", cut=Cut(0.3, 0.6))
    assert read(piece, fps=10)[:, 0, 0, 0].tolist() == [60, 80, 100]
    assert probe(piece, fps=10).num_frames == 3
    with pytest.raises(VideoError, match="give one by --fps"):
        read(piece)


def test_a_jump_to_a_late_stretch_gives_the_frames_that_decoding_all_gives(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = shared / "data" / "odd"
    for name in ("cockatoo_yuv444.mp4", "flipping_a_pancake.mkv"):
        piece = Piece(odd / name, cut=Cut(5, 5.3))
        monkeypatch.setattr(containers, "SEEK_FROM", 1e9)
        slowly = read(piece)
        monkeypatch.setattr(containers, "SEEK_FROM", 1.0)
        for margin in (0.05, 1.0):  # the first lands on frames that lack what they refer to
            monkeypatch.setattr(containers, "SEEK_MARGIN", margin)
            np.testing.assert_array_equal(read(piece), slowly)
