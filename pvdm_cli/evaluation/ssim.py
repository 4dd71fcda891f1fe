"""Structural similarity (Wang et al. 2004): Gaussian window of 11 x 11, sigma 1.5.

The figure of `skimage.metrics.structural_similarity(gaussian_weights=True, sigma=1.5,
use_sample_covariance=False, data_range=255)`: places whose window reaches over the edge are left
out, channels are averaged.

Axes: n images, H x W pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Compare images uint8 [n, H, W, 3] of 11 pixels a side or more; similarity [n] up to 1."""
    x, y = (images.permute(0, 3, 1, 2).flatten(0, 1)[:, None].double() for images in (a, b))
    x_mean, y_mean = blur(x), blur(y)
    x_variance = blur(x * x) - x_mean.square()
    y_variance = blur(y * y) - y_mean.square()
    covariance = blur(x * y) - x_mean * y_mean
    light = (2 * x_mean * y_mean + C1) / (x_mean.square() + y_mean.square() + C1)
    structure = (2 * covariance + C2) / (x_variance + y_variance + C2)
    return (light * structure).mean(dim=(1, 2, 3)).view(len(a), 3).mean(1)


def blur(x: Tensor) -> Tensor:
    """Average [n, 1, H, W] over the window, one axis after the other."""
    places = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-places.square() / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return F.conv2d(F.conv2d(x, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
