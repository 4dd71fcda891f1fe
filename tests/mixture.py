"""A target whose diffusion is known: z0 of a mixture of two Gaussians, each number for itself.

In one dimension the probability flow ODE keeps every point at its quantile. So where a sampler
without noise must arrive is known from where it starts, and its error is measured without a reference
solver.
"""

import torch
from torch import Tensor

from pvdm_cli.diffusion.objective import Objective, target
from pvdm_cli.diffusion.samplers import Predict
from pvdm_cli.diffusion.schedule import Schedule

WEIGHTS = torch.tensor([0.4, 0.6], dtype=torch.float64)
MEANS = torch.tensor([-0.5, 0.4], dtype=torch.float64)
STDS = torch.tensor([0.25, 0.3], dtype=torch.float64)
STARTS = torch.special.ndtri(torch.linspace(0.005, 0.995, 199, dtype=torch.float64)).view(1, 1, -1)


def score_network(schedule: Schedule, objective: Objective) -> Predict:
    """The best possible prediction of what the objective names: its mean given z_t."""

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        signal, noise = (scale[..., None] for scale in schedule.at(t, like=z_t))
        variance = signal**2 * STDS**2 + noise**2
        off = z_t[..., None] - signal * MEANS
        share = (WEIGHTS.log() - variance.log() / 2 - off**2 / (2 * variance)).softmax(-1)
        z0 = (share * (MEANS + signal * STDS**2 * off / variance)).sum(-1)
        eps = (share * noise * off / variance).sum(-1)
        return target(objective, schedule, z0, t, eps)

    return predict


def arrivals(starts: Tensor, abar: float) -> Tensor:
    """Where the ODE takes points at this abar: the same quantile of the target, by bisection."""
    quantile = _below(starts, abar)
    low, high = torch.full_like(starts, -10), torch.full_like(starts, 10)
    for _ in range(80):
        middle = (low + high) / 2
        small = _below(middle, 1.0) < quantile
        low, high = torch.where(small, middle, low), torch.where(small, high, middle)
    return (low + high) / 2


def _below(z: Tensor, abar: float) -> Tensor:
    """Probability below z at this abar."""
    spread = (abar * STDS**2 + 1 - abar).sqrt()
    return (WEIGHTS * torch.special.ndtr((z[..., None] - abar**0.5 * MEANS) / spread)).sum(-1)
