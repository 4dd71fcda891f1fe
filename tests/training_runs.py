"""Tiny training runs of both stages on a few skies, and everything they leave on disk."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pvdm_cli import api
from pvdm_cli.progress import SILENT, Reporter, Silent
from pvdm_cli.training.loop import TrainResult
from pvdm_cli.video.read import read
from pvdm_cli.video.synthetic import write_skies

NETWORKS: dict[str, Any] = {
    "clip": {"frames": 8, "height": 32, "width": 16},
    "autoencoder": {
        "patch": 8,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "head_dim": 8,
        "latent_channels": 4,
        "projection_depth": 1,
        "projection_heads": 2,
        "projection_mlp": 16,
    },
}
TRAINING = {
    "steps": 12,
    "batch_size": 2,
    "lr": 1e-2,
    "warmup_steps": 2,
    "grad_clip": 1,
    "ema_decay": 0.9,
    "ema_every": 2,
    "log_every": 2,
    "validate_every": 4,
    "validation_clips": 2,
    "sample_every": 6,
    "checkpoint_every": 5,
}
PRESETS: dict[str, dict[str, Any]] = {
    "autoencoder": {
        "stage": "autoencoder",
        **NETWORKS,
        "loss": {"l1": 1, "l2": 0},
        "training": TRAINING,
        "data": {"holdout": 0.3},
    },
    "diffusion": {
        "stage": "diffusion",
        **NETWORKS,
        "denoiser": {
            "base_channels": 32,
            "channel_multipliers": [1],
            "num_res_blocks": 1,
            "attention_downsamplings": [1],
            "num_heads": 2,
            "positions": True,
            "normalise": True,
        },
        # Few and noisy timesteps: quick to sample, and there is much that can be learnt at once.
        "diffusion": {
            "num_timesteps": 6,
            "beta_start": 0.1,
            "beta_end": 0.6,
            "objective": "eps",
            "prefix_prob": 0.5,
            "prefix_noise": 0.3,
        },
        "training": TRAINING,
        "data": {"holdout": 0.3},
    },
}


class Place(NamedTuple):
    """What both stages need: presets, videos, and a cache with the model that made it."""

    root: Path

    @property
    def videos(self) -> Path:
        return self.root / "videos"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def first_stage(self) -> Path:
        return self.root / "first"

    def preset(self, stage: str) -> str:
        return str(self.root / f"{stage}.yaml")

    def inputs(self, stage: str) -> dict[str, Path]:
        """What a stage learns from."""
        return {"data": self.videos} if stage == "autoencoder" else {"cache": self.cache}

    def train(
        self, stage: str, out: Path, *overrides: str, reporter: Reporter = SILENT, **options: Any
    ) -> TrainResult:
        """Train on the CPU."""
        given = {**self.inputs(stage), "device": "cpu", **options}
        return api.train(self.preset(stage), out, overrides=overrides, reporter=reporter, **given)

    def command(self, stage: str, out: Path, *overrides: str) -> list[str]:
        """Words of the same run for `pvdm`."""
        ((option, path),) = self.inputs(stage).items()
        words = ["train", self.preset(stage), f"--{option}", str(path), "--out", str(out)]
        return [*words, *overrides, "--device", "cpu"]


def prepare(root: Path) -> Place:
    """Write presets, seven skies of 20 frames, a first-stage run and the cache it makes."""
    place = Place(root)
    for stage, values in PRESETS.items():
        Path(place.preset(stage)).write_text(yaml.safe_dump(values, sort_keys=False))
    write_skies(place.videos, 7, frames=20, height=32, width=16)
    place.train("autoencoder", place.first_stage)
    api.encode(place.videos, place.cache, autoencoder=str(place.first_stage), device="cpu")
    return place


def contents(run: Path, *, without: Sequence[str] = ()) -> dict[str, Any]:
    """All files of a run by name, metrics without rates; the lock is no content, nor are starts.

    Of a video only the size counts: x264 reads past the edge of small pictures (its mbtree), so
    equal pictures may become different files.
    """
    found: dict[str, Any] = {}
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_file() and name not in {".lock", "starts.jsonl", *without}:
            found[name] = read(path).shape if path.suffix == ".mp4" else path.read_bytes()
    if "metrics.jsonl" in found:
        found["metrics.jsonl"] = metrics(run)
    return found


def metrics(run: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl` without what depends on the machine."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    speed = {"steps_per_second", "clips_per_second", "data_wait", "peak_memory_gb"}
    speed |= {"tflops", "flop_utilisation"}
    return [{k: v for k, v in line.items() if k not in speed} for line in lines]


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of the files that are not equal, or not on both sides."""
    return sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))


class Heard(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def stop_after(steps: int) -> Callable[[], bool]:
    """Ask to stop once so many steps are done."""
    count = itertools.count(1)
    return lambda: next(count) >= steps


def series(run: Path, name: str) -> list[float]:
    return [line[name] for line in metrics(run) if name in line]
