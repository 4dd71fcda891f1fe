"""Latent cache -> videos.

Axes: b clips of a batch, s frames, H and W pixels, c latent channels, n flat length.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli import files
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import VideoRow
from pvdm_cli.errors import DataError, ModelError
from pvdm_cli.latents import unflatten
from pvdm_cli.model import Model, load_model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video import pixels, write


@dataclass(frozen=True)
class DecodeResult:
    """The videos written."""

    out: Path
    files: list[Path]
    frames: int
    fps: float
    seconds: float


def decode_cache(
    model: Model,
    cache: Cache,
    out: Path,
    *,
    format: str = "mp4",
    num: int | None = None,
    fps: float | None = None,
    batch_size: int = 8,
    precision: str = "fp32",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> DecodeResult:
    """Turn the cached clips of each video back into a video file.

    Clips that touch are joined; of overlapping ones the repeated frames are dropped.

    Args:
        model: The model whose autoencoder made the cache.
        cache: The cache.
        out: Folder of the videos, named like the sources.
        format: mp4 | gif | webp | npz | png (a folder of frames).
        num: Only the first so many videos.
        fps: Frame rate; None takes the cache's.
        batch_size: Clips per forward pass.
        precision: fp32 | bf16 | fp16 arithmetic.
        overwrite: Replace videos that are there already.
        reporter: Told about progress.

    Raises:
        DataError: If the model is another one, or a video is there already.
    """
    began = time.monotonic()
    manifest = cache.manifest
    require_maker(cache, model)
    rate = fps or manifest.fps
    if rate is None:
        raise DataError(f"cache {cache.path} knows no frame rate (frames, not video): give --fps")
    rows = [row for row in cache.videos if len(cache.rows_of(row.video))][:num]
    targets = _targets(rows, out, format)
    present = [path for path in targets if path.exists()]
    if present and not overwrite:
        raise DataError(f"{present[0]} is there already; use --overwrite or another --out")
    reporter.start("decoding", total=len(rows), unit="video")
    frames = 0
    for row, path in zip(rows, targets, strict=True):
        files.make_folder(path.parent)
        clip = manifest.clip
        with write.open_writer(
            path, fps=rate, height=clip.height, width=clip.width, format=format
        ) as writer:
            for part in _joined(model, cache, row.video, batch_size, precision):
                writer.write(part)
                frames += len(part)
        reporter.advance(1, frames=frames)
    reporter.done()
    return DecodeResult(out, targets, frames, rate, time.monotonic() - began)


def load_maker(cache: Cache, autoencoder: str | None = None, device: str = "auto") -> Model:
    """Load the model that made a cache.

    Args:
        cache: The cache.
        autoencoder: Where it is; None: where the manifest says.
        device: Where it shall run.

    Raises:
        DataError: If the manifest does not say, or the model is another one.
        ModelError: If it is not there.
    """
    named = autoencoder or cache.manifest.autoencoder
    if named is None:
        raise DataError(f"cache {cache.path} does not say which model made it: give --autoencoder")
    try:
        model = load_model(named, device)
    except ModelError as error:
        if autoencoder:
            raise
        raise ModelError(
            f"{error}; it made {cache.path}: say where it is by --autoencoder"
        ) from error
    require_maker(cache, model)
    return model


def require_maker(cache: Cache, model: Model) -> None:
    """Refuse a cache of another autoencoder.

    Raises:
        DataError: Naming both fingerprints.
    """
    if cache.manifest.fingerprint != model.fingerprint:
        raise DataError(
            f"cache {cache.path} was made by the autoencoder with fingerprint "
            f"{cache.manifest.fingerprint[:16]}, not by the given one ({model.fingerprint[:16]}): "
            "name the right one with --autoencoder, or encode again"
        )


def cover(firsts: Sequence[int], span: int) -> list[tuple[int, int]]:
    """Choose as few clips as possible that show every frame the cached ones show.

    Args:
        firsts: Starts of the cached clips, rising.
        span: Length of a clip, in the same unit.

    Returns:
        Position in `firsts` and number of leading frames to drop, for each chosen clip.
    """
    chosen: list[tuple[int, int]] = []
    end = 0
    for k, first in enumerate(firsts):
        following = firsts[k + 1] if k + 1 < len(firsts) else None
        if following is None or following > end:  # no later clip starts early enough
            chosen.append((k, max(0, end - first)))
            end = first + span
    return chosen


def _joined(
    model: Model, cache: Cache, video: int, batch_size: int, precision: str
) -> Iterator[NDArray[np.uint8]]:
    """Decode the clips of one video, batch by batch, into runs of frames [s, H, W, 3]."""
    rows = cache.rows_of(video)
    stride = cache.manifest.clip.frame_stride
    firsts = (cache.index[rows.start : rows.stop, 1] // stride).tolist()
    chosen = cover(firsts, cache.manifest.clip.frames)
    for start in range(0, len(chosen), batch_size):
        part = chosen[start : start + batch_size]
        clips = decode_clips(model, cache.read([rows[k] for k, _ in part]), precision)
        for clip, (_, repeated) in zip(clips, part, strict=True):
            yield clip[repeated:]


def _targets(rows: Sequence[VideoRow], out: Path, format: str) -> list[Path]:
    """Name the files: like the sources, keeping their suffix only where two would be equal."""
    stems = Counter(_stem(row.path) for row in rows)
    suffix = "" if format == "png" else f".{format}"
    targets = []
    for row in rows:
        stem = row.path if stems[_stem(row.path)] > 1 else _stem(row.path)
        targets.append(out / f"{stem}{suffix}")
    return targets


def _stem(name: str) -> str:
    """Name of a video without the suffix of its file; what follows it (#12-20s) stays."""
    file, mark, piece = name.partition("#")
    return str(Path(file).with_suffix("")) + mark + piece


def decode_clips(model: Model, z_flat: Tensor, precision: str = "fp32") -> NDArray[np.uint8]:
    """Decode flat latents [b, c, n] to clips uint8 [b, s, H, W, 3]."""
    with torch.inference_mode(), model.arithmetic(precision):
        planes = unflatten(z_flat.to(model.device, torch.float32), model.config.latent)
        return pixels.to_uint8(model.autoencoder.decode(planes)).cpu().numpy()
