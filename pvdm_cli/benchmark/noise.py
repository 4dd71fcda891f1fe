"""A training stage around noise: real networks, losses, clips and cache, but nothing to learn.

Axes: c latent channels, n flat latent length, s frames, H x W pixels.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pvdm_cli.benchmark.subjects import random_network
from pvdm_cli.config import ModelConfig, RunConfig
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import Identity
from pvdm_cli.data.cache_shard import Latents
from pvdm_cli.data.cache_writer import CacheWriter, Stamp
from pvdm_cli.data.catalog import Source
from pvdm_cli.data.clips import Clips, Usable
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.models.perceptual import LPIPS
from pvdm_cli.training.adversary import Adversary
from pvdm_cli.training.autoencoder import AutoencoderStage
from pvdm_cli.training.diffusion import DiffusionStage
from pvdm_cli.training.players import Stage


def noise_stage(config: RunConfig, device: torch.device) -> Stage[Any]:
    """Build the configuration's stage with random weights, around noise instead of videos."""
    seed = config.training.seed
    autoencoder = random_network(Autoencoder, config, device, seed)
    if config.stage == "autoencoder":
        clips = _noise_clips(config)
        perceptual = LPIPS().to(device) if config.loss.lpips else None  # of random weights
        adversary = Adversary(config.adversarial).to(device) if config.adversarial else None
        return AutoencoderStage(
            config, autoencoder, clips, None, lambda *shown: None, perceptual, adversary
        )
    data = config.data.model_copy(update={"holdout": 0.0})
    config = config.model_copy(update={"data": data})
    with tempfile.TemporaryDirectory(prefix="pvdm-bench-") as folder:
        cache = _noise_cache(config, Path(folder) / "cache")
    network = random_network(Denoiser, config, device, seed)
    encoder = autoencoder.eval().requires_grad_(False)
    return DiffusionStage(config, network, encoder, cache, lambda *shown: None)


def _noise_clips(config: RunConfig) -> Clips:
    """Make one video of noise, held in memory."""
    clip = config.clip
    shape = (2 * clip.frames, clip.height, clip.width, 3)
    frames = np.random.default_rng(config.training.seed).integers(256, size=shape, dtype=np.uint8)
    return Clips(clip, [Usable(Source(Path("noise"), "noise"), len(frames), frames)], {})


def _noise_cache(config: RunConfig, path: Path) -> Cache:
    """Write a latent cache of one video of noise, whose second clip continues the first."""
    draw = np.random.default_rng(config.training.seed)
    latent = config.latent
    write_cache(config, path, draw.uniform(-1, 1, (2, latent.c, latent.flat)).astype(np.float16))
    return Cache.open(path, in_memory=True)


def write_cache(config: ModelConfig, path: Path, z: Latents, *, together: int = 8) -> None:
    """Write a latent cache of one video, each clip of which continues the one before.

    Args:
        config: Of the model it shall be for.
        path: The folder.
        z: fp16 [k, c, n].
        together: Clips handed over at a time.
    """
    clip = config.clip
    later = clip.frames - (config.diffusion.overlap if config.diffusion else 0)
    identity = Identity(
        fingerprint="0" * 64,
        clip=clip,
        patch=config.autoencoder.patch,
        channels=config.latent.c,
        window_stride=later,
    )
    with CacheWriter(path, identity) as writer:
        (row,) = writer.plan([Stamp("noise", 0, 0)]).todo
        index = np.array([[row.video, k * identity.step, -1] for k in range(len(z))])
        for k in range(0, len(z), together):
            writer.add(index[k : k + together], z[k : k + together])
        writer.end_video(row.video, frames=(len(z) - 1) * later + clip.frames, fps=None)
        writer.finish()
