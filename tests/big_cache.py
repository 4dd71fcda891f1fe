"""A finished cache of as many clips as one likes, written in seconds: true files, drawn latents.

python tests/big_cache.py open    # a cache of 1,000,000 clips: seconds and MB to open it
python tests/big_cache.py read    # clips of 16 KiB: pairs a second on one thread, beside bare reads
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from pvdm_cli import files
from pvdm_cli.config import ClipConfig
from pvdm_cli.data.cache import Cache, Pairs
from pvdm_cli.data.cache_format import MANIFEST, VIDEOS, Identity, Manifest, VideoRow, to_lines
from pvdm_cli.data.cache_shard import moments, write_shard
from pvdm_cli.runtime import peak_memory


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


def opening(path: Path) -> dict[str, float]:
    """CPU seconds and growth of memory [MB] while a cache is opened and its pairs are found.

    In a process that has done nothing else: the peak of memory never falls.
    """
    cpu = torch.device("cpu")
    before, began = peak_memory(cpu), time.process_time()
    cache = Cache.open(path)
    seconds = time.process_time() - began
    pairs = cache.pairs()
    after = peak_memory(cpu)
    assert before is not None
    assert after is not None
    found = {"seconds": seconds, "MB": (after - before) / 1e6}
    return {**found, "clips": len(cache), "pairs": len(pairs.first)}


def rate(read: Callable[[torch.Tensor], object], pairs: Pairs, batch: int, seconds: float) -> float:
    """Random pairs of consecutive clips that a thread reads in a CPU second, so many at a time."""
    draw = torch.Generator().manual_seed(0)
    began, count = time.thread_time(), 0
    while time.thread_time() - began < seconds:
        some = torch.randint(len(pairs.first), (batch,), generator=draw)
        read(pairs.first[some])
        read(pairs.next[some])
        count += batch
    return count / (time.thread_time() - began)


def bare(cache: Cache) -> Callable[[torch.Tensor], object]:
    """Read rows by nothing but `os.pread`: as fast as Python can."""
    size = cache.shape.c * cache.shape.flat * 2
    handles = [os.open(cache.path / shard.name, os.O_RDONLY) for shard in cache.manifest.shards]

    def read(rows: torch.Tensor) -> None:
        k = rows.numpy()
        places = zip(cache._shard[k].tolist(), cache._offset[k].tolist(), strict=True)
        for shard, offset in places:
            os.pread(handles[shard], size, offset)

    return read


def rates(path: Path, batch: int, seconds: float = 1.0) -> dict[str, float]:
    """Pairs a second of each way of reading, from a warm cache, on one thread."""
    torch.set_num_threads(1)
    on_disk, in_memory = Cache.open(path), Cache.open(path, in_memory=True)
    pairs = on_disk.pairs()
    ways = {"bare pread": bare(on_disk), "positioned": on_disk.read, "in memory": in_memory.read}
    return {name: rate(read, pairs, batch, seconds) for name, read in ways.items()}


def main() -> None:
    if sys.argv[1:2] == ["open"] and len(sys.argv) == 3:
        sys.stdout.write(json.dumps(opening(Path(sys.argv[2]))) + "\n")
        return
    with TemporaryDirectory() as folder:
        path = Path(folder) / "cache"
        if sys.argv[1:] == ["open"]:
            write_big_cache(path, videos=100_000, clips=10)
            subprocess.run([sys.executable, __file__, "open", str(path)], check=True)
        else:
            write_big_cache(path, videos=2000, clips=10, side=32, frames=16, channels=4)
            for batch in (1, 64):
                sys.stdout.write(json.dumps({"batch": batch, **rates(path, batch)}) + "\n")


if __name__ == "__main__":
    main()
