"""Optimizer, learning rate, average of the weights."""

from collections.abc import Iterable
from math import cos, pi
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pvdm_cli.config import TrainingConfig
from pvdm_cli.ranks import here

Tensors = list[Tensor] | tuple[Tensor, ...]


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    """AdamW with one fused update, at the configuration's settings.

    With `training.zero` each of several processes keeps the moments of a part of the weights only
    (ZeRO-1, Rajbhandari et al. 2020).
    """
    settings: dict[str, Any] = {
        "lr": config.lr,
        "betas": config.betas,
        "weight_decay": config.weight_decay,
        "fused": True,
    }
    if config.zero and here().size > 1:
        from torch.distributed.optim import ZeroRedundancyOptimizer  # compiles others on the way

        return ZeroRedundancyOptimizer(parameters, torch.optim.AdamW, **settings)
    return torch.optim.AdamW(parameters, **settings)


def bring_together(optimizer: torch.optim.Optimizer) -> None:
    """Bring moments that are spread over the processes to the first; all must call it."""
    gather = getattr(optimizer, "consolidate_state_dict", None)
    if gather is not None:
        gather(to=0)


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Rate of optimizer step `step` (from 0): linear warm-up, then constant or half a cosine."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.lr_schedule == "constant":
        return config.lr
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.lr * 0.5 * (1 + cos(pi * min(1.0, progress)))


def make_average(network: nn.Module, config: TrainingConfig) -> AveragedModel | None:
    """Exponential moving average of the weights with the published warm-up, or None if off.

    Update n (from 1) keeps min(ema_decay, (1 + n) / (10 + n)) of the average, which starts as the
    initial weights.
    """
    if not config.ema_decay:
        return None

    def update(average: Tensors, current: Tensors, num_averaged: int | Tensor) -> None:
        n = int(num_averaged)
        decay = min(config.ema_decay, (1 + n) / (10 + n))
        torch._foreach_lerp_(average, current, 1 - decay)

    average = AveragedModel(network, multi_avg_fn=torch.no_grad()(update))
    average.n_averaged.fill_(1)  # at 0 torch's first update would copy the weights
    return average
