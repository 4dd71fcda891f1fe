"""The published Frechet video distance of two sets of noise (universome/fvd-comparison), all of it.

128 clips of a side through I3D: four minutes on one core.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.frechet import Statistics, frechet_distance

CLIPS, TOGETHER = 128, 2


def noise(seed: int) -> Iterator[np.ndarray]:
    """RandomState(seed).rand(128, 16, 224, 224, 3), a few clips at a time."""
    rng = np.random.RandomState(seed)
    for _ in range(CLIPS // TOGETHER):
        yield rng.rand(TOGETHER, 16, 224, 224, 3).astype(np.float32)


@pytest.mark.slow
def test_two_sets_of_noise_are_at_the_published_distance(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shared / "reference" / "fvd"
    monkeypatch.setenv("PVDM_I3D", str(folder / "i3d_kinetics400.safetensors"))
    network = Detector.load(torch.device("cpu")).network
    known = np.load(folder / "fvd_comparison_features.npz")
    found = {}
    for side, seed in (("fake", 1), ("real", 2)):
        found[side] = Statistics(400)
        for number, clips in enumerate(noise(seed)):
            x = torch.from_numpy(clips).movedim(-1, 1)  # values are fed as they are
            with torch.no_grad():
                features = network(x.contiguous(memory_format=torch.channels_last_3d)).numpy()
            expected = known[side][number * TOGETHER : (number + 1) * TOGETHER]
            np.testing.assert_allclose(features, expected, atol=2e-4)
            found[side].add(features)
    distance = frechet_distance(found["fake"], found["real"], ddof=1)
    assert distance == pytest.approx(10.13808, rel=1e-4)
