"""A finished cache of as many clips as one likes, written in seconds: true files, drawn latents."""

from pathlib import Path

import numpy as np

from pvdm_cli import files
from pvdm_cli.config import ClipConfig
from pvdm_cli.data.cache_format import MANIFEST, VIDEOS, Identity, Manifest, VideoRow, to_lines
from pvdm_cli.data.cache_shard import moments, write_shard


def write_big_cache(
    path: Path, *, videos: int, clips: int, side: int = 1, frames: int = 1, channels: int = 1
) -> Path:
    """Write a cache of so many videos with so many touching clips each.

    The latent of a clip is [channels, side**2 + 2 * side * frames] numbers.
    """
    path.mkdir(parents=True)
    clip = ClipConfig(frames=frames, height=8 * side, width=8 * side)
    identity = Identity(
        fingerprint="a" * 64, clip=clip, patch=8, channels=channels, window_stride=frames
    )
    rng = np.random.default_rng(0)
    shape, shards = identity.shape, []
    per_shard = max(1, (64 << 20) // (shape.c * shape.flat * 2 * clips))  # videos in 64 MiB
    for number, first in enumerate(range(0, videos, per_shard)):
        chosen = np.arange(first, min(first + per_shard, videos))
        index = np.empty((len(chosen), clips, 3), np.int64)
        index[..., 0] = chosen[:, None]
        index[..., 1] = frames * np.arange(clips)
        index[..., 2] = -1
        size = (len(chosen) * clips, shape.c, shape.flat)
        z = rng.integers(0x2E00, 0x3400, size, np.uint16).view(np.float16)  # 0.1 to 0.25
        name = f"shard-000-{number:05d}.safetensors"
        shards.append(write_shard(path / name, name, index.reshape(-1, 3), z, shape))
    rows = [VideoRow(n, f"class/v_{n:07d}.mp4", 1, 1, clips * frames, 25.0) for n in range(videos)]
    files.write_text(path / VIDEOS, to_lines(rows))
    mean, std = moments(shards, shape)
    manifest = Manifest(
        **identity.model_dump(),
        complete=True,
        fps=25.0,
        mean=mean.tolist(),
        std=std.tolist(),
        videos=videos,
        clips=videos * clips,
        shards=tuple(shards),
    )
    files.write_json(path / MANIFEST, manifest.model_dump(mode="json"))
    return path
