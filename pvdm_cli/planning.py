"""What a run would be, without starting it: sizes, parameters, memory and disk."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from pvdm_cli.config import RunConfig, dump_yaml
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.cost import training_flops
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.models.layers import recompute

FLOAT = 4  # bytes


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
        "activation_memory_bytes": batch * activation_bytes(config, network),
        "snapshot_memory_bytes": FLOAT * kept,
        "checkpoint_disk_bytes": FLOAT * kept * (settings.keep_last + 1),  # one being written
    }
    return Plan(dump_yaml(config), figures)


def num_parameters(network: nn.Module) -> int:
    """Count a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def _build(config: RunConfig) -> tuple[Autoencoder, Denoiser | None]:
    """Build the networks on the meta device."""
    model = config.model()
    with torch.device("meta"):
        return Autoencoder(model), Denoiser(model) if model.denoiser else None


def activation_bytes(config: RunConfig, network: nn.Module) -> int:
    """Bytes that one clip's forward pass keeps for the backward pass, in float32.

    Counted on the meta device; memory that kernels use in passing comes on top.
    """
    latent, clip = config.latent, config.clip
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if not isinstance(tensor, nn.Parameter):
            kept[storage._cdata] = tensor
        return tensor

    def keep_inputs(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if getattr(module, "recomputed", False):
            for value in inputs:
                for tensor in value if isinstance(value, list) else [value]:
                    if isinstance(tensor, Tensor):
                        keep(tensor)

    recompute(network, config.training.activation_checkpointing)
    for module in network.modules():
        module.register_forward_pre_hook(keep_inputs)
    with torch.device("meta"), saved_tensors_hooks(keep, lambda tensor: tensor):
        if isinstance(network, Autoencoder):
            network(torch.empty(1, 3, clip.frames, clip.height, clip.width))
        else:
            network(torch.empty(1, latent.c, latent.flat), torch.zeros(1, dtype=torch.int64))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
