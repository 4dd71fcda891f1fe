"""PSNR and SSIM against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from pvdm_cli.evaluation.ssim import ssim
from pvdm_cli.video.pixels import psnr, to_float

RNG = np.random.default_rng(0)


def pairs(height: int, width: int, noise: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth pictures and noisy ones, uint8 [3, H, W, 3]."""
    ramp = np.linspace(0, 200, width)[None, None, :, None] * np.ones((3, height, 1, 3))
    a = (ramp + RNG.integers(0, 50, size=(3, height, width, 3))).clip(0, 255).astype(np.uint8)
    b = (a.astype(int) + RNG.integers(-noise, noise + 1, size=a.shape)).clip(0, 255)
    return torch.from_numpy(a), torch.from_numpy(b.astype(np.uint8))


@pytest.mark.parametrize(("height", "width", "noise"), [(11, 13, 5), (32, 24, 30), (40, 64, 200)])
def test_ssim_is_that_of_scikit_image(height: int, width: int, noise: int) -> None:
    a, b = pairs(height, width, noise)
    expected = [
        structural_similarity(
            x.numpy(),
            y.numpy(),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=-1,
            data_range=255,
        )
        for x, y in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(ssim(a, b).numpy(), expected, atol=1e-7)


def test_a_picture_is_most_like_itself() -> None:
    a, b = pairs(16, 24, 40)
    torch.testing.assert_close(ssim(a, a), torch.ones(3, dtype=torch.float64))
    assert (ssim(a, b) < 0.9).all()


def test_psnr_is_that_of_scikit_image() -> None:
    a, b = pairs(16, 24, 40)
    found = psnr(to_float(a[None]), to_float(b[None]))
    expected = peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255)
    assert float(found) == pytest.approx(expected, abs=1e-4)
