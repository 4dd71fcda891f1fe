"""Animated gif and webp, stacks of tiff pages, folders of frames, through Pillow: RGB frames."""

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, ImageSequence

from pvdm_cli.errors import VideoError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff"})
STACK_SUFFIXES = frozenset({".tif", ".tiff"})  # formats whose files may hold many pages
# What Pillow raises on damaged files, depending on the format and the place of the damage.
BROKEN_IMAGE = (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error)


def is_animation(path: Path) -> bool:
    """Tell a gif or webp by its first bytes, since files are often named wrongly."""
    with path.open("rb") as file:
        head = file.read(12)
    return head[:6] in {b"GIF87a", b"GIF89a"} or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def image_files(folder: Path) -> list[Path]:
    """List the images of a folder in natural order: frame_2 before frame_10."""
    return sorted(
        (
            item
            for item in folder.iterdir()
            if item.suffix.lower() in IMAGE_SUFFIXES and not item.name.startswith(".")
        ),
        key=lambda item: natural_key(item.name),
    )


def natural_key(name: str) -> list[tuple[int, str]]:
    """Order names by the numbers in them."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def animation_header(path: Path) -> tuple[int, Fraction]:
    """Return the number of frames of a gif or webp and its mean rate.

    Only the frames themselves know how long they are shown, so all are gone through.

    Raises:
        VideoError: If it cannot be read.
    """
    num_frames, milliseconds = 0, 0
    with _readable(path), Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()  # webp knows the duration only then
            num_frames += 1
            milliseconds += frame.info.get("duration", 0)
    # No duration means "as fast as possible", which players (and FFmpeg) take as 10 a second.
    return num_frames, Fraction(1000 * num_frames, milliseconds or 100 * num_frames)


def animation_frames(path: Path) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """Yield the frames of a gif or webp, uint8 [H, W, 3], after the seconds at which they begin.

    Raises:
        VideoError: If it cannot be read.
    """
    milliseconds = 0
    with _readable(path), Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            pixels = to_rgb(np.asarray(frame.convert("RGBA")))
            yield milliseconds / 1000, pixels
            milliseconds += frame.info.get("duration", 0) or 100


def is_stack(path: Path) -> bool:
    """Whether a file is a tiff of several pages; one that cannot be read is not."""
    if path.suffix.lower() not in STACK_SUFFIXES:
        return False
    try:
        return num_pages(path) > 1
    except VideoError:
        return False


def num_pages(path: Path) -> int:
    """Count the pages of a tiff.

    Raises:
        VideoError: If it cannot be read.
    """
    with _readable(path), Image.open(path) as image:
        return getattr(image, "n_frames", 1)


def stack_frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Yield the pages of a tiff as frames, uint8 [H, W, 3].

    Raises:
        VideoError: If it cannot be read.
    """
    with _readable(path), Image.open(path) as image:
        for page in ImageSequence.Iterator(image):
            yield _to_frame(page)


def folder_images(folder: Path) -> list[Path]:
    """List the images of a folder that is a video.

    Raises:
        VideoError: If the folder has none.
    """
    files = image_files(folder)
    if not files:
        raise VideoError(f"{folder}: holds no images to take as frames")
    return files


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read one image as uint8 [H, W, 3].

    Raises:
        VideoError: If it is broken, or a tiff of several pages.
    """
    with _readable(path), Image.open(path) as image:
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            raise VideoError(
                f"{path}: has several pages, and lies among single ones; a video is either a "
                "folder of single pages or a file of several"
            )
        return _to_frame(ImageOps.exif_transpose(image))


def _to_frame(image: Image.Image) -> NDArray[np.uint8]:
    """Turn the pixels of an opened image into uint8 [H, W, 3]."""
    if image.mode == "F":
        raise VideoError(
            f"{getattr(image, 'filename', '')}: has float pixels, and where black and white are "
            "is not known; save 8 or 16 bits"
        )
    if image.mode == "I":  # how some versions of Pillow open 16-bit grey
        return to_rgb(np.asarray(image).clip(0, 65535).astype(np.uint16))
    if image.mode not in {"L", "RGB"} and not image.mode.startswith("I;16"):
        image = image.convert("RGBA")
    return to_rgb(np.asarray(image))


def to_rgb(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn grey [H, W], RGB or RGBA [H, W, c] of 8 or 16 bits into uint8 [H, W, 3].

    The full range of 16 bits is taken for black to white: 65535 becomes 255.
    """
    if pixels.dtype.itemsize == 2:
        pixels = ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=-1)
    return flatten_alpha(pixels) if pixels.shape[-1] == 4 else pixels


def flatten_alpha(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay [H, W, c + 1] with alpha last on white, as gif decoders do: [H, W, c]."""
    colour, alpha = pixels[..., :-1], pixels[..., -1:].astype(np.uint32)
    if alpha.min() == 255:
        return np.ascontiguousarray(colour)
    return ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what Pillow raises on a broken image into one sentence."""
    try:
        yield
    except BROKEN_IMAGE as error:
        said = isinstance(error, OSError | ValueError | SyntaxError)
        reason = getattr(error, "strerror", None) or (str(error) if said else "damaged data")
        raise VideoError(f"{path}: not a readable image ({' '.join(reason.split())})") from error
