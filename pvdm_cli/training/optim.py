"""Optimizer, learning rate, average of the weights."""

from collections.abc import Iterable
from math import cos, pi

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pvdm_cli.config import TrainingConfig

Tensors = list[Tensor] | tuple[Tensor, ...]


def make_optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with one fused update, at the configuration's settings."""
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


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
