"""What a network costs: floating-point operations, counted without running it.

A multiply-add counts as two operations, as torch's counter and the tables of papers have it.
"""

from functools import lru_cache

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from pvdm_cli.config import RunConfig
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser

BACKWARD = 2  # forward passes that a backward pass costs


@lru_cache(maxsize=8)
def training_flops(config: RunConfig) -> int:
    """Operations that one clip costs the network in training: forward and backward.

    What is computed again for activation checkpointing is not counted, nor losses that have
    networks of their own, nor an autoencoder that encodes for the second stage.
    """
    latent, clip = config.latent, config.clip
    # The meta device has no memory and no kernels of its own for attention but the plain one.
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        counter = FlopCounterMode(display=False)
        if config.stage == "autoencoder":
            autoencoder = Autoencoder(config.model())
            with counter:
                autoencoder(torch.empty(1, 3, clip.frames, clip.height, clip.width))
        else:
            denoiser = Denoiser(config.model())
            z_t, t = torch.empty(1, latent.c, latent.flat), torch.zeros(1, dtype=torch.int64)
            with counter:
                denoiser(z_t, t)
    return (1 + BACKWARD) * counter.get_total_flops()
