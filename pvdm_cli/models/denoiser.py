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

import torch
from torch import Tensor, nn

from pvdm_cli.config import DenoiserConfig, ModelConfig
from pvdm_cli.models.blocks import Block, GroupNorm, ResBlock, convolve, norm_and_convolve, zeroed
from pvdm_cli.models.layers import run
from pvdm_cli.models.triplane import (
    LatentScale,
    PositionEmbedding,
    group_planes,
    join_tokens,
    split_tokens,
)

NULL_CLASS = -1  # the label of a clip whose class is not told


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Embed timesteps [b] as cosines and sines [b, width] of frequencies 1 to 1/10000 (DDPM)."""
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(-log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


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
        grids = self._stem(grids)
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
        out = join_tokens(self._head(grids))
        return out.transpose(1, 2).to(z_t.dtype).contiguous()

    def _stem(self, grids: list[Tensor]) -> list[Tensor]:
        """Map latent and prefix channels [b, p, y, x, 2c] to features [b, p, y, x, base]."""
        found = convolve(self.conv_in, [grid.flatten(0, 1) for grid in grids])
        return [x.unflatten(0, (-1, grid.shape[1])) for x, grid in zip(found, grids, strict=True)]

    def _head(self, grids: list[Tensor]) -> list[Tensor]:
        """Map features [b, p, y, x, base] to latent channels [b, p, y, x, c]."""
        planes = [grid.flatten(0, 1) for grid in grids]  # each is normalised for itself
        found = norm_and_convolve(self.norm_out, self.conv_out, planes)
        return [x.unflatten(0, (-1, grid.shape[1])) for x, grid in zip(found, grids, strict=True)]


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
