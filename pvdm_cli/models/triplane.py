"""What depends on where in the triplane a number of the flat latent lies.

Axes: b batch, p planes of one shape, y and x the two axes of a plane, c channels, n tokens of all
planes (flat latent length). A *grid* is [b, p, y, x, c].
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pvdm_cli.config import LatentShape


class PlaneGroup(NamedTuple):
    """Neighbouring planes of one shape, processed as one batch."""

    planes: int
    y: int
    x: int


def group_planes(latent: LatentShape) -> list[PlaneGroup]:
    """Group the planes hw, sw, sh by shape, keeping their order in the flat latent."""
    shapes = [(latent.h, latent.w), (latent.s, latent.w), (latent.s, latent.h)]
    return [PlaneGroup(len(list(same)), *shape) for shape, same in groupby(shapes)]


def split_tokens(tokens: Tensor, groups: list[PlaneGroup]) -> list[Tensor]:
    """Split tokens [b, n, c] into grids [b, p, y, x, c]; views, nothing is copied."""
    parts = tokens.split([planes * y * x for planes, y, x in groups], dim=1)
    return [part.unflatten(1, group) for part, group in zip(parts, groups, strict=True)]


def join_tokens(grids: list[Tensor]) -> Tensor:
    """Lay the tokens of all planes side by side: [b, n, c]."""
    tokens = [grid.flatten(1, 3) for grid in grids]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens, dim=1)


class PositionEmbedding(nn.Module):
    """Learned vectors that tell tokens which plane they are on, and where along its two axes.

    Planes that share an axis share its vectors, so that attention can match positions across
    planes. The published network has none: with square clips (h == w) its planes sw and sh pass
    the same weights in the same way, it cannot tell them apart, and without a prefix it draws them
    swapped half of the time.
    """

    def __init__(self, latent: LatentShape, channels: int) -> None:
        super().__init__()
        sizes = {"planes": 3, "s": latent.s, "h": latent.h, "w": latent.w}
        self.vectors = nn.ParameterDict(
            {name: nn.Parameter(0.02 * torch.randn(size, channels)) for name, size in sizes.items()}
        )

    def forward(self) -> Tensor:
        """Return what is added to the tokens [n, c]: vector of the plane + one of each axis."""
        planes = self.vectors["planes"]
        axes = [("h", "w"), ("s", "w"), ("s", "h")]
        grids = [
            plane + self.vectors[y][:, None] + self.vectors[x]
            for plane, (y, x) in zip(planes, axes, strict=True)
        ]
        return torch.cat([grid.flatten(0, 1) for grid in grids])


class LatentScale(nn.Module):
    """The scale a denoiser works in: mean 0 and variance 1 in every channel of every plane.

    The statistics are those of the cache it was first trained on. They are kept with its weights,
    so that they go wherever these go.
    """

    mean: Tensor  # [3, c], planes hw, sw, sh
    std: Tensor  # [3, c]

    def __init__(self, latent: LatentShape) -> None:
        super().__init__()
        self.lengths = latent.plane_lengths
        self.register_buffer("mean", torch.zeros(3, latent.c))
        self.register_buffer("std", torch.ones(3, latent.c))

    def set(self, mean: Sequence[Sequence[float]], std: Sequence[Sequence[float]]) -> None:
        """Take over statistics [3, c]; a channel that never varies keeps its unit."""
        self.mean.copy_(torch.tensor(mean))
        spread = torch.tensor(std)
        self.std.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def _flat(self, statistic: Tensor) -> Tensor:
        """Repeat a statistic [3, c] over the tokens of its plane: [c, n]."""
        rows = zip(statistic, self.lengths, strict=True)
        return torch.cat([row.expand(length, -1) for row, length in rows]).T

    def apply_to(self, z: Tensor) -> Tensor:
        """Bring latents [b, c, n] to this scale."""
        return (z - self._flat(self.mean)) / self._flat(self.std)

    def undo(self, z: Tensor) -> Tensor:
        """Bring latents [b, c, n] back to the autoencoder's scale."""
        return z * self._flat(self.std) + self._flat(self.mean)
