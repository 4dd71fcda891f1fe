"""What the denoiser's U-Net is made of: residual blocks within planes, attention within and across.

Axes: b batch, p planes of one shape, y and x the two axes of a plane, c channels, n tokens of all
planes, m heads, d head size. A *grid* is [b, p, y, x, c]; the features of a clip are a list of
grids, one per plane shape.
"""

from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.models import kernels, native
from pvdm_cli.models.layers import HeadAttention, add_mapped, run, side_by_side
from pvdm_cli.models.packed import SizedConv2d
from pvdm_cli.models.triplane import PlaneGroup, join_tokens, split_tokens

LayerT = TypeVar("LayerT", bound=nn.Module)

SMALL = 1 << 17  # numbers up to which a convolution is faster as one product of its taps


class GroupNorm(nn.GroupNorm):
    """Group normalisation of [b, ..., c] with optional FiLM: norm(x) * (1 + scale) + shift."""

    fused = False  # by a kernel of ours: CUDA, inference
    native = False  # likewise: CPU

    def __init__(self, channels: int) -> None:
        super().__init__(32, channels)

    def forward(self, x: Tensor, film: Tensor | None = None, *, silu: bool = False) -> Tensor:
        """Map [b, ..., c] to the same shape.

        Args:
            x: Features.
            film: Scale and shift [b / k, 2c] side by side, each row for k neighbours of x.
            silu: Apply SiLU to what comes out.
        """
        if self.fused and (found := kernels.group_norm(x, self, film, silu=silu)) is not None:
            return found
        if self.native and x.dtype == self.weight.dtype:
            return native.group_norm(x, self, film, silu=silu)
        flat = x.reshape(x.shape[0], -1, 1, x.shape[-1])
        if film is not None:
            film = film[:, None].expand(-1, len(x) // len(film), -1).flatten(0, 1)[:, None, None]
        normed = self.unfolded(flat, film) if x.device.type == "cpu" else self.folded(flat, film)
        return (F.silu(normed) if silu else normed).view(x.shape)

    def unfolded(self, x: Tensor, film: Tensor | None) -> Tensor:
        """Normalise [b, n, 1, c] by torch's kernel, which is channels-last on CPU only."""
        images = x.permute(0, 3, 1, 2)
        normed = F.group_norm(images, self.num_groups, self.weight, self.bias, self.eps)
        normed = normed.permute(0, 2, 3, 1)
        if film is None:
            return normed
        scale, shift = film.chunk(2, dim=-1)
        return torch.addcmul(shift, normed, 1 + scale)

    def folded(self, x: Tensor, film: Tensor | None) -> Tensor:
        """Normalise [b, n, 1, c] as one multiply-add with the affine maps folded into it.

        Elsewhere than on CPU torch's kernel would first copy channels-last features to NCHW.
        """
        grouped = x.float().unflatten(-1, (self.num_groups, -1))  # [b, n, 1, g, c/g]
        var, mean = torch.var_mean(grouped, dim=(1, 2, 4), correction=0, keepdim=True)
        members = grouped.shape[-1]
        mean = mean.expand(-1, -1, -1, -1, members).flatten(3)  # [b, 1, 1, c]
        rstd = (var + self.eps).rsqrt().expand(-1, -1, -1, -1, members).flatten(3)
        gain = rstd * self.weight
        offset = self.bias - mean * gain
        if film is not None:
            scale, shift = film.chunk(2, dim=-1)
            gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
        return torch.addcmul(offset, x, gain).to(x.dtype)


class Attention(HeadAttention):
    """Pre-norm multi-head attention over [b, n, c], without its residual; starts as zero.

    qkv is packed head-major, [head][q, k, v][dim], like the published weights.
    """

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, tokens: Tensor, other: Tensor | None = None) -> Tensor:
        """Return what attention adds to tokens [b, n, c]; with `other`, added to that."""
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (self.num_heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)  # [b, m, n, d] each
        mixed = self.attend(q, k, v)
        return self.out(mixed) if other is None else add_mapped(self.out, mixed, other)


