"""Clips that videos start from: of a real video, encoded, or of a latent cache."""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pvdm_cli.data.cache import Cache
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import DataError, VideoError
from pvdm_cli.model import Model
from pvdm_cli.progress import Reporter
from pvdm_cli.video import read

RATES_DIFFER = 1.05  # ratio of frame rates from which on it is said


class Start(NamedTuple):
    """A clip that videos start from."""

    z: Tensor  # [1, c, n], of the autoencoder
    digest: str  # sha256 of what it was read from: frames, or latents of a cache


def find_start(model: Model, text: str, option: str, reporter: Reporter, *, last: bool) -> Start:
    """Read the clip that an option names.

    Args:
        model: What encodes.
        text: A video file, a folder of frames, or CACHE#ROW.
        option: Like "--prefix", for messages.
        reporter: Told if the video is faster or slower than those the model learnt from.
        last: Take the last clip of a video, not its first.

    Raises:
        PvdmError: If there is no such clip, or the cache was made by another autoencoder.
    """
    folder, mark, row = text.rpartition("#")
    if mark and not Path(text).exists():
        return _of_cache(model, Path(folder), row, f"{option} {text}")
    return _of_video(model, Path(text), option, reporter, last=last)


def _of_video(model: Model, path: Path, option: str, reporter: Reporter, *, last: bool) -> Start:
    """Encode the first or the last clip of a video, by the reading policy of `pvdm encode`."""
    clip = model.config.clip
    count, stride = clip.frames, clip.frame_stride
    if (path / "manifest.json").is_file():
        raise DataError(f"{option} {path} is a latent cache: say which clip of it, as {path}#ROW")
    span = (count - 1) * stride + 1
    rate = read.probe(path).fps  # refuses what is no video
    length = read.count_frames(path)
    if length < span:
        at = f" at frame stride {stride}" if stride > 1 else ""
        raise VideoError(f"{option} {path}: only {length} frames; a clip needs {span}{at}")
    geometry = read.Geometry.of(clip)
    start = length - span if last else 0
    frames = read.read(path, geometry, stride=stride, start=start, count=count)
    if rate and model.fps and not 1 / RATES_DIFFER < rate / stride / model.fps < RATES_DIFFER:
        pace = "slower" if rate / stride > model.fps else "faster"
        reporter.say(
            f"{path}: {rate / stride:.3g} frames a second after the frame stride, where the model "
            f"learnt from {model.fps:.3g}: it goes on as if things moved {pace} than they do"
        )
    z = torch.from_numpy(encode_clips(model, frames[None]))
    return Start(z.to(model.device, torch.float32), hashlib.sha256(frames.tobytes()).hexdigest())


def _of_cache(model: Model, folder: Path, row: str, named: str) -> Start:
    """Take a clip of a latent cache."""
    if not row.isdecimal():
        raise DataError(f"{named}: neither a file nor CACHE#ROW, where ROW is a number from 0")
    cache = Cache.open(folder)
    if cache.manifest.fingerprint != model.fingerprint or cache.shape != model.config.latent:
        raise DataError(
            f"{named}: the cache was made by the autoencoder with fingerprint "
            f"{cache.manifest.fingerprint[:16]}, the model has {model.fingerprint[:16]}"
        )
    if int(row) >= len(cache):
        raise DataError(f"{named}: the cache has the rows 0 to {len(cache) - 1}")
    z = cache.read([int(row)])
    cache.close()
    digest = hashlib.sha256(np.ascontiguousarray(z.numpy()).tobytes()).hexdigest()
    return Start(z.to(model.device, torch.float32), digest)
