"""Real files from other projects' test suites, decoded by us and by an independent ffmpeg."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from pvdm_cli.data.catalog import find_videos
from pvdm_cli.errors import VideoError
from pvdm_cli.video.read import Geometry, count_frames, probe, read, stream

# name: (frames, upright height, upright width)
READABLE = {
    "RATRACE_wave_f_nm_np1_fr_goo_37.avi": (72, 240, 560),  # its header claims 73
    "SOX5yA1l24A.mp4": (332, 256, 340),
    "bbaf2n.mpg": (75, 288, 360),
    "bt709_full_range.mp4": (30, 720, 1280),
    "cockatoo_yuv444.mp4": (280, 720, 1280),
    "flipping_a_pancake.mkv": (310, 240, 426),
    "h264_10bits.mp4": (30, 200, 200),
    "h265_video.mp4": (10, 128, 128),
    "moviepy_big_buck_bunny_432_433.webm": (24, 720, 1280),
    "moviepy_chaplin.mp4": (241, 360, 640),
    "moviepy_example_mask.mp4": (300, 200, 200),
    "moviepy_pigs_in_a_polka.gif": (30, 273, 314),
    "moviepy_smpte-2997.mp4": (251, 1080, 1920),
    "moviepy_video_with_failing_audio.mp4": (280, 360, 640),
    "realshort.mp4": (36, 240, 320),
    "test.avi": (164, 240, 320),
    "tree.avi": (68, 240, 320),  # 444 in its header, most of them placeholders
    "video_0.mov": (3, 320, 568),
    "video_90.mov": (3, 568, 320),  # stored lying down
}
REFUSED = {
    "corrupted.mp4": "cannot be decoded after [0-9]+ frames|frame [0-9]+ is damaged",
    "empty.mp4": "the file is empty",
    "text.avi": "not a video that FFmpeg can open",
    "truncated_noindex_realshort.mp4": "not a video that FFmpeg can open",
}
# Ten bits go through swscale's general code, whose chroma interpolation differs between versions.
ROUGH = {"h264_10bits.mp4"}
COMPARED = 16  # every so many frames are compared, all are counted


@pytest.fixture(scope="session")
def odd(shared: Path) -> Path:
    return shared / "data" / "odd"


def ffmpeg_frames(path: Path, height: int, width: int) -> Iterator[NDArray[np.uint8]]:
    """Decode with the ffmpeg binary, which is another build than the one inside PyAV."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", "-i", str(path)]
    command += ["-map", "0:v:0", "-fps_mode", "passthrough"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        size = height * width * 3
        while len(data := process.stdout.read(size)) == size:
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)


def blocks(frame: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Mean colours of 8x8 blocks: what is left when the way chroma is interpolated does not count."""
    height, width = (side // 8 * 8 for side in frame.shape[:2])
    cut = frame[:height, :width].astype(np.float64)
    return cut.reshape(height // 8, 8, width // 8, 8, 3).mean((1, 3))


def test_the_tables_above_name_every_file(odd: Path) -> None:
    assert {source.name for source in find_videos(odd)} == READABLE.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", READABLE)
def test_frames_orientation_and_colours_are_those_of_ffmpeg(odd: Path, name: str) -> None:
    num_frames, height, width = READABLE[name]
    theirs = ffmpeg_frames(odd / name, height, width)
    found = 0
    for frame, reference in zip(stream(odd / name), theirs, strict=True):
        assert frame.shape == (height, width, 3)
        if found % COMPARED == 0:
            difference = np.abs(frame.astype(np.int16) - reference)
            if name in ROUGH:
                assert difference.mean() < 2
                assert np.abs(blocks(frame) - blocks(reference)).mean() < 1
            else:
                assert difference.mean() < 0.5
                assert difference.max() <= 4
        found += 1
    assert found == num_frames


@pytest.mark.parametrize("name", READABLE)
def test_probe_promises_no_more_than_there_is(odd: Path, name: str) -> None:
    num_frames, height, width = READABLE[name]
    info = probe(odd / name)
    assert (info.height, info.width) == (height, width)
    assert info.num_frames in (None, num_frames)
    assert info.fps is not None
    assert 5 < info.fps < 60


@pytest.mark.parametrize("name", REFUSED)
def test_broken_files_are_refused_in_one_sentence(odd: Path, name: str) -> None:
    for look in (read, count_frames):
        with pytest.raises(VideoError, match=REFUSED[name]) as caught:
            look(odd / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_video_that_breaks_off_can_be_kept_up_to_there(odd: Path) -> None:
    kept = read(odd / "corrupted.mp4", Geometry(36, 64), keep_partial=True)
    assert len(kept) == 28
    again = read(odd / "corrupted.mp4", Geometry(36, 64), keep_partial=True)
    assert np.array_equal(kept, again)


@pytest.mark.parametrize("flag", ["-display_hflip", "-display_vflip"])
def test_mirrored_and_turned_videos_come_out_as_ffmpeg_shows_them(
    odd: Path, tmp_path: Path, flag: str
) -> None:
    for degrees, (height, width) in {0: (240, 320), 90: (320, 240), 180: (240, 320)}.items():
        path = tmp_path / f"{degrees}.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y"]
        command += ["-display_rotation", str(degrees), flag, "-i", str(odd / "realshort.mp4")]
        subprocess.run([*command, "-an", "-c", "copy", str(path)], check=True)
        reference = next(ffmpeg_frames(path, height, width))
        frame = next(stream(path))
        assert frame.shape == (height, width, 3)
        assert np.abs(frame.astype(int) - reference).max() <= 4


@pytest.mark.slow
def test_memory_does_not_grow_with_length(odd: Path) -> None:
    code = f"""
import resource
from pvdm_cli.video.read import stream
frames = stream({str(odd / "moviepy_smpte-2997.mp4")!r})
peaks = []
for number, _ in enumerate(frames):
    if number in (40, 250):
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks)
"""
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    early, late = map(int, printed.split())  # MiB; 210 frames of 6 MiB lie between
    assert late - early < 60
