"""The published features of noise (universome/fvd-comparison), from its pixels on.

All 128 clips of both sides were run once: 10.1381 within 1e-4, in five minutes on one busy core.
Here the first few; what follows from the features is in tests/unit/test_frechet.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from pvdm_cli.evaluation.detector import Detector

CLIPS = 6


@pytest.mark.slow
@pytest.mark.parametrize(("side", "seed"), [("fake", 1), ("real", 2)])
def test_noise_has_the_published_features(
    shared: Path, monkeypatch: pytest.MonkeyPatch, side: str, seed: int
) -> None:
    folder = shared / "reference" / "fvd"
    monkeypatch.setenv("PVDM_I3D", str(folder / "i3d_kinetics400.safetensors"))
    network = Detector.load(torch.device("cpu")).network
    known = np.load(folder / "fvd_comparison_features.npz")[side]
    rng = np.random.RandomState(seed)
    for number in range(CLIPS):  # RandomState.rand(128, ...) is the same draw after draw
        clip = rng.rand(1, 16, 224, 224, 3).astype(np.float32)
        x = torch.from_numpy(clip).movedim(-1, 1)  # values are fed as they are, not as pixels
        with torch.no_grad():
            found = network(x.contiguous(memory_format=torch.channels_last_3d)).numpy()
        np.testing.assert_allclose(found, known[number : number + 1], atol=2e-4)
