"""One shard file of a triplane latent cache: z [k, c, n] fp16 and index [k, 3], as safetensors.

Axes: k clips, c latent channels, n flat length.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from pvdm_cli import files
from pvdm_cli.config import LatentShape
from pvdm_cli.data.cache_format import MANIFEST, RESTORE, Fp16Loss, Rounding, Shard
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
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            head = handle.read(length) if length < size else b"{}"
            header = json.loads(head)
            told = header.get("__metadata__", {}).get("latents")
            if shard.latents and header and told != shard.latents:
                raise DataError(
                    f"{file} is not the shard that {MANIFEST} tells of, one of them is another "
                    "cache's: put the right one back, or run the same `pvdm encode` again"
                )
            if size != shard.bytes:
                raise DataError(f"{file} has {size} bytes instead of {shard.bytes}: {RESTORE}")
            expected = {
                "z": ["F16", [shard.clips, shape.c, shape.flat]],
                "index": ["I64", [shard.clips, 3]],
            }
            found = {k: [v["dtype"], v["shape"]] for k, v in header.items() if k != "__metadata__"}
            if found != expected:
                raise DataError(f"{file} holds {found} instead of {expected}: {RESTORE}")
            handle.seek(8 + length + header["index"]["data_offsets"][0])
            rows = handle.read(shard.clips * 24)
        if shard.index not in (None, hashlib.sha256(head + rows).hexdigest()):
            raise DataError(f"{file} has a damaged index: {RESTORE}")
        index = np.frombuffer(rows, "<i8").reshape(-1, 3)
    except FileNotFoundError:
        raise DataError(f"{file} is missing: {RESTORE}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{file}: not readable ({error}): {RESTORE}") from None
    return Layout(8 + length + header["z"]["data_offsets"][0], index.astype(np.int64))


def require_hash(file: Path, shard: Shard) -> None:
    """Check every byte of a shard.

    Raises:
        DataError: If one has changed.
    """
    try:
        found = files.sha256(file)
    except OSError as error:
        raise DataError(f"{file}: not readable ({error.strerror}): {RESTORE}") from None
    _require_same(file, found, shard)


def read_whole(file: Path, shard: Shard, layout: Layout, shape: LatentShape) -> Latents:
    """Read all latents of a shard, checking every byte of the file.

    Raises:
        DataError: If it cannot be read, or a byte has changed.
    """
    try:
        content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file}: not readable ({error.strerror}): {RESTORE}") from None
    _require_same(file, hashlib.sha256(content.data).hexdigest(), shard)
    size = (shard.clips, shape.c, shape.flat)
    return content[layout.z_offset :].view("<f2")[: np.prod(size)].reshape(size)


def _require_same(file: Path, found: str, shard: Shard) -> None:
    """Compare the hash of a file with the one that the manifest names."""
    if found != shard.sha256:
        raise DataError(f"{file} is damaged: its content has changed (sha256): {RESTORE}")


def write_shard(
    file: Path,
    name: str,
    index: Rows,
    z: Latents,
    shape: LatentShape,
    rounding: Rounding | None = None,
) -> Shard:
    """Write a shard to `file` and describe it under the name it will be visible by."""
    # The header repeats the hash of z, so that another cache's manifest is noticed without
    # reading z.
    latents = hashlib.sha256(np.ascontiguousarray(z).data).hexdigest()
    safetensors.numpy.save_file({"z": z, "index": index}, file, {"latents": latents})
    with file.open("rb") as handle:
        head = handle.read(int.from_bytes(handle.read(8), "little"))
    file.chmod(0o644)  # the writer leaves it readable by its owner alone
    sums, squares = _plane_sums(z, shape)
    return Shard(
        name=name,
        clips=len(z),
        bytes=file.stat().st_size,
        sha256=files.sha256(file),
        latents=latents,
        index=hashlib.sha256(head + index.astype("<i8").tobytes()).hexdigest(),
        rounding=rounding,
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


def joined_rounding(parts: Sequence[Rounding | None]) -> Rounding | None:
    """Add up what fp16 has cost; None if that is not known of a part."""
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return None
    return Rounding(max(part.largest for part in known), sum(part.squares for part in known))


def fp16_loss(shards: list[Shard], shape: LatentShape) -> Fp16Loss | None:
    """Say what fp16 has cost all clips of the shards, where that was measured."""
    total = joined_rounding([shard.rounding for shard in shards])
    if total is None:
        return None
    numbers = sum(shard.clips for shard in shards) * shape.c * shape.flat
    signal = float(np.sum([shard.squares for shard in shards]))
    rms = (total.squares / numbers) ** 0.5
    relative = (total.squares / signal) ** 0.5 if signal else 0.0
    return Fp16Loss(max=total.largest, rms=rms, relative=relative)


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
