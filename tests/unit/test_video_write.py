import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from pvdm_cli.errors import PvdmError
from pvdm_cli.video.read import probe, read
from pvdm_cli.video.sheets import grid
from pvdm_cli.video.write import exact_rate, open_writer, write_video


def smooth(s: int, height: int, width: int) -> NDArray[np.uint8]:
    """A moving colour gradient: what codecs are good at."""
    t, y, x = np.meshgrid(np.arange(s), np.arange(height), np.arange(width), indexing="ij")
    red, green = 40 + 3 * x + 2 * t, 220 - 4 * y
    return np.stack([red, green, 90 + x + y - t], -1).clip(0, 255).astype(np.uint8)


FRAMES = smooth(9, 32, 48)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2)))


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a"])
def test_what_is_written_is_read_back(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / name, FRAMES, 8)
    found = read(tmp_path / name)
    assert found.shape == FRAMES.shape
    assert name == "a" or psnr(found, FRAMES) > 32
    assert name != "a" or np.array_equal(found, FRAMES)
    assert [item.name for item in tmp_path.iterdir()] == [name]


def test_npz_holds_frames_and_rate_exactly(tmp_path: Path) -> None:
    write_video(tmp_path / "a.npz", FRAMES, Fraction(30000, 1001))
    with np.load(tmp_path / "a.npz") as file:
        assert np.array_equal(file["frames"], FRAMES)
        assert file["fps"] == 30000 / 1001
    assert len(list(tmp_path.iterdir())) == 1


def test_frames_may_come_in_pieces(tmp_path: Path) -> None:
    with open_writer(tmp_path / "a.npz", fps=8, height=32, width=48) as writer:
        for piece in (FRAMES[:1], FRAMES[1:1], FRAMES[1:6], FRAMES[6:]):
            writer.write(piece)
    assert writer.num_frames == 9
    assert np.array_equal(np.load(tmp_path / "a.npz")["frames"], FRAMES)


@pytest.mark.parametrize("fps", [30000 / 1001, 12.5, 1, 60, Fraction(45000, 1499)])
def test_mp4_keeps_the_frame_rate_exactly(tmp_path: Path, fps: float | Fraction) -> None:
    write_video(tmp_path / "a.mp4", FRAMES, fps)
    with av.open(tmp_path / "a.mp4") as container:
        stream = container.streams.video[0]
        assert stream.average_rate == exact_rate(fps)
        times = [frame.pts * frame.time_base for frame in container.decode(stream)]
    assert times == [number / exact_rate(fps) for number in range(9)]


