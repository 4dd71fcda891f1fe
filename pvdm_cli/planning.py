"""What a run would be, without starting it: sizes, parameters, memory and disk."""

from dataclasses import dataclass

import torch
from torch import nn

from pvdm_cli.config import RunConfig, dump_yaml
from pvdm_cli.footprint import FLOAT, count_step, largest_batch
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.cost import training_flops
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.runtime import resolve_device, resolve_precision

CARD = 24 << 30  # bytes of the paper's card, on which the largest batch is told


@dataclass(frozen=True)
class Plan:
    """A resolved configuration and what follows from it.

    Attributes:
        yaml: The configuration as it would be saved.
        figures: Counts and bytes by name.
    """

    yaml: str
    figures: dict[str, int]

    def rows(self) -> list[tuple[str, str]]:
        """Figures for reading."""
        rows = []
        for name, value in self.figures.items():
            unit = name.endswith("_bytes")
            words = name.removesuffix("_bytes").replace("_", " ")
            rows.append((words, _size(value) if unit else f"{value:,}"))
        return rows


def _size(count: int) -> str:
    """Write bytes in the unit that suits them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= 0.95 * scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def plan_run(config: RunConfig) -> Plan:
    """Work out a run's sizes; the networks are built without memory (meta device)."""
    latent, settings = config.latent, config.training
    autoencoder, denoiser = _build(config)
    network = autoencoder if config.stage == "autoencoder" else denoiser
    assert network is not None
    parameters = num_parameters(network)
    batch = settings.batch_size or 1  # auto: what one clip needs
    copies = 4 + bool(settings.ema_decay)  # weights, gradients, two moments, average
    # Weights in training and published, two moments; the second stage copies its autoencoder in.
    precision = resolve_precision(settings.precision, resolve_device("auto"))
    step = count_step(config, batch, precision)
    kept = 4 * parameters + (config.stage == "diffusion") * num_parameters(autoencoder)
    figures = {
        "autoencoder_parameters": num_parameters(autoencoder),
        "denoiser_parameters": num_parameters(denoiser) if denoiser is not None else 0,
        "latent_frames": latent.s,
        "latent_rows": latent.h,
        "latent_columns": latent.w,
        "latent_channels": latent.c,
        "tokens": latent.flat,
        "cache_clip_bytes": 2 * latent.c * latent.flat,
        "clips_per_step": settings.clips_per_step or batch * settings.accumulation,
        "training_gflop_per_clip": training_flops(config) // 10**9,
        "state_memory_bytes": FLOAT * parameters * copies,
        "activation_memory_bytes": step.kept,
        "peak_memory_bytes": step.peak,
        "snapshot_memory_bytes": FLOAT * kept,
        "checkpoint_disk_bytes": FLOAT * kept * (settings.keep_last + 1),  # one being written
    }
    if config.stage == "diffusion":
        figures["largest_batch_in_24_GiB"] = largest_batch(config, precision, CARD)
    return Plan(dump_yaml(config), figures)


def num_parameters(network: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _build(config: RunConfig) -> tuple[Autoencoder, Denoiser | None]:
    """Build the networks on the meta device."""
    model = config.model()
    with torch.device("meta"):
        return Autoencoder(model), Denoiser(model) if model.denoiser else None
