from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pvdm_cli.errors import VideoError
from pvdm_cli.video import stills
from pvdm_cli.video.containers import orient
from pvdm_cli.video.read import Geometry, count_frames, probe, read, stream
from pvdm_cli.video.write import write_video


def flat_frames(levels: list[int], height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    """One grey level per frame: survives any codec, so frames can be told apart."""
    return (
        np.array(levels, np.uint8)[:, None, None, None]
        .repeat(height, 1)
        .repeat(width, 2)
        .repeat(3, 3)
    )


def encoded(frames: NDArray[np.uint8], path: Path) -> Path:
    """Write frames as H.264 in any container (mpeg4 in avi); an mp4 gets its index in front."""
    options = {"movflags": "faststart"} if path.suffix == ".mp4" else {}
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=10)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An mp4 of ten frames with the grey levels 20, 40, ..., 200."""
    path = tmp_path_factory.mktemp("steps") / "steps.mp4"
    write_video(path, flat_frames(list(range(20, 201, 20))), 12.5)
    return path


def levels(frames: NDArray[np.uint8]) -> list[int]:
    return [round(frame.mean() / 20) * 20 for frame in frames]


def test_probe_tells_size_rate_and_length(steps: Path) -> None:
    info = probe(steps)
    assert info[1:6] == (10, 12.5, 32, 48, "h264")
    assert info.path == steps


def test_all_frames_are_read_in_order(steps: Path) -> None:
    frames = read(steps)
    assert frames.shape == (10, 32, 48, 3)
    assert levels(frames) == list(range(20, 201, 20))
    assert count_frames(steps) == 10


def test_stride_and_start_and_count_choose_frames(steps: Path) -> None:
    assert levels(read(steps, stride=3, start=1)) == [40, 100, 160]
    assert levels(read(steps, start=8)) == [180, 200]
    assert levels(read(steps, stride=2, count=2)) == [20, 60]
    assert levels(np.stack(list(stream(steps, stride=4)))) == [20, 100, 180]


def test_a_video_shorter_than_asked_for_is_refused(steps: Path) -> None:
    with pytest.raises(
        VideoError, match=r"steps\.mp4: too short: 4 frames at stride 3 from frame 1"
    ):
        read(steps, stride=3, start=1, count=4)
    with pytest.raises(VideoError, match="too short: a frame"):
        read(steps, start=10)


def test_stride_and_start_out_of_range_are_refused_at_once(steps: Path) -> None:
    with pytest.raises(ValueError, match="stride=0"):
        stream(steps, stride=0)
    with pytest.raises(ValueError, match="start=-1"):
        stream(steps, start=-1)


def test_geometry_sets_the_size(steps: Path) -> None:
    assert read(steps, Geometry(24, 16)).shape == (10, 24, 16, 3)


def test_a_colon_in_a_name_is_no_protocol(steps: Path, tmp_path: Path) -> None:
    path = tmp_path / "12:30.mp4"
    path.write_bytes(steps.read_bytes())
    assert len(read(path)) == 10


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "No such file"), (b"", "the file is empty"), (b"hello\n", "FFmpeg can open")],
)
def test_what_is_no_video_is_refused_by_name(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    path = tmp_path / "what.mp4"
    if content is not None:
        path.write_bytes(content)
    for look in (probe, read, count_frames):
        with pytest.raises(VideoError, match=rf"what\.mp4: .*{reason}") as caught:
            look(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".gif", ".webp"])
def test_a_file_cut_in_the_middle_is_refused(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / f"cut{suffix}"
    frames = rng.integers(0, 256, (12, 32, 48, 3), np.uint8)
    if suffix in {".gif", ".webp"}:
        write_video(path, frames, 10)
    else:
        encoded(frames, path)
    assert len(read(path)) == 12
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(VideoError, match=f"cut{suffix}: "):
        read(path)


def test_keep_partial_gives_the_frames_before_the_damage(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, 32, 48, 3), np.uint8)
    path = encoded(frames, tmp_path / "damaged.mkv")
    whole = read(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    kept = read(path, keep_partial=True)
    assert 0 < len(kept) < 12
    assert np.array_equal(kept, whole[: len(kept)])


def test_frames_of_a_folder_come_in_natural_order(tmp_path: Path) -> None:
    for number in (10, 9, 1, 100):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    frames = read(tmp_path)
    assert frames[:, 0, 0, 0].tolist() == [1, 9, 10, 100]
    assert probe(tmp_path)[1:6] == (4, None, 4, 6, "png")
    assert count_frames(tmp_path) == 4


def test_frames_of_different_sizes_need_a_geometry(tmp_path: Path) -> None:
    Image.new("RGB", (6, 4)).save(tmp_path / "1.png")
    Image.new("RGB", (7, 4)).save(tmp_path / "2.png")
    with pytest.raises(VideoError, match="frame 1 is 7x4 but the first is 6x4"):
        read(tmp_path)
    assert read(tmp_path, Geometry(2, 3)).shape == (2, 2, 3, 3)


def test_a_folder_without_images_and_a_broken_image_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VideoError, match="holds no images"):
        read(tmp_path)
    Image.new("RGB", (6, 4)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    with pytest.raises(VideoError, match=r"2\.png: not a readable image"):
        read(tmp_path)
    assert len(read(tmp_path, keep_partial=True)) == 1


@pytest.mark.parametrize(
    ("mode", "value", "rgb"),
    [
        ("L", 77, [77, 77, 77]),
        ("1", 1, [255, 255, 255]),
        ("RGBA", (200, 100, 0, 255), [200, 100, 0]),
        ("RGBA", (200, 100, 0, 0), [255, 255, 255]),
        ("RGBA", (200, 100, 0, 51), [244, 224, 204]),
        ("LA", (40, 255), [40, 40, 40]),
        ("I;16", 257 * 90, [90, 90, 90]),
    ],
)
def test_grey_and_transparent_images_become_rgb(
    tmp_path: Path, mode: str, value: int | tuple[int, ...], rgb: list[int]
) -> None:
    Image.new(mode, (5, 3), value).save(tmp_path / "image.png")
    pixels = stills.read_image(tmp_path / "image.png")
    assert pixels.shape == (3, 5, 3)
    assert pixels.dtype == np.uint8
    assert pixels[1, 2].tolist() == rgb


def test_cmyk_jpegs_have_the_right_colours(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (255, 0, 0, 0)).save(tmp_path / "cyan.jpg", quality=95)
    assert (
        np.abs(stills.read_image(tmp_path / "cyan.jpg")[8, 8] - np.array([0, 255, 255])).max() < 4
    )


def test_the_exif_orientation_of_photographs_is_honoured(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 16))
    image.paste((255, 255, 255), (0, 0, 8, 4))  # stored with white on top
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    pixels = stills.read_image(tmp_path / "turned.png")
    assert pixels.shape == (8, 16, 3)
    assert pixels[:, -4:].min() == 255
    assert pixels[:, :-4].max() == 0


def test_transparent_gif_frames_lie_on_white(tmp_path: Path) -> None:
    frames = [Image.new("RGBA", (6, 4), (0, 0, 0, 0)) for _ in range(2)]
    frames[1].paste((255, 0, 0, 255), (0, 0, 3, 4))
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    found = read(tmp_path / "a.gif")
    assert found[0].min() == 255
    assert found[1, 0, 0].tolist() == [255, 0, 0]
    assert found[1, 0, 5].tolist() == [255, 255, 255]


def test_a_gif_under_another_name_is_still_a_gif(tmp_path: Path) -> None:
    write_video(tmp_path / "a.gif", flat_frames([0, 120, 240]), 4)
    (tmp_path / "a.gif").rename(tmp_path / "a.mp4")
    assert levels(read(tmp_path / "a.mp4")) == [0, 120, 240]


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ([[1, 0], [0, 1]], [[1, 2, 3], [4, 5, 6]]),
        ([[-1, 0], [0, 1]], [[3, 2, 1], [6, 5, 4]]),  # mirrored
        ([[1, 0], [0, -1]], [[4, 5, 6], [1, 2, 3]]),  # upside down and mirrored
        ([[-1, 0], [0, -1]], [[6, 5, 4], [3, 2, 1]]),  # half turn
        ([[0, 1], [-1, 0]], [[4, 1], [5, 2], [6, 3]]),  # quarter turn clockwise
        ([[0, -1], [1, 0]], [[3, 6], [2, 5], [1, 4]]),  # counterclockwise
        ([[0, 1], [1, 0]], [[1, 4], [2, 5], [3, 6]]),  # transposed
        ([[0, -1], [-1, 0]], [[6, 3], [5, 2], [4, 1]]),
    ],
)
def test_the_display_matrix_turns_and_flips(
    matrix: list[list[int]], expected: list[list[int]]
) -> None:
    pixels = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[..., None].repeat(3, 2)
    assert orient(pixels, np.array(matrix))[..., 0].tolist() == expected