def test_mp4_is_what_every_player_shows(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", FRAMES, 8)
    with av.open(tmp_path / "a.mp4") as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        assert (context.colorspace, context.color_range) == (1, 1)  # BT.709, limited
        assert container.streams.video[0].frames == 9  # not fragmented any more


def test_mp4_pads_odd_sizes_by_repeating_the_edge(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", FRAMES[:, :31, :47], 8)
    found = read(tmp_path / "a.mp4")
    assert found.shape == (9, 32, 48, 3)
    assert psnr(found[:, :31, :47], FRAMES[:, :31, :47]) > 32
    assert np.abs(found[:, 31].astype(int) - found[:, 30]).mean() < 6


def test_colours_survive_mp4(tmp_path: Path) -> None:
    for colour in ((200, 30, 30), (30, 200, 30), (30, 30, 200), (128, 128, 128)):
        frames = np.full((3, 32, 48, 3), colour, np.uint8)
        write_video(tmp_path / "a.mp4", frames, 8)
        assert np.abs(read(tmp_path / "a.mp4").astype(int) - colour).max() <= 3


def test_quality_costs_bytes(tmp_path: Path) -> None:
    noisy = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
    for name in ("a.mp4", "a.webp"):
        sizes = []
        for quality in (20, 60, 100):
            write_video(tmp_path / name, noisy, 8, quality=quality)
            sizes.append((tmp_path / name).stat().st_size)
        assert sizes == sorted(set(sizes))


def test_equal_frames_are_equal_files_whatever_the_memory_held_before(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (5, 64, 64, 3), np.uint8)
    files, dirt = set(), []
    for number in range(100):
        dirt.append(np.full(rng.integers(1, 20_000), number, np.uint8))
        if len(dirt) > 50:
            del dirt[rng.integers(50)]
        write_video(tmp_path / "a.mp4", frames, fps=7)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize(("fps", "shown"), [(10, 10), (30, 30), (25, 25), (100, 50)])
def test_gif_keeps_the_mean_rate_up_to_fifty(tmp_path: Path, fps: int, shown: int) -> None:
    frames = smooth(30, 16, 24)
    write_video(tmp_path / "a.gif", frames, fps)
    found = probe(tmp_path / "a.gif")
    assert found.num_frames == 30
    assert found.fps == pytest.approx(shown, rel=0.02)


def test_gif_colours_do_not_flicker(tmp_path: Path) -> None:
    still = np.broadcast_to(FRAMES[0], (6, 32, 48, 3)).copy()
    write_video(tmp_path / "a.gif", still, 8)
    found = read(tmp_path / "a.gif")
    assert all(np.array_equal(frame, found[0]) for frame in found)


def break_off(path: Path) -> None:
    with open_writer(path, fps=8, height=32, width=48) as writer:
        writer.write(FRAMES)
        raise KeyError("the model broke")


def test_a_failure_leaves_neither_a_file_nor_a_scrap(tmp_path: Path) -> None:
    for name in ("a.mp4", "a.gif", "a.webp", "a.npz", "a"):
        with pytest.raises(KeyError):
            break_off(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_existing_video_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    write_video(tmp_path / "a.npz", FRAMES[:2], 8)
    with open_writer(tmp_path / "a.npz", fps=8, height=32, width=48) as writer:
        writer.write(FRAMES)
        assert len(np.load(tmp_path / "a.npz")["frames"]) == 2
    assert len(np.load(tmp_path / "a.npz")["frames"]) == 9


def test_what_a_killed_process_leaves_of_an_mp4_can_be_played(tmp_path: Path) -> None:
    code = f"""
import os, numpy as np
from pvdm_cli.video.write import open_writer
frames = np.random.default_rng(0).integers(0, 256, (60, 32, 48, 3), np.uint8)
with open_writer({str(tmp_path / "a.mp4")!r}, fps=10, height=32, width=48) as writer:
    for _ in range(4):
        writer.write(frames)
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (scrap,) = tmp_path.iterdir()
    assert scrap.name.startswith(".a.mp4.")
    assert len(read(scrap, keep_partial=True)) > 100


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.npz", "a"])
def test_a_video_without_frames_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PvdmError, match="no frames to write"):
        write_video(tmp_path / name, FRAMES[:0], 8)
    assert not list(tmp_path.iterdir())


def test_frames_of_another_size_or_type_are_refused(tmp_path: Path) -> None:
    for wrong in (FRAMES[:, :30], FRAMES.astype(np.float32), FRAMES[0]):
        with (
            pytest.raises(ValueError, match="expected uint8 frames"),
            open_writer(tmp_path / "a.mp4", fps=8, height=32, width=48) as writer,
        ):
            writer.write(wrong)


def test_wrong_names_rates_and_places_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PvdmError, match=r"cannot write \.mov; use \.mp4"):
        write_video(tmp_path / "a.mov", FRAMES, 8)
    with pytest.raises(PvdmError, match=r"cannot write \.png"):
        write_video(tmp_path / "a.png", FRAMES, 8)
    for fps in (0, -3, float("nan"), float("inf")):
        with pytest.raises(PvdmError, match="frame rate"):
            write_video(tmp_path / "a.mp4", FRAMES, fps)
    with pytest.raises(PvdmError, match="quality=101"):
        write_video(tmp_path / "a.mp4", FRAMES, 8, quality=101)
    (tmp_path / "file").touch()
    with pytest.raises(PvdmError, match="cannot write"):
        write_video(tmp_path / "file" / "a.mp4", FRAMES, 8)


def test_a_given_format_goes_before_the_suffix(tmp_path: Path) -> None:
    with open_writer(tmp_path / "clip.v2", fps=8, height=32, width=48, format="png") as writer:
        writer.write(FRAMES)
    assert np.array_equal(read(tmp_path / "clip.v2"), FRAMES)
    with (
        pytest.raises(PvdmError, match="unknown video format 'mp3'; did you mean 'mp4'"),
        open_writer(tmp_path / "b", fps=8, height=32, width=48, format="mp3"),
    ):
        pass


def test_rates_are_the_fractions_they_were_meant_to_be() -> None:
    assert exact_rate(29.97002997002997) == Fraction(30000, 1001)
    assert exact_rate(23.976) == Fraction(2997, 125)
    assert exact_rate(25) == 25


def test_a_grid_has_rows_columns_and_white_gaps() -> None:
    videos = [np.full((3 + i, 4, 6, 3), 10 * i, np.uint8) for i in range(5)]
    sheet = grid(videos, columns=3, gap=2)
    assert sheet.shape == (7, 10, 22, 3)
    assert (sheet[0, :4, 8:14] == 10).all()
    assert (sheet[6, 6:, 8:14] == 40).all()
    assert (sheet[6, :4, :6] == 0).all()  # the shortest holds its last frame
    assert (sheet[:, 4:6] == 255).all()
    assert (sheet[:, 6:, 16:] == 255).all()  # no sixth video


def test_a_grid_is_about_square_and_one_video_is_itself() -> None:
    assert grid([FRAMES] * 4, gap=0).shape == (9, 64, 96, 3)
    assert np.array_equal(grid([FRAMES]), FRAMES)
