"""One shard file of a triplane latent cache: z [k, c, n] fp16 and index [k, 3], as safetensors.

Axes: k clips, c latent channels, n flat length.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pvdm_cli import files
from pvdm_cli.config import LatentShape
from pvdm_cli.data.cache_format import Shard
from pvdm_cli.errors import DataError

Rows = NDArray[np.int64]  # [k, 3]: video, first frame, label
Latents = NDArray[np.float16]  # [k, c, n]
Moments = NDArray[np.float64]  # [3, c]: planes hw, sw, sh


class Layout(NamedTuple):
    """Where a shard's latents lie in its file, and its index."""

    z_offset: int  # bytes
    rows: Rows


def read_layout(file: Path, shard: Shard, shape: LatentShape) -> Layout:
    """Check a shard against its record and read its index, not its latents.

    Raises:
        DataError: If the file is missing, has another size, or holds other tensors.
    """
    again = "run the same `pvdm encode` again to restore it"
    try:
        size = file.stat().st_size
        if size != shard.bytes:
            raise DataError(f"{file} has {size} bytes instead of {shard.bytes}: {again}")
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            header = json.loads(handle.read(length)) if length < size else {}
            expected = {
                "z": ["F16", [shard.clips, shape.c, shape.flat]],
                "index": ["I64", [shard.clips, 3]],
            }
            found = {k: [v["dtype"], v["shape"]] for k, v in header.items() if k != "__metadata__"}
            if found != expected:
                raise DataError(f"{file} holds {found} instead of {expected}: {again}")
            handle.seek(8 + length + header["index"]["data_offsets"][0])
            index = np.frombuffer(handle.read(shard.clips * 24), "<i8").reshape(-1, 3)
    except FileNotFoundError:
        raise DataError(f"{file} is missing: {again}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not readable ({error}): {again}") from None
    return Layout(8 + length + header["z"]["data_offsets"][0], index.astype(np.int64))


def write_shard(file: Path, name: str, index: Rows, z: Latents, shape: LatentShape) -> Shard:
    """Write a shard to `file` and describe it under the name it will be visible by."""
    safetensors.numpy.save_file({"z": z, "index": index}, file)
    file.chmod(0o644)  # the writer leaves it readable by its owner alone
    sums, squares = _plane_sums(z, shape)
    return Shard(
        name=name,
        clips=len(z),
        bytes=file.stat().st_size,
        sha256=files.sha256(file),
        sums=sums.tolist(),
        squares=squares.tolist(),
    )


def read_latents(file: Path) -> Latents:
    """Read all latents of a shard."""
    return safetensors.numpy.load_file(file)["z"]


def moments(shards: list[Shard], shape: LatentShape) -> tuple[Moments, Moments]:
    """Mean and standard deviation [3, c] of all clips of the shards, from their sums."""
    clips = sum(shard.clips for shard in shards)
    if not clips:
        return np.zeros((0, shape.c)), np.zeros((0, shape.c))
    sums = np.sum([shard.sums for shard in shards], axis=0)
    squares = np.sum([shard.squares for shard in shards], axis=0)
    return _moments(sums, squares, clips, shape)


def plane_moments(z: Latents, shape: LatentShape) -> tuple[Moments, Moments]:
    """Mean and standard deviation [3, c] of latents [k, c, n]."""
    return _moments(*_plane_sums(z, shape), len(z), shape)


def _moments(
    sums: Moments, squares: Moments, clips: int, shape: LatentShape
) -> tuple[Moments, Moments]:
    """Turn sums over so many clips into mean and standard deviation."""
    count = clips * np.array(shape.plane_lengths, dtype=np.float64)[:, None]
    mean = sums / count
    return mean, np.sqrt((squares / count - mean**2).clip(min=0))


def _plane_sums(z: Latents, shape: LatentShape) -> tuple[Moments, Moments]:
    """Sum z and its square over clips and positions, in float64: [3, c] each."""
    sums, squares = np.zeros((2, 3, shape.c))
    bounds = np.cumsum(shape.plane_lengths)[:-1]
    for start in range(0, len(z), 256):  # so that the float64 copy stays small
        planes = np.split(z[start : start + 256].astype(np.float64), bounds, axis=2)
        sums += [plane.sum(axis=(0, 2)) for plane in planes]
        squares += [np.square(plane).sum(axis=(0, 2)) for plane in planes]
    return sums, squares
