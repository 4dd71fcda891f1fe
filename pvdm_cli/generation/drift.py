"""How long videos change from clip to clip: latents, colours, and the seams between clips.

A clip is what each step of the roll-out adds to a video, s - o frames where clips overlap by o.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli.errors import PvdmError
from pvdm_cli.files import write_json, write_text
from pvdm_cli.generation.pipeline import Clip
from pvdm_cli.report.drift import ALONG, ROWS, drift_picture
from pvdm_cli.video import pixels

CLIPS = 64  # length of the videos where none is asked for
BINS = 32  # of each colour's histogram
Frames = NDArray[np.uint8]  # [s, H, W, 3]
Row = dict[str, Any]


class Meter:
    """Measures the clips of a batch as they are written.

    Args:
        num_videos: Of the batch.
        overlap: Frames that a clip and the next one share.
    """

    def __init__(self, num_videos: int, overlap: int) -> None:
        self.rows: list[list[Row]] = [[] for _ in range(num_videos)]
        self._overlap = overlap
        self._first: list[NDArray[np.float64]] = []
        self._last: list[Frames] = []

    def __call__(self, clip: Clip) -> None:
        """Add a row to each video."""
        colours = [histogram(frames) for frames in clip.frames]
        self._first = self._first or colours
        for video, frames in enumerate(clip.frames):
            z0 = clip.z0[video].double()
            before = self._last[video : video + 1]
            psnr = neighbours(np.concatenate([*before, frames]))
            seams = self._overlap + 1 if before else 0
            self.rows[video].append(
                {
                    ALONG: len(self.rows[video]) + 1,
                    "latent_mean": float(z0.mean()),
                    "latent_std": float(z0.std()),
                    "colour_distance": distance(self._first[video], colours[video]),
                    "psnr_inside": _mean(psnr[seams:]),
                    "psnr_border": _mean(psnr[:seams]),
                }
            )
        self._last = [frames[-1:] for frames in clip.frames]


def histogram(frames: Frames) -> NDArray[np.float64]:
    """Share of pixels in each bin of red, green and blue: [3, BINS]."""
    counts = [
        np.bincount(frames[..., k].ravel() // (256 // BINS), minlength=BINS) for k in range(3)
    ]
    return np.stack(counts) / frames[..., 0].size


def distance(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Share of pixels whose colour would have to change: total variation, mean of the colours."""
    return float(np.abs(a - b).sum(1).mean() / 2)


def neighbours(frames: Frames) -> Tensor:
    """PSNR in dB of each frame with the one before it; frames uint8 [s, H, W, 3] -> [s - 1]."""
    x = pixels.to_float(torch.from_numpy(frames)).movedim(1, 0)  # [s, 3, H, W]
    return pixels.psnr(x[1:], x[:-1])


def _mean(values: Tensor) -> float | None:
    """Mean, None of nothing."""
    return float(values.mean()) if len(values) else None


def write_drift(out: Path, descriptions: Sequence[dict[str, Any]]) -> Path:
    """Write `drift.json` and `drift.svg`: the mean of all videos of a run, clip by clip.

    Args:
        out: Folder of the run.
        descriptions: Sidecars of its videos.

    Raises:
        PvdmError: If one of them was not measured when it was drawn.
    """
    for found in descriptions:
        if "drift" not in found:
            raise PvdmError(
                f"{out / found['file']} was drawn without --drift, which measures clips as they are "
                "drawn; choose another --out, or draw it anew with --overwrite"
            )
    rows: list[Row] = [
        {key: _mean_of([row[key] for row in of_videos]) for key in of_videos[0]}
        for of_videos in zip(*(found["drift"] for found in descriptions), strict=True)
    ]
    first = descriptions[0]
    content = {
        "videos": len(descriptions),
        "command": first["command"],
        "version": first["version"],
        "device": first["device"],
        "settings": first["settings"],
        "last_colour_distance": rows[-1]["colour_distance"],
        "latent_std_ratio": rows[-1]["latent_std"] / rows[0]["latent_std"],
        "psnr_inside": _mean_of([row["psnr_inside"] for row in rows]),
        "psnr_border": _mean_of([row["psnr_border"] for row in rows]),
        ROWS: rows,
    }
    write_json(out / "drift.json", content)
    write_text(out / "drift.svg", drift_picture(rows))
    return out / "drift.json"


def _mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of what is there; whole numbers stay whole."""
    there = [value for value in values if value is not None]
    if there and all(isinstance(value, int) for value in there):
        return there[0]
    return sum(there) / len(there) if there else None
