"""The triplane latent z and its flat form.

Axes: b batch, c latent channels, s frames, h and w patch rows and columns, n = h*w + s*w + s*h.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from pvdm_cli.config import LatentShape


class Planes(NamedTuple):
    """Latent z of one clip, each plane named by the axes it keeps (Sec. 3.2)."""

    hw: Tensor  # [b, c, h, w]  z^s: content shared by all frames
    sw: Tensor  # [b, c, s, w]  z^h: motion, rows projected out
    sh: Tensor  # [b, c, s, h]  z^w: motion, columns projected out


def flatten(planes: Planes) -> Tensor:
    """Join the planes [b, c, ., .] into z_flat [b, c, n], in the order hw, sw, sh."""
    return torch.cat([plane.flatten(2) for plane in planes], dim=2)


def unflatten(z_flat: Tensor, shape: LatentShape) -> Planes:
    """Split z_flat [b, c, n] into its planes (views, nothing is copied).

    Raises:
        ValueError: If n is not shape.flat.
    """
    if z_flat.shape[-1] != shape.flat:
        raise ValueError(f"z_flat has n={z_flat.shape[-1]}, but {shape} needs n={shape.flat}")
    hw, sw, sh = z_flat.split(shape.plane_lengths, dim=2)
    return Planes(
        hw.unflatten(2, (shape.h, shape.w)),
        sw.unflatten(2, (shape.s, shape.w)),
        sh.unflatten(2, (shape.s, shape.h)),
    )


def broadcast_sum(planes: Planes) -> Tensor:
    """Spread each plane along the axis it lacks and add: [b, c, s, h, w] (Sec. 3.2, v_shw)."""
    return planes.hw[:, :, None] + planes.sw[:, :, :, None] + planes.sh[..., None]
