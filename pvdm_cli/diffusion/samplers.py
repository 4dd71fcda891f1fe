"""Samplers: pure loops from z_T to z0. The prediction and the noise come in as callables.

Axes: b batch, c latent channels, n flat latent length. z_T, z_t, z0: [b, c, n]. Steps are counted
k = 1..num_steps; t is the trained timestep a step starts from. The coefficients of all steps are
computed once, in float64, and reach the device as scalars: a step never waits for the device.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from pvdm_cli.diffusion.objective import Objective, eps_from, x0_from
from pvdm_cli.diffusion.schedule import Schedule

Predict = Callable[[Tensor, Tensor], Tensor]  # (z_t, t int64 [b]) -> prediction like z_t
Draw = Callable[[int], Tensor]  # step k -> N(0, I) like z_t
OnStep = Callable[[int, int], None]  # (step k, num_steps), after the step
Bounds = tuple[Tensor, Tensor]  # least and greatest z0, broadcast against it


def timesteps(num_timesteps: int, num_steps: int) -> list[int]:
    """Return the num_steps + 1 timesteps a sampler visits, from T-1 down to -1 (which is z0).

    The published spacing: linspace(-1, T-1, N+1) truncated to integers, reversed, e.g. 999, 899,
    ..., 99, -1 for 10 of 1000. Computed in integers: the published float32 linspace falls one
    short at a few counts that do not divide T, e.g. at 26 steps.

    Raises:
        ValueError: If num_steps is not in 1..num_timesteps.
    """
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps={num_steps} is not in 1..{num_timesteps}")
    return [k * num_timesteps // num_steps - 1 for k in range(num_steps, -1, -1)]


class Step(NamedTuple):
    """One jump from timestep t to the next one kept: abar before and after."""

    k: int
    t: int
    abar: float
    abar_next: float  # 1 at the last step

    @property
    def signal(self) -> float:
        """Weight of z0 in z_t."""
        return self.abar**0.5

    @property
    def noise(self) -> float:
        """Weight of eps in z_t."""
        return (1 - self.abar) ** 0.5

    @property
    def posterior_std(self) -> float:
        """Standard deviation of q(z_next | z_t, z0) (DDPM eq. 7; DDIM eq. 16 at eta = 1)."""
        alpha = self.abar / self.abar_next
        return ((1 - alpha) * (1 - self.abar_next) / (1 - self.abar)) ** 0.5


def plan(schedule: Schedule, num_steps: int) -> list[Step]:
    """List the steps of a run."""
    visited = timesteps(schedule.num_timesteps, num_steps)
    abar = schedule.alphas_cumprod.tolist()
    return [
        Step(k, t, abar[t], abar[t_next] if t_next >= 0 else 1.0)
        for k, (t, t_next) in enumerate(pairwise(visited), start=1)
    ]


def posterior_mean(step: Step, z0: Tensor, z_t: Tensor) -> Tensor:
    """Mean of q(z_next | z_t, z0) (DDPM eq. 7), for any two timesteps of the chain."""
    alpha = step.abar / step.abar_next
    from_z0 = step.abar_next**0.5 * (1 - alpha) / (1 - step.abar)
    from_zt = alpha**0.5 * (1 - step.abar_next) / (1 - step.abar)
    return from_z0 * z0 + from_zt * z_t


def ddim_sample(
    predict: Predict,
    z_T: Tensor,
    schedule: Schedule,
    *,
    num_steps: int,
    eta: float = 0.0,
    draw: Draw | None = None,
    clamp: bool | Bounds = True,
    objective: Objective = "eps",
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 with DDIM (Song et al. 2021, eq. 12); draw(k) gives the noise of step k.

    As in the published implementation z0 is clamped to [-1, 1] but eps stays what the network
    said, and the last step returns z0.

    Args:
        predict: Callable (z_t, t) -> what `objective` names, at the same shape.
        z_T: Starting noise [b, c, n].
        schedule: Noise levels.
        num_steps: Steps N, at most T.
        eta: 0 is deterministic, 1 has the variance of ancestral sampling.
        draw: Noise of step k in 1..N-1; not called at eta = 0.
        clamp: Clamp each predicted z0: True to [-1, 1], or to bounds of its own.
        objective: What `predict` returns: eps, x0 or v.
        on_step: Called as (k, N) after each step.

    Returns:
        z0 [b, c, n].

    Raises:
        ValueError: If eta is not in 0..1, or positive without draw, or num_steps not in 1..T.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is not in 0..1")
    if eta > 0 and draw is None:
        raise ValueError(f"eta={eta} needs draw, the noise of each step")
    z_t = z_T
    for step in plan(schedule, num_steps):
        prediction = _ask(predict, z_t, step.t)
        z0 = x0_from(objective, prediction, z_t, step.signal, step.noise)
        z0 = _clamped(z0, clamp)
        if step.k < num_steps:
            eps = eps_from(objective, prediction, z_t, step.signal, step.noise)
            sigma = eta * step.posterior_std
            direction = (1 - step.abar_next - sigma**2) ** 0.5
            z_t = step.abar_next**0.5 * z0 + direction * eps
            if draw is not None and sigma > 0:
                z_t = z_t + sigma * draw(step.k)
        else:
            z_t = z0
        if on_step is not None:
            on_step(step.k, num_steps)
    return z_t


def ddpm_sample(
    predict: Predict,
    z_T: Tensor,
    schedule: Schedule,
    *,
    draw: Draw,
    num_steps: int | None = None,
    clamp: bool | Bounds = True,
    objective: Objective = "eps",
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 by ancestral steps (Algorithm 1; DDPM eq. 7): posterior mean plus noise.

    Predicts z0, clamps it, and takes the mean of q(z_next | z_t, z0); without the clamp that mean
    is (z_t - beta_t / sqrt(1 - abar_t) * eps) / sqrt(1 - beta_t). Fewer steps than T walk the
    chain of the timesteps kept, whose betas follow from the ratios of abar.

    Args:
        predict: Callable (z_t, t) -> what `objective` names, at the same shape.
        z_T: Starting noise [b, c, n].
        schedule: Noise levels.
        draw: Noise of step k in 1..N-1.
        num_steps: Steps N; all T when None.
        clamp: Clamp each predicted z0: True to [-1, 1], or to bounds of its own.
        objective: What `predict` returns: eps, x0 or v.
        on_step: Called as (k, N) after each step.

    Returns:
        z0 [b, c, n].

    Raises:
        ValueError: If num_steps is not in 1..T.
    """
    num_steps = schedule.num_timesteps if num_steps is None else num_steps
    z_t = z_T
    for step in plan(schedule, num_steps):
        prediction = _ask(predict, z_t, step.t)
        z0 = x0_from(objective, prediction, z_t, step.signal, step.noise)
        z0 = _clamped(z0, clamp)
        if step.k < num_steps:
            z_t = posterior_mean(step, z0, z_t) + step.posterior_std * draw(step.k)
        else:
            z_t = z0
        if on_step is not None:
            on_step(step.k, num_steps)
    return z_t


def _clamped(z0: Tensor, clamp: bool | Bounds) -> Tensor:
    """Clamp z0 if it is asked for."""
    if isinstance(clamp, bool):
        return z0.clamp(-1, 1) if clamp else z0
    return z0.clamp(*clamp)


def _ask(predict: Predict, z_t: Tensor, t: int) -> Tensor:
    """Call predict with the timestep repeated for every row; the answer in the dtype of z_t."""
    return predict(z_t, torch.full((len(z_t),), t, device=z_t.device)).to(z_t.dtype)
