"""Samplers that draw noise: pure loops from z_T to z0. Prediction and noise come in as callables.

Axes: b batch, c latent channels, n flat latent length. z_T, z_t, z0: [b, c, n]. Steps are counted
k = 1..num_steps; t is the trained timestep a step starts from. The coefficients of all steps are
computed once, in float64, and reach the device as scalars: a step never waits for the device.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from pvdm_cli.diffusion.objective import Objective, eps_from, x0_from
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.diffusion.steps import Spacing, Step, plan

Predict = Callable[[Tensor, Tensor], Tensor]  # (z_t, t int64 [b]) -> prediction like z_t
Draw = Callable[[int], Tensor]  # step k -> N(0, I) like z_t
OnStep = Callable[[int, int], None]  # (step k, num_steps), after the step
Bounds = tuple[Tensor, Tensor]  # least and greatest z0, broadcast against it
Variance = Literal["small", "large"]  # beta-tilde, beta (DDPM, Sec. 3.2)


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
    spacing: Spacing = "published",
    strength: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 with DDIM (Song et al. 2021, eq. 12); draw(k) gives the noise of step k.

    As in the published implementation z0 is clamped to [-1, 1] but eps stays what the network
    said, and the last step returns z0.

    Args:
        predict: Callable (z_t, t) -> what `objective` names, at the same shape.
        z_T: Starting noise [b, c, n]; below strength 1 a noised z0, see `noised`.
        schedule: Noise levels.
        num_steps: Steps N, at most T.
        eta: 0 is deterministic, 1 has the variance of ancestral sampling.
        draw: Noise of step k in 1..N-1; not called at eta = 0.
        clamp: Clamp each predicted z0: True to [-1, 1], or to bounds of its own.
        objective: What `predict` returns: eps, x0, v or flow.
        spacing: Which timesteps are visited.
        strength: Share of the noise levels the run starts from; see `steps.plan`.
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
    for step in plan(schedule, num_steps, spacing, strength):
        prediction = ask(predict, z_t, step.t)
        z0 = x0_from(objective, prediction, z_t, step.signal, step.noise)
        z0 = clamped(z0, clamp)
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
    spacing: Spacing = "published",
    strength: float = 1.0,
    variance: Variance = "small",
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 by ancestral steps (Algorithm 1; DDPM eq. 7): posterior mean plus noise.

    Predicts z0, clamps it, and takes the mean of q(z_next | z_t, z0); without the clamp that mean
    is (z_t - beta_t / sqrt(1 - abar_t) * eps) / sqrt(1 - beta_t). Fewer steps than T walk the
    chain of the timesteps kept, whose betas follow from the ratios of abar.

    Args:
        predict: Callable (z_t, t) -> what `objective` names, at the same shape.
        z_T: Starting noise [b, c, n]; below strength 1 a noised z0, see `noised`.
        schedule: Noise levels.
        draw: Noise of step k in 1..N-1.
        num_steps: Steps N; all T when None.
        clamp: Clamp each predicted z0: True to [-1, 1], or to bounds of its own.
        objective: What `predict` returns: eps, x0, v or flow.
        spacing: Which timesteps are visited.
        strength: Share of the noise levels the run starts from; see `steps.plan`.
        variance: small is that of q(z_next | z_t, z0), right where z0 is known; large is beta,
            right where z0 ~ N(0, I) (DDPM, Sec. 3.2).
        on_step: Called as (k, N) after each step.

    Returns:
        z0 [b, c, n].

    Raises:
        ValueError: If num_steps is not in 1..T.
    """
    num_steps = schedule.num_timesteps if num_steps is None else num_steps
    z_t = z_T
    for step in plan(schedule, num_steps, spacing, strength):
        prediction = ask(predict, z_t, step.t)
        z0 = x0_from(objective, prediction, z_t, step.signal, step.noise)
        z0 = clamped(z0, clamp)
        if step.k < num_steps:
            std = step.forward_std if variance == "large" else step.posterior_std
            z_t = posterior_mean(step, z0, z_t) + std * draw(step.k)
        else:
            z_t = z0
        if on_step is not None:
            on_step(step.k, num_steps)
    return z_t


def noised(z0: Tensor, eps: Tensor, step: Step) -> Tensor:
    """Noise z0 to where a step starts (DDPM eq. 4): the start of a run below strength 1."""
    return step.signal * z0 + step.noise * eps


def clamped(z0: Tensor, clamp: bool | Bounds) -> Tensor:
    """Clamp z0 if it is asked for."""
    if isinstance(clamp, bool):
        return z0.clamp(-1, 1) if clamp else z0
    return z0.clamp(*clamp)


def ask(predict: Predict, z_t: Tensor, t: int) -> Tensor:
    """Call predict with the timestep repeated for every row; the answer in the dtype of z_t.

    It is copied: a network that runs as a CUDA graph writes its next answer into the same memory.
    """
    prediction = predict(z_t, torch.full((len(z_t),), t, device=z_t.device))
    return prediction.to(z_t.dtype, copy=True)
