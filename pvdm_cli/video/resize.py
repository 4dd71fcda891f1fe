"""Crop to the target's aspect ratio (or pad to it), then resize: frames uint8 [H, W, 3]."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pvdm_cli.config import ClipConfig
from pvdm_cli.errors import ConfigError

Frame = NDArray[np.uint8]  # [H, W, 3]


class Geometry(NamedTuple):
    """The size frames are brought to, and how."""

    height: int
    width: int
    resize: str = "area"
    antialias: bool = True
    place: float = 0.5  # of the crop, from the top or left (0) to the bottom or right (1)
    letterbox: bool = False  # show all of the frame, on black

    @classmethod
    def of(cls, clip: ClipConfig) -> "Geometry":
        """Take the geometry out of a clip's configuration.

        Raises:
            ConfigError: If antialias is off for a filter that has no such variant.
        """
        if not clip.antialias and clip.resize != "bilinear":
            raise ConfigError(
                f"clip.antialias=false goes with clip.resize=bilinear only, not {clip.resize}"
            )
        return cls(clip.height, clip.width, clip.resize, clip.antialias)


class Box(NamedTuple):
    """A rectangle inside a frame."""

    top: int
    left: int
    height: int
    width: int


def crop(height: int, width: int, geometry: Geometry) -> Box:
    """Find the largest box that has the target's aspect ratio (rounded to pixels)."""
    if width * geometry.height > height * geometry.width:
        cropped = max(1, round(height * geometry.width / geometry.height))
        return Box(0, int((width - cropped) * geometry.place), height, cropped)
    cropped = max(1, round(width * geometry.height / geometry.width))
    return Box(int((height - cropped) * geometry.place), 0, cropped, width)


def inner(height: int, width: int, geometry: Geometry) -> Box:
    """Find where in the target the whole of a frame goes, its aspect ratio kept."""
    scale = min(geometry.height / height, geometry.width / width)
    rows = min(geometry.height, max(1, round(height * scale)))
    columns = min(geometry.width, max(1, round(width * scale)))
    return Box((geometry.height - rows) // 2, (geometry.width - columns) // 2, rows, columns)


def fit(frame: Frame, geometry: Geometry) -> Frame:
    """Crop (or pad) and resize one frame to [geometry.height, geometry.width, 3]."""
    if geometry.letterbox:
        box = inner(frame.shape[0], frame.shape[1], geometry)
        shown = _resized(frame, geometry._replace(height=box.height, width=box.width))
        sheet = np.zeros((geometry.height, geometry.width, 3), np.uint8)
        sheet[box.top : box.top + box.height, box.left : box.left + box.width] = shown
        return sheet
    box = crop(frame.shape[0], frame.shape[1], geometry)
    cut = frame[box.top : box.top + box.height, box.left : box.left + box.width]
    return _resized(cut, geometry)


def _resized(frame: Frame, geometry: Geometry) -> Frame:
    """Resize one frame, which may be a view of another, if need be."""
    cut = np.require(frame, requirements=["C", "W"])  # torch takes no read-only arrays
    if cut.shape[:2] == (geometry.height, geometry.width):
        return cut
    return RESIZERS[geometry.resize](cut, geometry)


def _bilinear(frame: Frame, geometry: Geometry) -> Frame:
    """Resize with torch; without antialias this is what the published implementation does."""
    x = torch.from_numpy(frame).permute(2, 0, 1)[None]  # uint8 stays: within 1 level of float
    size = (geometry.height, geometry.width)
    y = F.interpolate(x, size, mode="bilinear", align_corners=False, antialias=geometry.antialias)
    return y[0].permute(1, 2, 0).contiguous().numpy()


def _lanczos(frame: Frame, geometry: Geometry) -> Frame:
    """Resize with Pillow's Lanczos filter."""
    size = (geometry.width, geometry.height)
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)).copy()


def _area(frame: Frame, geometry: Geometry) -> Frame:
    """Give each new pixel the mean of the area it covers; an axis that grows is interpolated."""
    height, width, _ = frame.shape
    rows = torch.from_numpy(frame).view(height, width * 3).float()
    # Both passes run over the first axis, where a row is one long contiguous vector.
    rows = _taps(height, geometry.height).apply(rows).view(-1, width, 3)
    columns = rows.transpose(0, 1).reshape(width, -1)
    columns = _taps(width, geometry.width).apply(columns)
    y = columns.add_(0.5).to(torch.uint8).view(geometry.width, geometry.height, 3)
    return y.transpose(0, 1).contiguous().numpy()


class Taps(NamedTuple):
    """A resampling of one axis: new row j is the sum over k of weights[j, k] * rows[source[j, k]]."""

    source: Tensor  # int64 [new size, k]
    weights: Tensor  # float32 [new size, k]

    def apply(self, rows: Tensor) -> Tensor:
        """Resample the first axis of float32 [old size, n]."""
        # torch's quickest weighted sum of few rows: half the time of gathering tap by tap.
        return F.embedding_bag(self.source, rows, mode="sum", per_sample_weights=self.weights)


@lru_cache(maxsize=64)
def _taps(old: int, new: int) -> Taps:
    """Weights for resampling an axis: exact shares of area if it shrinks, linear if it grows."""
    if new <= old:
        low = np.arange(new, dtype=np.int64)[:, None] * old  # edges in 1/new of an old pixel
        first = low // new
        count = int(np.max((low + old + new - 1) // new - first))
        source = first + np.arange(count)
        overlap = np.minimum(low + old, (source + 1) * new) - np.maximum(low, source * new)
        weights = np.clip(overlap, 0, None) / old
    else:
        centre = np.clip((np.arange(new)[:, None] + 0.5) * old / new - 0.5, 0, old - 1)
        source = np.floor(centre).astype(np.int64) + np.arange(2)
        weights = 1 - np.abs(centre - source)
    source = np.minimum(source, old - 1)
    return Taps(torch.from_numpy(source), torch.from_numpy(weights.astype(np.float32)))


RESIZERS: dict[str, Callable[[Frame, Geometry], Frame]] = {
    "bilinear": _bilinear,
    "lanczos": _lanczos,
    "area": _area,
}
