"""Run folders written by hand: what a report reads, without training."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from pvdm_cli.config import dump_yaml, load_config
from pvdm_cli.video.write import write_video

RATES = {"steps_per_second": 2.0, "clips_per_second": 8.0, "data_wait": 0.02}


def lines(steps: Iterable[int], **more: float) -> list[dict[str, Any]]:
    """Lines of a loss that falls, each with the rest."""
    return [
        {"step": step, "loss": 10 / step, "grad_norm": 1 / step, "lr": 1e-4, **RATES, **more}
        for step in steps
    ]


def write_run(
    path: Path,
    metrics: Iterable[dict[str, Any]] = (),
    *,
    preset: str = "demo/autoencoder",
    overrides: Iterable[str] = ("training.steps=100",),
    samples: Iterable[int] = (),
    cut: str = "",
) -> Path:
    """Write a run folder: settings, metrics that end in `cut`, sample videos of some steps."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(dump_yaml(load_config(preset, overrides)))
    text = "".join(f"{json.dumps(line)}\n" for line in metrics)
    (path / "metrics.jsonl").write_text(text + cut)
    for step in samples:
        frames = np.random.default_rng(step).integers(0, 255, (12, 32, 48, 3), dtype=np.uint8)
        write_video(path / "samples" / f"step-{step:08d}.mp4", frames, fps=8)
    return path


def checkpoint(run: Path, step: int, **provenance: object) -> None:
    """Add a checkpoint, as far as a report reads it."""
    folder = run / "checkpoints" / f"step-{step:08d}" / "model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps({"provenance": provenance}))
    (run / "latest").write_text(f"step-{step:08d}\n")
