"""Encoding as users do, by the command, in one process or several; and whether caches agree."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import Shard
from pvdm_cli.data.cache_journal import facts
from pvdm_cli.data.cache_shard import read_latents, require_hash
from pvdm_cli.errors import DataError

Rows = dict[tuple[str, int, int], NDArray[np.float16]]  # by path, first frame, label


def encode_command(videos: Path, model: str | Path, out: Path, *options: object) -> list[str]:
    """The command; one thread for each process, as several share the machine."""
    fixed = ["--autoencoder", model, "--out", out, "--device", "cpu", "--json"]
    return [sys.executable, "-m", "pvdm_cli", "encode", *map(str, [videos, *fixed, *options])]


def start(command: list[str], **environment: str) -> "subprocess.Popen[str]":
    """Start the command, in a process group of its own."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        start_new_session=True,
    )


def finish(process: "subprocess.Popen[str]", seconds: float = 120) -> dict[str, Any]:
    """Wait for the end of a command that is to succeed; return what it has printed."""
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def rows_of(path: Path) -> Rows:
    """All rows of a complete cache."""
    cache = Cache.open(path)
    names = {row.video: row.path for row in cache.videos}
    z = cache.read(range(len(cache))).numpy()
    index = cache.index.tolist()
    return {(names[video], first, label): z[k] for k, (video, first, label) in enumerate(index)}


def saved_rows(path: Path, names: dict[int, str]) -> Rows:
    """The rows of all shards of an unfinished cache that verify."""
    found: Rows = {}
    for fact in facts(path):
        if "shard" not in fact:
            continue
        shard = Shard.model_validate(fact["shard"])
        file = path / shard.name
        try:
            require_hash(file, shard)
        except DataError:  # recorded, but not renamed before the kill
            continue
        index = load_file(file)["index"].tolist()
        z = read_latents(file)
        found |= {(names[v], first, label): z[k] for k, (v, first, label) in enumerate(index)}
    return found


def agree(ours: Rows, theirs: Rows, *, all_of_them: bool = True) -> None:
    """Check that rows are the same for the same videos, within 1e-3."""
    if all_of_them:
        assert sorted(ours) == sorted(theirs)
    worst = max((differ(ours[key], theirs[key]) for key in ours), default=0.0)
    assert worst <= 1e-3, worst


def differ(a: NDArray[np.float16], b: NDArray[np.float16]) -> float:
    """The largest difference."""
    return float(np.abs(a.astype(np.float32) - b.astype(np.float32)).max())


def same_statistics(paths: Iterable[Path]) -> None:
    """Check that the manifests agree in counts, mean and standard deviation."""
    manifests = [Cache.open(path).manifest for path in paths]
    for other in manifests[1:]:
        for name in ("videos", "clips", "skipped", "fps", "labels", "fingerprint"):
            assert getattr(other, name) == getattr(manifests[0], name), name
        for name in ("mean", "std"):
            ours, theirs = getattr(other, name), getattr(manifests[0], name)
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), atol=1e-4, rtol=0)
