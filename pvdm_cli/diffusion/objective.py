"""What the network is asked for (eps, x0, v, flow), and the joint prefix / null training loss.

Axes: b batch, c latent channels, n flat latent length. z0, z_t, eps, v and predictions: [b, c, n].
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from pvdm_cli.diffusion.schedule import Schedule

Objective = Literal["eps", "x0", "v", "flow"]
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # (z_t, t, z_prefix) -> prediction


def q_sample(schedule: Schedule, z0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Noise z0 to timestep t (DDPM eq. 4): sqrt(abar) z0 + sqrt(1 - abar) eps."""
    signal, noise = schedule.at(t, like=z0)
    return signal * z0 + noise * eps


def to_v(schedule: Schedule, z0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Velocity v = sqrt(abar) eps - sqrt(1 - abar) z0 (Salimans and Ho 2022, app. D)."""
    signal, noise = schedule.at(t, like=z0)
    return signal * eps - noise * z0


def to_x0(
    objective: Objective, schedule: Schedule, z_t: Tensor, t: Tensor, prediction: Tensor
) -> Tensor:
    """Turn a prediction at z_t into its z0."""
    return x0_from(objective, prediction, z_t, *schedule.at(t, like=z_t))


def to_eps(
    objective: Objective, schedule: Schedule, z_t: Tensor, t: Tensor, prediction: Tensor
) -> Tensor:
    """Turn a prediction at z_t into its eps."""
    return eps_from(objective, prediction, z_t, *schedule.at(t, like=z_t))


def x0_from(
    objective: Objective,
    prediction: Tensor,
    z_t: Tensor,
    signal: Tensor | float,
    noise: Tensor | float,
) -> Tensor:
    """As `to_x0`, at given scales: what a sampler uses, whose t is the same for all rows."""
    if objective == "x0":
        return prediction
    if objective == "v":
        return signal * z_t - noise * prediction
    if objective == "flow":
        return (z_t - noise * prediction) / (signal + noise)
    return (z_t - noise * prediction) / signal


def eps_from(
    objective: Objective,
    prediction: Tensor,
    z_t: Tensor,
    signal: Tensor | float,
    noise: Tensor | float,
) -> Tensor:
    """As `to_eps`, at given scales."""
    if objective == "eps":
        return prediction
    if objective == "v":
        return noise * z_t + signal * prediction
    if objective == "flow":
        return (z_t + signal * prediction) / (signal + noise)
    return (z_t - signal * prediction) / noise


def target(objective: Objective, schedule: Schedule, z0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """What the network should have predicted at timestep t."""
    if objective == "eps":
        return eps
    if objective == "flow":  # the velocity of the straight path from z0 to eps
        return eps - z0
    return z0 if objective == "x0" else to_v(schedule, z0, t, eps)


def min_snr_weight(objective: Objective, schedule: Schedule, t: Tensor, gamma: float) -> Tensor:
    """Weight of each sample's loss [b] (Hang et al. 2023): min(SNR, gamma) on the error of z0.

    An error of the prediction counts as the error of z0 it makes; for eps that is
    min(SNR, gamma) / SNR, for v min(SNR, gamma) / (SNR + 1).
    """
    signal, noise = schedule.at(t, like=t.double())
    snr = (signal / noise) ** 2
    if objective == "eps":
        return (gamma / snr).clamp(max=1)
    weight = snr.clamp(max=gamma)
    if objective == "x0":
        return weight
    return weight * (noise if objective == "v" else noise / (signal + noise)) ** 2


class Draws(NamedTuple):
    """Everything random in one training example."""

    t: Tensor  # int64 [b]
    eps: Tensor  # [b, c, n]
    keep: Tensor  # bool [b]: train with the prefix
    level: Tensor  # [b], standard deviation of the noise on the prefix
    prefix_eps: Tensor  # [b, c, n], or [b, 1, 1] zeros where no prefix is noised


def draw(
    z0: Tensor,
    num_timesteps: int,
    prefix_prob: float,
    generators: Sequence[torch.Generator],
    prefix_noise: float = 0.0,
) -> Draws:
    """Draw t uniformly, eps ~ N(0, I) and the prefix coin of each sample from its own generator.

    If prefixes are noised, also draw how much (uniformly) and the noise.

    Keyed generators (seed, step, sample) make training independent of how a batch is shared out.

    Args:
        z0: Clean latents [b, c, n]; gives shape, dtype and device.
        num_timesteps: T of the schedule.
        prefix_prob: Chance of training with the prefix (lambda of Sec. 3.3).
        generators: One per sample, on any device.
        prefix_noise: Largest standard deviation of the noise on the prefix.
    """
    if len(generators) != len(z0):
        raise ValueError(f"{len(generators)} generators for a batch of {len(z0)}")
    rows = [
        (
            torch.randint(num_timesteps, (), generator=each, device=each.device),
            torch.randn(z0.shape[1:], generator=each, device=each.device),
            torch.rand((), generator=each, device=each.device) < prefix_prob,
            *_prefix_noise(z0, prefix_noise, each),
        )
        for each in generators
    ]
    t, eps, keep, level, prefix_eps = (torch.stack(column) for column in zip(*rows, strict=True))
    return Draws(t.to(z0.device), eps.to(z0), keep.to(z0.device), level.to(z0), prefix_eps.to(z0))


def _prefix_noise(z0: Tensor, largest: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a level and noise of one prefix; without any, nothing is drawn."""
    if not largest:
        return torch.zeros((), device=generator.device), torch.zeros(1, 1, device=generator.device)
    level = largest * torch.rand((), generator=generator, device=generator.device)
    return level, torch.randn(z0.shape[1:], generator=generator, device=generator.device)


def drop_labels(
    labels: Tensor, dropout: float, null: int, generators: Sequence[torch.Generator]
) -> Tensor:
    """Replace labels int64 [b] by the null class, each with chance dropout (Ho and Salimans 2022).

    Each sample's coin comes from its own generator, after all its other draws.
    """
    coins = [torch.rand((), generator=each, device=each.device) for each in generators]
    dropped = torch.stack(coins).to(labels.device) < dropout
    return torch.where(dropped, null, labels)


def mask_prefix(z_prefix: Tensor, keep: Tensor, available: Tensor | None = None) -> Tensor:
    """Zero the prefix [b, c, n] of the samples that are not kept or have none (the null prefix).

    A prefix that is not available may hold anything, even NaN.
    """
    if available is not None:
        keep = keep & available
    return torch.where(keep[:, None, None], z_prefix, torch.zeros_like(z_prefix))


def draw_prefix(
    z_prefix: Tensor,
    prefix_prob: float,
    generator: torch.Generator,
    available: Tensor | None = None,
) -> Tensor:
    """Keep each sample's prefix with chance prefix_prob, else zeros (joint training, Sec. 3.3).

    The published implementation tosses one coin per iteration; one per sample has the same mean
    and less variance.

    Args:
        z_prefix: Latents of the previous clips [b, c, n].
        prefix_prob: Chance of training with the prefix.
        generator: Where the coins come from.
        available: bool [b], False where a sample has no previous clip.
    """
    coins = torch.rand(len(z_prefix), generator=generator, device=generator.device)
    return mask_prefix(z_prefix, (coins < prefix_prob).to(z_prefix.device), available)


def squared_error(prediction: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each sample [b], in float32 at least."""
    difference = prediction.to(torch.promote_types(prediction.dtype, torch.float32)) - wanted
    return difference.square().flatten(1).mean(1)


def diffusion_loss(
    denoise: Denoise,
    schedule: Schedule,
    z0: Tensor,
    z_prefix: Tensor | None,
    t: Tensor,
    eps: Tensor,
    objective: Objective = "eps",
    min_snr: float = 0.0,
) -> Tensor:
    """Loss of each sample [b] (Sec. 3.3): |target - denoise(z_t, t, z_prefix)|^2, mean over c, n.

    Args:
        denoise: Callable (z_t, t, z_prefix) -> prediction; a prefix of zeros or None is the null.
        schedule: Noise levels.
        z0: Clean latents [b, c, n].
        z_prefix: Prefix latents [b, c, n], already masked, or None.
        t: Timesteps, int64 [b].
        eps: Noise [b, c, n].
        objective: What the network predicts.
        min_snr: gamma of the min-SNR weighting; 0 weighs all timesteps the same.
    """
    prediction = denoise(q_sample(schedule, z0, t, eps), t, z_prefix)
    error = squared_error(prediction, target(objective, schedule, z0, t, eps))
    if not min_snr:
        return error
    return error * min_snr_weight(objective, schedule, t, min_snr).to(error.dtype)
