"""Reconstruction: the figures of each clip, and which of them need outside weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scoring import use_quick_detector, write_noise
from tiny import tiny_model

from pvdm_cli import weights
from pvdm_cli.evaluation import reconstruction
from pvdm_cli.evaluation.reconstruction import FeatureDistance, measure_reconstruction, run_config
from pvdm_cli.evaluation.ssim import ssim
from pvdm_cli.models.perceptual import LPIPS
from pvdm_cli.video.pixels import psnr, to_float, to_uint8
from pvdm_cli.video.read import read


@pytest.fixture
def videos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PVDM_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.delenv("PVDM_I3D", raising=False)
    return write_noise(tmp_path / "videos", 5, 6, 7, 8, 9, suffix="mp4")


def test_each_clip_is_compared_with_what_the_network_makes_of_it(videos: Path) -> None:
    model = tiny_model()
    result = measure_reconstruction(model, "tiny", videos, split_name="all", num=2)
    assert [clip.video for clip in result.clips] == ["0.mp4", "1.mp4"]
    frames = torch.from_numpy(read(videos / "1.mp4", count=4))[None]
    x = to_float(frames)
    with torch.no_grad():
        y = model.autoencoder(x)
    clip = result.clips[1]
    assert clip.psnr == pytest.approx(float(psnr(y, x)), abs=1e-4)
    assert clip.ssim == pytest.approx(float(ssim(frames[0], to_uint8(y)[0]).mean()), abs=1e-4)
    assert clip.lpips is None
    assert result.lpips is None


def test_held_out_and_train_share_the_videos_out(videos: Path) -> None:
    found = [
        measure_reconstruction(tiny_model(), "tiny", videos, split_name=name, holdout=0.4)
        for name in ("held-out", "train", "all")
    ]
    held_out, train, whole = ({clip.video for clip in result.clips} for result in found)
    assert held_out
    assert train
    assert held_out | train == whole
    assert not held_out & train


def test_lpips_is_measured_where_its_weights_are(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Difference(LPIPS):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def load_published(self, vgg16: object, heads: object) -> None:
            assert (vgg16, heads) == (weights.VGG16, weights.LPIPS_VGG)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return (x - y).abs().flatten(1).mean(1)

    monkeypatch.setattr(weights, "has", lambda file: True)
    monkeypatch.setattr(weights, "load", lambda file, **asked: file)
    monkeypatch.setattr(reconstruction, "LPIPS", Difference)
    model = tiny_model()
    result = measure_reconstruction(model, "tiny", videos, split_name="all", num=1)
    x = to_float(torch.from_numpy(read(videos / "0.mp4", count=4))[None])
    with torch.no_grad():
        expected = float((model.autoencoder(x) - x).abs().mean())
    assert result.lpips == pytest.approx(expected, rel=1e-4)


def test_the_distance_of_features_looks_at_the_originals_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    distance = FeatureDistance.load(torch.device("cpu"), 16)
    clips = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, size=(3, 16, 16, 24, 3), dtype=np.uint8)
    )
    assert distance(clips, clips) < 1e-6
    nothing = torch.zeros(0)
    assert distance(nothing, clips // 2) > 1e-3


def test_the_share_held_out_is_that_of_the_run(tmp_path: Path) -> None:
    assert run_config(tmp_path).data.holdout == 0.05
    (tmp_path / "config.yaml").write_text("stage: autoencoder\ndata: {holdout: 0.3}\n")
    assert run_config(tmp_path).data.holdout == 0.3