class ResBlock(nn.Module):
    """Residual block on one grid, conditioned on the timestep by FiLM; may resample by 2.

    Args:
        in_channels: Channels of the grid that comes in.
        out_channels: Channels of the grid that goes out.
        resample: Halve ("down", mean) or double ("up", nearest) both axes inside the block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resample: Literal["down", "up"] | None = None,
    ) -> None:
        super().__init__()
        self.out_channels, self.resample = out_channels, resample
        self.film_index = 0  # which of the denoiser's FiLM vectors is this block's
        self.norm_in = GroupNorm(in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm_out = GroupNorm(out_channels)
        self.conv_out = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Linear(in_channels, out_channels)

    def forward(self, grids: list[Tensor], films: list[Tensor]) -> list[Tensor]:
        """Map each [b, p, y, x, in_channels] to [b, p, y', x', out_channels]."""
        xs = [grid.flatten(0, 1) for grid in grids]  # [b*p, y, x, c]
        if self.resample is None:
            hs = norm_and_convolve(self.norm_in, self.conv_in, xs)
        else:
            hs = [resample(self.norm_in(x, silu=True), self.resample) for x in xs]
            xs = [resample(x, self.resample) for x in xs]
            hs = convolve(self.conv_in, hs)
        hs = norm_and_convolve(self.norm_out, self.conv_out, hs, films[self.film_index])
        parts = zip(grids, xs, hs, strict=True)
        return [
            add_mapped(self.skip, x, h).unflatten(0, (-1, grid.shape[1])) for grid, x, h in parts
        ]


class Block(nn.Module):
    """Residual block, in-plane attention, second residual block, then joint attention.

    Attention within planes and the second residual block are optional. The convolutions and the
    in-plane attention see each plane alone; the joint attention makes the planes one clip.
    """

    grain = "block"

    def __init__(
        self,
        residual: ResBlock,
        num_heads: int,
        *,
        attend_in_plane: bool = False,
        second: ResBlock | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = channels = residual.out_channels
        self.residual = residual
        self.plane_attention = Attention(channels, num_heads) if attend_in_plane else None
        self.second = second
        self.joint_attention = Attention(channels, num_heads)

    def forward(
        self, grids: list[Tensor], films: list[Tensor], skips: list[Tensor] | None = None
    ) -> list[Tensor]:
        """Map the features of a clip, and those a skip connection brings, to the next block's."""
        parts = zip(grids) if skips is None else zip(grids, skips, strict=True)
        grids = side_by_side(lambda some: self._within_planes(some, films), parts)
        groups = [PlaneGroup(*grid.shape[1:4]) for grid in grids]
        tokens = join_tokens(grids)
        if len(tokens) == 1:  # only then are the planes' parts without gaps
            return split_tokens(run(self.joint_attention, tokens, tokens), groups)
        mixed = split_tokens(run(self.joint_attention, tokens), groups)
        return [grid + part for grid, part in zip(grids, mixed, strict=True)]

    def _within_planes(
        self, parts: Sequence[tuple[Tensor, ...]], films: list[Tensor]
    ) -> list[Tensor]:
        """Apply everything that treats each plane alone, to features and what a skip brings."""
        grids = [part[0] if len(part) == 1 else torch.cat(part, dim=-1) for part in parts]
        grids = self.residual(grids, films)
        if self.plane_attention is not None:
            for i, grid in enumerate(grids):
                tokens = grid.flatten(0, 1).flatten(1, 2)  # [b*p, y*x, c]
                grids[i] = run(self.plane_attention, tokens, tokens).view(grid.shape)
        return grids if self.second is None else self.second(grids, films)


def zeroed(layer: LayerT) -> LayerT:
    """Start a layer as zero, so that its residual branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def norm_and_convolve(
    norm: GroupNorm, conv: nn.Conv2d, xs: list[Tensor], film: Tensor | None = None
) -> list[Tensor]:
    """Normalise each [b, y, x, c], SiLU, convolve."""
    if norm.fused:
        return [_norm_and_convolve_fused(norm, conv, x, film) for x in xs]
    return convolve(conv, [norm(x, film, silu=True) for x in xs])


def _norm_and_convolve_fused(
    norm: GroupNorm, conv: nn.Conv2d, x: Tensor, film: Tensor | None
) -> Tensor:
    """Do it for one input: a small one in two launches where that can be."""
    if x.numel() <= SMALL:
        taps = kernels.group_norm(x, norm, film, silu=True, taps=True)
        if taps is not None:
            return F.linear(taps, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    return convolve(conv, [norm(x, film, silu=True)])[0]


def convolve(conv: nn.Conv2d | SizedConv2d, xs: list[Tensor]) -> list[Tensor]:
    """Convolve each [b, y, x, c] through channels-last views."""
    if isinstance(conv, SizedConv2d):
        return conv.convolve(xs)
    return [conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) for x in xs]


def resample(x: Tensor, how: Literal["down", "up"]) -> Tensor:
    """Halve (mean) or double (nearest) the axes y and x of [b, y, x, c]."""
    images = x.permute(0, 3, 1, 2)
    if how == "down":
        images = F.avg_pool2d(images, 2)
    else:
        images = F.interpolate(images, scale_factor=2, mode="nearest")
    return images.permute(0, 2, 3, 1)
