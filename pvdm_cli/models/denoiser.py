"""The denoiser eps_theta (Sec. 3.3): one 2D U-Net over the three planes, joined by attention.

Planes of equal shape that are neighbours in the flat latent share one batch: square clips need two
convolution calls where three planes are, and only one when s = h = w. Features stay channels-last:
convolutions see them as NCHW views in torch's channels_last format, attention and pointwise maps
as tokens, and neither view copies.

Axes: b batch, p planes of one shape, y and x the two axes of a plane, c channels, n tokens of all
planes, m heads, d head size. A *grid* is [b, p, y, x, c]; the features of a clip are a list of
grids, one per plane shape.
"""

from math import log
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.config import DenoiserConfig, ModelConfig
from pvdm_cli.models import kernels
from pvdm_cli.models.layers import attention, heads_apart, run, side_by_side
from pvdm_cli.models.triplane import (
    LatentScale,
    PlaneGroup,
    PositionEmbedding,
    group_planes,
    join_tokens,
    split_tokens,
)

LayerT = TypeVar("LayerT", bound=nn.Module)

SMALL = 1 << 17  # numbers up to which a convolution is faster as one product of its taps
NULL_CLASS = -1  # the label of a clip whose class is not told


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Embed timesteps [b] as cosines and sines [b, width] of frequencies 1 to 1/10000 (DDPM)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(-log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class GroupNorm(nn.GroupNorm):
    """Group normalisation of [b, ..., c] with optional FiLM: norm(x) * (1 + scale) + shift."""

    fused = False  # by a kernel of ours: CUDA, inference

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
        flat = x.reshape(x.shape[0], -1, 1, x.shape[-1])
        if film is not None:
            film = film[:, None].expand(-1, len(x) // len(film), -1).flatten(0, 1)[:, None, None]
        normed = self.native(flat, film) if x.device.type == "cpu" else self.folded(flat, film)
        return (F.silu(normed) if silu else normed).view(x.shape)

    def native(self, x: Tensor, film: Tensor | None) -> Tensor:
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


class Attention(nn.Module):
    """Pre-norm multi-head attention over [b, n, c], without its residual; starts as zero.

    qkv is packed head-major, [head][q, k, v][dim], like the published weights.
    """

    grain = "attention"

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = zeroed(nn.Linear(channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what attention adds to tokens [b, n, c]."""
        qkv = self.qkv(self.norm(tokens)).unflatten(-1, (self.num_heads, 3, -1))
        q, k, v = heads_apart(qkv.permute(3, 0, 2, 1, 4))  # [b, m, n, d] each
        return self.out(attention(q, k, v).transpose(1, 2).flatten(2))


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

    def forward(self, grid: Tensor, films: list[Tensor]) -> Tensor:
        """Map [b, p, y, x, in_channels] to [b, p, y', x', out_channels]."""
        x = grid.flatten(0, 1)  # [b*p, y, x, c]
        if self.resample is None:
            h = norm_and_convolve(self.norm_in, self.conv_in, x)
        else:
            h, x = (resample(each, self.resample) for each in (self.norm_in(x, silu=True), x))
            h = convolve(self.conv_in, h)
        h = norm_and_convolve(self.norm_out, self.conv_out, h, films[self.film_index])
        return (self.skip(x) + h).unflatten(0, (-1, grid.shape[1]))


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
        grids = side_by_side(lambda *part: self._within_planes(part, films), parts)
        groups = [PlaneGroup(*grid.shape[1:4]) for grid in grids]
        mixed = split_tokens(run(self.joint_attention, join_tokens(grids)), groups)
        return [grid + part for grid, part in zip(grids, mixed, strict=True)]

    def _within_planes(self, parts: tuple[Tensor, ...], films: list[Tensor]) -> Tensor:
        """Apply everything that treats each plane alone, to features and what a skip brings."""
        grid = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        grid = self.residual(grid, films)
        if self.plane_attention is not None:
            tokens = grid.flatten(0, 1).flatten(1, 2)  # [b*p, y*x, c]
            grid = grid + run(self.plane_attention, tokens).view(grid.shape)
        return grid if self.second is None else self.second(grid, films)


class ClassEmbedding(nn.Module):
    """A vector for each class and one for the null class, the last row (Ho and Salimans 2022).

    Random codes, as in guided-diffusion, are read through a map that starts as zero. So the network
    starts as one without classes, which may be a trained one, and yet soon tells them apart: with
    small vectors instead (standard deviation 0.02, as in DiT) it did not after 150 steps, where
    these took 60.
    """

    def __init__(self, num_classes: int, code: int, width: int) -> None:
        super().__init__()
        self.codes = nn.Embedding(num_classes + 1, code)
        self.map = zeroed(nn.Linear(code, width, bias=False))

    def forward(self, label: Tensor) -> Tensor:
        """Embed labels int64 [b] as [b, width]; NULL_CLASS counts from the end."""
        return self.map(self.codes(label % self.codes.num_embeddings))


class Denoiser(nn.Module):
    """eps_theta(z_t, z_prefix, t): what the objective asks for, from noised flat latents."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.denoiser is None:
            raise ValueError("the configuration has no denoiser section")
        self.latent = config.latent
        self.groups = group_planes(self.latent)
        noised = config.diffusion is not None and config.diffusion.prefix_noise > 0
        self._build(config.denoiser, self.latent.c, prefix_noise=noised)
        self._reorder_weights()
        self.register_load_state_dict_post_hook(  # type: ignore[no-untyped-call]
            lambda module, _: module._reorder_weights()
        )

    def _reorder_weights(self) -> None:
        """Keep weights as convolutions read them beside channels-last features.

        Loading by assignment brings them in another order, so this runs after loading too.
        """
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs

    def _build(self, config: DenoiserConfig, latent_channels: int, *, prefix_noise: bool) -> None:
        """Make all layers; blocks are listed in the order they run."""
        self.base_channels = base = config.base_channels
        self.time_embedding = nn.Sequential(
            nn.Linear(base, 4 * base), nn.SiLU(), nn.Linear(4 * base, 4 * base), nn.SiLU()
        )
        self.prefix_noise_embedding = zeroed(nn.Linear(base, 4 * base)) if prefix_noise else None
        self.conv_in = nn.Conv2d(2 * latent_channels, base, 3, padding=1)
        self.positions = PositionEmbedding(self.latent, base) if config.positions else None
        self.scale = LatentScale(self.latent) if config.normalise else None
        self.input_blocks, skips = input_blocks(config)
        channels = skips[-1]
        self.middle_block = Block(
            ResBlock(channels, channels),
            config.num_heads,
            attend_in_plane=True,
            second=ResBlock(channels, channels),
        )
        self.output_blocks = output_blocks(config, skips)
        self.norm_out = GroupNorm(base * config.channel_multipliers[0])
        self.conv_out = zeroed(
            nn.Conv2d(base * config.channel_multipliers[0], latent_channels, 3, padding=1)
        )
        residuals = [module for module in self.modules() if isinstance(module, ResBlock)]
        for index, residual in enumerate(residuals):
            residual.film_index = index
        # All blocks' scales and shifts in one product: at batch 1 each small one costs a launch.
        self.film_sizes = [2 * residual.out_channels for residual in residuals]
        self.film = nn.Linear(4 * base, sum(self.film_sizes))
        # Last, so that the other weights are those a seed gives without classes.
        classes = len(config.classes)
        self.class_embedding = ClassEmbedding(classes, base, 4 * base) if classes else None

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the features."""
        return self.norm_out.weight.dtype

    def normalise(self, z: Tensor) -> Tensor:
        """Bring latents [b, c, n] of the autoencoder to the scale this network works in."""
        return z if self.scale is None else self.scale.apply_to(z)

    def denormalise(self, z: Tensor) -> Tensor:
        """Bring latents [b, c, n] of this network back to the autoencoder's scale."""
        return z if self.scale is None else self.scale.undo(z)

    def films(
        self, t: Tensor, prefix_noise: Tensor | None = None, label: Tensor | None = None
    ) -> list[Tensor]:
        """Return scale and shift [b, 2c] of every residual block at t, levels and labels [b]."""
        embedding = timestep_embedding(t, self.base_channels).to(self.dtype)
        if self.class_embedding is None:
            embedding = self.time_embedding(embedding)
        else:  # before the last SiLU, as in guided-diffusion
            label = torch.full_like(t, NULL_CLASS) if label is None else label
            embedding = self.time_embedding[:-1](embedding) + self.class_embedding(label)
            embedding = self.time_embedding[-1](embedding)
        if self.prefix_noise_embedding is not None:
            level = torch.zeros_like(t) if prefix_noise is None else 1000 * prefix_noise
            waves = timestep_embedding(level, self.base_channels).to(self.dtype)
            embedding = embedding + self.prefix_noise_embedding(waves)
        return list(self.film(embedding).split(self.film_sizes, dim=-1))

    def forward(
        self,
        z_t: Tensor,
        t: Tensor,
        z_prefix: Tensor | None = None,
        prefix_noise: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Predict from z_t [b, c, n] at t int64 [b]; z_prefix None is the null prefix, zeros.

        Both are in the scale of this network (`normalise`), and so is the prediction. A network
        trained with `diffusion.prefix_noise` is told the standard deviation [b] of the noise on
        the prefix; None means none. One that knows classes is told the label int64 [b], the place
        of the class in `denoiser.classes`; -1 is the null class, and so is None for all.

        Returns:
            The prediction [b, c, n], in the dtype of z_t.

        Raises:
            ValueError: If n does not belong to the configured clip.
        """
        if z_t.shape[-1] != self.latent.flat:
            raise ValueError(f"z_t has n={z_t.shape[-1]}, the denoiser needs {self.latent.flat}")
        films = self.films(t, prefix_noise, label)
        prefix = torch.zeros_like(z_t) if z_prefix is None else z_prefix
        tokens = torch.cat([z_t, prefix], dim=1).to(self.dtype).transpose(1, 2)
        grids = split_tokens(tokens.contiguous(), self.groups)
        grids = [self._stem(grid) for grid in grids]
        if self.positions is not None:
            places = split_tokens(self.positions()[None], self.groups)
            grids = [grid + place for grid, place in zip(grids, places, strict=True)]
        skips = [grids]
        for block in self.input_blocks:
            grids = run(block, grids, films)
            skips.append(grids)
        grids = run(self.middle_block, grids, films)
        for block in self.output_blocks:
            grids = run(block, grids, films, skips.pop())
        out = join_tokens([self._head(grid) for grid in grids])
        return out.transpose(1, 2).to(z_t.dtype).contiguous()

    def _stem(self, grid: Tensor) -> Tensor:
        """Map latent and prefix channels [b, p, y, x, 2c] to features [b, p, y, x, base]."""
        return convolve(self.conv_in, grid.flatten(0, 1)).unflatten(0, (-1, grid.shape[1]))

    def _head(self, grid: Tensor) -> Tensor:
        """Map features [b, p, y, x, base] to latent channels [b, p, y, x, c]."""
        planes = grid.flatten(0, 1)  # each is normalised for itself
        h = norm_and_convolve(self.norm_out, self.conv_out, planes)
        return h.unflatten(0, (-1, grid.shape[1]))


def input_blocks(config: DenoiserConfig) -> tuple[nn.ModuleList, list[int]]:
    """Make the descending half; also return the channels that each skip connection carries."""
    blocks, skips = nn.ModuleList(), [config.base_channels]
    last = len(config.channel_multipliers) - 1
    for level, multiplier in enumerate(config.channel_multipliers):
        channels = multiplier * config.base_channels
        attend = 2**level in config.attention_downsamplings
        for _ in range(config.num_res_blocks):
            residual = ResBlock(skips[-1], channels)
            blocks.append(Block(residual, config.num_heads, attend_in_plane=attend))
            skips.append(channels)
        if level != last:
            blocks.append(Block(ResBlock(channels, channels, "down"), config.num_heads))
            skips.append(channels)
    return blocks, skips


def output_blocks(config: DenoiserConfig, skips: list[int]) -> nn.ModuleList:
    """Make the ascending half, which takes the skip connections last in, first out."""
    blocks, waiting, below = nn.ModuleList(), list(skips), skips[-1]
    for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
        channels = multiplier * config.base_channels
        attend = 2**level in config.attention_downsamplings
        for i in range(config.num_res_blocks + 1):
            residual = ResBlock(below + waiting.pop(), channels)
            up = level > 0 and i == config.num_res_blocks
            second = ResBlock(channels, channels, "up") if up else None
            blocks.append(Block(residual, config.num_heads, attend_in_plane=attend, second=second))
            below = channels
    return blocks


def zeroed(layer: LayerT) -> LayerT:
    """Start a layer as zero, so that its residual branch starts as nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def norm_and_convolve(
    norm: GroupNorm, conv: nn.Conv2d, x: Tensor, film: Tensor | None = None
) -> Tensor:
    """Normalise [b, y, x, c], SiLU, convolve; a small input in two launches where that can be."""
    if norm.fused and x.numel() <= SMALL:
        taps = kernels.group_norm(x, norm, film, silu=True, taps=True)
        if taps is not None:
            return F.linear(taps, conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)
    return convolve(conv, norm(x, film, silu=True))


def convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Convolve [b, y, x, c] through channels-last views."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def resample(x: Tensor, how: Literal["down", "up"]) -> Tensor:
    """Halve (mean) or double (nearest) the axes y and x of [b, y, x, c]."""
    images = x.permute(0, 3, 1, 2)
    if how == "down":
        images = F.avg_pool2d(images, 2)
    else:
        images = F.interpolate(images, scale_factor=2, mode="nearest")
    return images.permute(0, 2, 3, 1)
