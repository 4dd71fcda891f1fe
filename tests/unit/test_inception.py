"""The inception score: closed forms, both conventions, and the layout of C3D's files."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scoring import use_quick_classifier, write_noise

from pvdm_cli.errors import ModelError, PvdmError
from pvdm_cli.evaluation.c3d import LAYERS, load_c3d
from pvdm_cli.evaluation.inception import inception_score, measure_inception, split_scores

RNG = np.random.default_rng(0)
CPU = torch.device("cpu")


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_classifier(monkeypatch, tmp_path)


def test_it_counts_the_classes_that_are_told_apart() -> None:
    for k in (2, 5, 101):
        sure = np.tile(np.eye(k), (3, 1))
        assert inception_score(sure) == pytest.approx(k)
        assert inception_score(np.full((7, k), 1 / k)) == pytest.approx(1)
    assert inception_score(np.eye(5)[[0, 0, 0]]) == pytest.approx(1)  # sure, and always the same


def test_it_is_the_exponential_of_the_mutual_information() -> None:
    p = RNG.dirichlet(np.ones(6), size=50)
    entropy = lambda q: -(q * np.log(q)).sum(-1)  # noqa: E731
    expected = np.exp(entropy(p.mean(0)) - entropy(p).mean())
    assert inception_score(p) == pytest.approx(expected, rel=1e-12)


def test_splits_follow_their_convention() -> None:
    p = RNG.dirichlet(np.ones(4), size=2048)
    in_order = split_scores(p, "tgan2")
    assert in_order[0] == inception_score(p[:204])  # 2048 / 10, rounded down
    assert in_order[9] == inception_score(p[1843:])
    mixed = p.copy()
    np.random.RandomState(42).shuffle(mixed)
    assert split_scores(p, "stylegan-v") == pytest.approx(split_scores(mixed, "tgan2"))


@pytest.mark.usefixtures("quick")
def test_a_score_says_what_it_rests_on(tmp_path: Path) -> None:
    fake = write_noise(tmp_path / "fake", *(16 for _ in range(12)), 9)
    result = measure_inception(fake, CPU)
    assert (result.clips, len(result.splits), list(result.skipped)) == (12, 10, ["12.npz"])
    assert result.mean == pytest.approx(np.mean(result.splits))
    assert result.std == pytest.approx(np.std(result.splits))
    assert result.protocol["convention"] == "stylegan-v"
    assert "12 clips, the convention takes 2,048" in result.differs[0]
    tgan2 = measure_inception(fake, CPU, convention="tgan2")
    assert "the convention takes 20,480" in tgan2.differs[0]
    with pytest.raises(PvdmError, match="9 clips of 16 frames found"):
        measure_inception(fake, CPU, num=9)


def test_without_c3d_one_sentence_says_what_to_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVDM_WEIGHTS", str(tmp_path))
    with pytest.raises(ModelError, match=r"conv3d_deepnetA_ucf.npz and mean2.npz, .*rezoo/tgan2"):
        measure_inception(tmp_path, CPU)


def arrays() -> dict[str, np.ndarray]:
    """Seeded weights in the layout of the real file, under a prefix."""
    rng, given, found = np.random.default_rng(1), 3, {}
    for name, made in LAYERS.items():
        if made:
            scale = (given * 27) ** -0.5
            shape = (made, given, 3, 3, 3)
            found[f"c3d/{name}/W"] = scale * rng.standard_normal(shape, dtype=np.float32)
            found[f"c3d/{name}/b"] = rng.standard_normal(made, dtype=np.float32) / 10
            given = made
    for name, given, made in (("fc6", 8192, 4096), ("fc7", 4096, 4096), ("fc8", 4096, 101)):
        weight = rng.standard_normal((made, given), dtype=np.float32)
        found[f"c3d/{name}/W"] = given**-0.5 * weight
        found[f"c3d/{name}/b"] = rng.standard_normal(made, dtype=np.float32) / 10
    return found


@pytest.mark.slow
def test_c3d_follows_the_description_of_tgan2(tmp_path: Path) -> None:
    """Every step written out once more, from the arrays on."""
    files = tmp_path / "c3d.npz", tmp_path / "mean2.npz"
    weights, mean = arrays(), 127 + RNG.normal(size=(3, 16, 128, 128)).astype(np.float32)
    np.savez(files[0], **weights)
    np.savez(files[1], mean=mean)
    frames = torch.from_numpy(RNG.integers(0, 256, size=(1, 16, 20, 30, 3), dtype=np.uint8))

    images = torch.stack([frame.permute(2, 0, 1) for frame in frames[0]]) / 127.5 - 1
    images = F.interpolate(images, (112, 112), mode="bilinear", align_corners=True)
    x = images.permute(1, 0, 2, 3)[[2, 1, 0]][None] * 128
    x = x + 128 - torch.from_numpy(mean[:, :, 8:120, 8:120])
    take = {name.removeprefix("c3d/"): torch.from_numpy(value) for name, value in weights.items()}
    for stage in ("1a", "2a", "3a 3b", "4a 4b", "5a 5b"):
        for name in stage.split():
            x = F.conv3d(x, take[f"conv{name}/W"], take[f"conv{name}/b"], padding=1).relu()
        kernel = (1, 2, 2) if stage == "1a" else 2
        x = F.max_pool3d(x, kernel, kernel, ceil_mode=True)
    x = x.reshape(1, 8192)
    for name in ("fc6", "fc7"):
        x = F.linear(x, take[f"{name}/W"], take[f"{name}/b"]).relu()
    expected = F.linear(x, take["fc8/W"], take["fc8/b"]).softmax(1)

    found = load_c3d(*files).classify(frames)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    np.savez(files[1], mean=mean[:, :8])
    with pytest.raises(ModelError, match="expected an array `mean` of shape"):
        load_c3d(*files)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c3d.npz"
    np.savez(path, **{"conv1a/W": np.zeros((64, 3, 3, 3, 3), np.float32)})
    with pytest.raises(ModelError, match="'conv1a/b' is missing"):
        load_c3d(path, path)
    path.write_bytes(b"PK nonsense")
    with pytest.raises(ModelError, match=r"not readable as \.npz"):
        load_c3d(path, path)
