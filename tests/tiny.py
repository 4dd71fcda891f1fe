"""A tiny model that samples in milliseconds, of sizes that differ on every axis."""

import torch

from pvdm_cli.config import (
    AutoencoderConfig,
    ClipConfig,
    DenoiserConfig,
    DiffusionConfig,
    ModelConfig,
)
from pvdm_cli.model import Model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser

CONFIG = ModelConfig(
    clip=ClipConfig(frames=4, height=16, width=24),
    autoencoder=AutoencoderConfig(
        patch=8, width=16, depth=1, num_heads=2, head_dim=8, projection_depth=1, projection_mlp=16
    ),
    denoiser=DenoiserConfig(
        base_channels=32,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_downsamplings=(1,),
        num_heads=2,
    ),
    diffusion=DiffusionConfig(num_timesteps=20),
)


def tiny_model(*, fps: float | None = 7.0, with_denoiser: bool = True) -> Model:
    """The same weights each time; none of them zero, so that videos move."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        autoencoder = Autoencoder(CONFIG).eval().requires_grad_(False)
        denoiser = Denoiser(CONFIG).eval().requires_grad_(False)
        for parameter in [*denoiser.parameters(), autoencoder.to_pixels.weight]:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Model(CONFIG, autoencoder, denoiser if with_denoiser else None, fps=fps)
