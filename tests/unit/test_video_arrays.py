"""Arrays and tiff stacks as videos: what is read, and what is refused in one sentence."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pvdm_cli.data.catalog import find_videos
from pvdm_cli.errors import VideoError
from pvdm_cli.video.arrays import Part, parts
from pvdm_cli.video.read import Geometry, Piece, count_frames, probe, read
from pvdm_cli.video.write import write_video

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 9, 12, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def grey_as_rgb(frames: np.ndarray) -> np.ndarray:
    return np.repeat(frames[..., None], 3, axis=-1)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (COLOUR, COLOUR),
        (GREY, grey_as_rgb(GREY)),
        (GREY[..., None], grey_as_rgb(GREY)),
        (GREY.astype(np.uint16) * 257, grey_as_rgb(GREY)),
        ((GREY.astype(">u2") * 257), grey_as_rgb(GREY)),
        (np.asfortranarray(COLOUR), COLOUR),
    ],
)
def test_one_video_in_a_file_is_read_as_it_is(
    tmp_path: Path, suffix: str, array: np.ndarray, expected: np.ndarray
) -> None:
    path = tmp_path / f"v.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, array)
    assert [source.name for source in find_videos(tmp_path)] == [f"v.{suffix}"]
    np.testing.assert_array_equal(read(path), expected)
    info = probe(path)
    assert info[1:6] == (5, None, 9, 12, suffix)
    assert count_frames(path, stride=2) == 3
    np.testing.assert_array_equal(read(path, start=1, stride=2), expected[[1, 3]])
    assert read(path, Geometry(4, 4)).shape == (5, 4, 4, 3)


@pytest.mark.parametrize("array", [COLOUR, GREY, GREY[..., None]])
def test_a_set_of_videos_is_several_videos_of_stable_names(
    tmp_path: Path, array: np.ndarray
) -> None:
    np.save(tmp_path / "set.npy", np.stack([array, array[::-1]]))
    found = find_videos(tmp_path)
    assert [source.name for source in found] == ["set.npy#00000", "set.npy#00001"]
    np.testing.assert_array_equal(read(found[1].piece), read(found[0].piece)[::-1])
    assert find_videos(tmp_path / "set.npy")[1].name == "set.npy#00001"
    with pytest.raises(VideoError, match=r"holds 2 videos; name one, as in set\.npy#00000"):
        read(tmp_path / "set.npy")


def test_each_array_of_an_npz_is_a_video_or_a_set_and_labels_are_none(tmp_path: Path) -> None:
    np.savez_compressed(
        tmp_path / "m.npz", a=COLOUR, b=np.stack([GREY, GREY]), labels=np.arange(5), fps=12.0
    )
    found = find_videos(tmp_path)
    assert [source.name for source in found] == ["m.npz#a", "m.npz#b#00000", "m.npz#b#00001"]
    assert parts(tmp_path / "m.npz")[2] == Part("b", 1)
    np.testing.assert_array_equal(read(found[0].piece), COLOUR)
    np.testing.assert_array_equal(read(found[2].piece), grey_as_rgb(GREY))
    assert probe(found[0].piece).fps == 12


def test_what_sample_writes_as_npz_is_read_with_its_rate(tmp_path: Path) -> None:
    write_video(tmp_path / "v.npz", COLOUR, fps=7)
    assert [source.name for source in find_videos(tmp_path)] == ["v.npz"]
    assert probe(tmp_path / "v.npz").fps == 7
    np.testing.assert_array_equal(read(tmp_path / "v.npz"), COLOUR)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (COLOUR / np.float32(255), r"it is float32 \[5, 9, 12, 3\], and where black and white"),
        (COLOUR.astype(np.int64), r"is int64 .*; videos are uint8 \(or uint16\)"),
        (COLOUR > 9, "is bool .*; videos are uint8"),
        (COLOUR[0], r"one picture, or frames 3 wide; a video is \[s, H, W\]"),
        (COLOUR.transpose(0, 3, 1, 2), "grey videos, or colours on another axis"),
        (COLOUR.transpose(3, 0, 1, 2), "grey videos, or colours on another axis"),
        (COLOUR[..., :2], "grey videos, or colours on another axis"),
        (np.stack([COLOUR.transpose(0, 3, 1, 2)] * 2), r"is uint8 \[2, 5, 3, 9, 12\]; a video"),
        (COLOUR[:0], "which has no pixels"),
        (GREY[0, 0], r"is uint8 \[12\]; a video is"),
        (np.array([{}], dtype=object), r"not readable as \.npy"),
    ],
)
def test_what_may_be_meant_in_two_ways_is_refused(
    tmp_path: Path, array: np.ndarray, said: str
) -> None:
    np.save(tmp_path / "v.npy", array)
    (source,) = find_videos(tmp_path)  # listed all the same, so that it is named with the reason
    for look in (probe, read):
        with pytest.raises(VideoError, match=said) as caught:
            look(source.piece)
        assert str(caught.value).startswith(f"{tmp_path / 'v.npy'}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_files_are_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v.{suffix}"
    (np.save if suffix == "npy" else np.savez)(path, COLOUR)
    path.write_bytes(path.read_bytes()[:300])
    (source,) = find_videos(tmp_path)
    with pytest.raises(VideoError, match=rf"v\.{suffix}: not readable as \.{suffix}"):
        read(source.piece)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(VideoError, match=rf"not readable as \.{suffix}"):
        read(source.piece)
    np.savez(tmp_path / "v.npz", labels=np.arange(3))
    with pytest.raises(VideoError, match="holds no array of three axes or more"):
        read(tmp_path / "v.npz")


def test_an_array_that_is_not_in_the_file_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", a=COLOUR, b=COLOUR)
    with pytest.raises(VideoError, match=r"holds 2 arrays \(a, b\); name one of them, as in m"):
        read(Piece(tmp_path / "m.npz", Part("c")))
    np.save(tmp_path / "s.npy", np.stack([COLOUR, COLOUR]))
    with pytest.raises(VideoError, match="holds no video 2"):
        read(Piece(tmp_path / "s.npy", Part(number=2)))


def test_a_changed_file_is_read_anew(tmp_path: Path) -> None:
    import os

    path = tmp_path / "v.npz"
    np.savez(path, COLOUR)
    read(path)
    np.savez(path, COLOUR[:3])
    os.utime(path, ns=(1, 1))
    assert len(read(path)) == 3


def save_stack(path: Path, frames: np.ndarray) -> None:
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(path, save_all=True, append_images=others)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (COLOUR, COLOUR),
        (GREY, grey_as_rgb(GREY)),
        (GREY.astype(np.uint16) * 257, grey_as_rgb(GREY)),
    ],
)
def test_a_tiff_of_several_pages_is_a_video(
    tmp_path: Path, frames: np.ndarray, expected: np.ndarray
) -> None:
    for name in ("a.tif", "b.tiff"):  # two in one folder are two videos, not two frames
        save_stack(tmp_path / name, frames)
    assert [source.name for source in find_videos(tmp_path)] == ["a.tif", "b.tiff"]
    np.testing.assert_array_equal(read(tmp_path / "b.tiff"), expected)
    assert probe(tmp_path / "a.tif")[1:6] == (5, None, 9, 12, "tif")


def test_a_tiff_of_several_pages_among_single_ones_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY[0]).save(tmp_path / "0.tif")
    save_stack(tmp_path / "1.tif", GREY)
    (source,) = find_videos(tmp_path)
    with pytest.raises(VideoError, match=r"1\.tif: has several pages, and lies among single ones"):
        read(source.piece)


def test_float_pixels_of_a_tiff_are_refused(tmp_path: Path) -> None:
    save_stack(tmp_path / "f.tif", GREY.astype(np.float32))
    with pytest.raises(VideoError, match=r"f\.tif: has float pixels.*save 8 or 16 bits"):
        read(tmp_path / "f.tif")
