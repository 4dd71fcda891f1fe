"""A detector that answers at once, and videos to score with it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pvdm_cli.evaluation import inception
from pvdm_cli.evaluation.c3d import C3D
from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.i3d import NUM_FEATURES
from pvdm_cli.video.write import write_video

WEIGHTS = np.random.default_rng(0).normal(size=(24, NUM_FEATURES)) / 100


class Quick(Detector):
    """In place of I3D: a fixed mixture of the first frame's and the last frame's colours."""

    def features(self, frames: torch.Tensor) -> np.ndarray:
        b = len(frames)
        ends = frames[:, [0, -1]].float().view(b, 2, 2, frames.shape[2] // 2, 2, -1, 3)
        return (ends.mean(dim=(3, 5)).view(b, 24).double().numpy() @ WEIGHTS).astype(np.float32)


def use_quick_detector(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let every score be computed with it; `folder` gets a file in place of the weights."""
    (folder / "i3d.pt").write_bytes(b"of no use")
    monkeypatch.setenv("PVDM_I3D", str(folder / "i3d.pt"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(
        Detector, "load", lambda device, **asked: Quick(None, "quick", "0" * 64, None)
    )


class QuickClassifier(C3D):
    """In place of C3D: probabilities from the mean colour."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)

    def classify(self, frames: torch.Tensor) -> torch.Tensor:
        colour = frames.double().mean(dim=(1, 2, 3))  # [b, 3]
        return torch.softmax(colour / 10, dim=1)


def use_quick_classifier(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let every inception score be computed with it."""
    for name in ("conv3d_deepnetA_ucf.npz", "mean2.npz"):
        (folder / name).write_bytes(b"of no use")
    monkeypatch.setenv("PVDM_WEIGHTS", str(folder))
    monkeypatch.setattr(inception, "load_c3d", lambda *files: QuickClassifier())


def noise(seed: int, frames: int, height: int = 16, width: int = 24) -> np.ndarray:
    """A clip of noise around a colour of its own."""
    rng = np.random.default_rng(seed)
    colour = rng.integers(60, 190, size=3)
    drawn = rng.integers(-50, 50, size=(frames, height, width, 3))
    return (colour + drawn).astype(np.uint8)


def write_noise(folder: Path, *lengths: int, suffix: str = "npz", first: int = 0) -> Path:
    """Write a video of each length; those of the same number and length are the same."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, length in enumerate(lengths):
        write_video(folder / f"{i}.{suffix}", noise(first + i, length), 8)
    return folder
