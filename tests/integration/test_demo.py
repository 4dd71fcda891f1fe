"""The shipped demo model is good, and `pvdm demo` goes the whole way in time (slow)."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pvdm_cli import api
from pvdm_cli.model import DEMO
from pvdm_cli.training.autoencoder import psnr
from pvdm_cli.video.pixels import to_float
from pvdm_cli.video.read import read
from pvdm_cli.video.synthetic import Sky

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DEMO / "model.json").is_file(), reason="no demo model shipped"),
]
HELD_OUT = range(500_000, 500_032)  # seeds no model was trained on


def neighbour_difference(videos: NDArray[np.uint8]) -> float:
    """Mean absolute difference between neighbouring frames, in grey levels."""
    return float(np.abs(np.diff(videos.astype(np.int16), axis=1)).mean())


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.uint8]:
    out = tmp_path_factory.mktemp("samples")
    result = api.sample("demo", out, frames=128, num=4, format="npz", batch_size=4)
    return np.stack([np.load(path)["frames"] for path in result.videos])


def test_the_shipped_autoencoder_reconstructs_unseen_skies() -> None:
    model = api.load_model("demo")
    clips = torch.from_numpy(np.stack([np.stack(list(Sky(s).frames(16))) for s in HELD_OUT]))
    x = to_float(clips)
    with torch.inference_mode():
        ours = float(psnr(model.autoencoder(x), x).mean())
    still = float(psnr(x.mean(2, keepdim=True).expand_as(x), x).mean())
    said = f"PSNR {ours:.2f} dB, each clip's mean frame {still:.2f} dB"
    assert ours >= 27, said
    assert ours >= still + 1.5, said


def test_sampled_skies_move_as_much_as_real_ones(sampled: NDArray[np.uint8]) -> None:
    real = neighbour_difference(np.stack([np.stack(list(Sky(s).frames(32))) for s in HELD_OUT]))
    found = neighbour_difference(sampled)
    assert 0.5 * real <= found <= 2 * real, f"{found:.2f} grey levels, real {real:.2f}"


def test_frames_are_as_alike_across_clip_borders_as_inside_clips(
    sampled: NDArray[np.uint8],
) -> None:
    config = api.load_model("demo").config
    assert config.diffusion is not None
    overlap, frames = config.diffusion.overlap, config.clip.frames
    starts = np.arange(1, config.num_clips(128)) * (frames - overlap)
    # A border is every step from the last frame of one clip alone to the first of the next alone.
    across = {k for start in starts for k in range(start - 1, start + overlap) if k < 127}
    within = set(range(127)) - across
    errors = np.square(np.diff(sampled.astype(np.float64), axis=1)).mean(axis=(2, 3, 4))
    neighbours = 10 * np.log10(255**2 / errors.clip(min=1e-3))  # [videos, 127]
    said = {name: neighbours[:, sorted(at)].mean() for name, at in
            (("across", across), ("within", within))}  # fmt: skip
    assert len(across) >= 7
    assert said["across"] >= said["within"] - 3, said


def test_demo_makes_a_long_video_within_five_minutes(tmp_path: Path) -> None:
    began = time.monotonic()
    command = [sys.executable, "-m", "pvdm_cli.cli.app", "demo", "--out", "out", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={**os.environ}
    )
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    assert seconds < 300, f"{seconds:.0f} s"
    result = json.loads(done.stdout)
    assert read(tmp_path / result["sampled"]["videos"][0]).shape == (128, 64, 64, 3)
    assert (tmp_path / result["sampled"]["grid"]).suffix == ".gif"
    assert "$ pvdm encode" in done.stderr
    assert "$ pvdm train demo/diffusion" in done.stderr
