"""Solvers of the probability flow ODE: from z_T to z0 in few steps, without noise on the way.

All of them predict z0 and jump by z_next = keep z_t + gain D, exact where z0 is D all along the jump
(the first order of Lu et al. 2022); they differ in D, their estimate of z0 along the jump. In this
form nothing divides by the signal, so a start without any (zero terminal SNR, flow matching) and
the landing on z0 are steps like the others.

Axes: b batch, c latent channels, n flat latent length. z_T, z_t, z0: [b, c, n]. As in `samplers` the
coefficients are computed in float64 before they meet a tensor: a step never waits for the device.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from pvdm_cli.diffusion.objective import Objective, x0_from
from pvdm_cli.diffusion.samplers import Bounds, OnStep, Predict, ask, clamped
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.diffusion.steps import Spacing, Step, plan


def euler_sample(
    predict: Predict,
    z_T: Tensor,
    schedule: Schedule,
    *,
    num_steps: int,
    clamp: bool | Bounds = True,
    objective: Objective = "eps",
    spacing: Spacing = "published",
    strength: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 with Euler's method along the straight path from z_T to z0 (Lipman et al. 2023).

    D is the predicted z0. The same as DDIM at eta = 0 where nothing is clamped; where z0 is, the
    direction follows from the clamped one.

    Args:
        predict: Callable (z_t, t) -> what `objective` names, at the same shape.
        z_T: Starting noise [b, c, n]; below strength 1 what `noised` makes.
        schedule: Noise levels.
        num_steps: Steps N, at most T.
        clamp: Clamp each predicted z0: True to [-1, 1], or to bounds of its own.
        objective: What `predict` returns: eps, x0, v or flow.
        spacing: Which timesteps are visited.
        strength: Share of the noise levels the run starts from; see `steps.plan`.
        on_step: Called as (k, N) after each step.

    Returns:
        z0 [b, c, n].

    Raises:
        ValueError: If num_steps is not in 1..T.
    """
    z_t = z_T
    for step in plan(schedule, num_steps, spacing, strength):
        z_t = jump(step, z_t, _z0(predict, z_t, step, objective, clamp))
        if on_step is not None:
            on_step(step.k, num_steps)
    return z_t


def heun_sample(
    predict: Predict,
    z_T: Tensor,
    schedule: Schedule,
    *,
    num_steps: int,
    clamp: bool | Bounds = True,
    objective: Objective = "eps",
    spacing: Spacing = "published",
    strength: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 with Heun's method along the straight path; arguments as of `euler_sample`.

    The mean of the velocities at both ends of an Euler step (Karras et al. 2022, algorithm 1) in
    tau = noise / (signal + noise), the time of flow matching. Two calls a step but the last, which
    is Euler's: 2N - 1 calls, and on_step is called as (call, 2N - 1) after each.
    """
    steps, z_t, calls = plan(schedule, num_steps, spacing, strength), z_T, 0
    for step, after in zip(steps, [*steps[1:], None], strict=True):
        z0 = _z0(predict, z_t, step, objective, clamp)
        calls = _told(on_step, calls, 2 * len(steps) - 1)
        z_next = jump(step, z_t, z0)
        if after is not None:
            change = _z0(predict, z_next, after, objective, clamp) - z0
            calls = _told(on_step, calls, 2 * len(steps) - 1)
            z_next = jump(step, z_t, z0 + _tau(step) / (2 * _tau(after)) * change)
        z_t = z_next
    return z_t


def dpmpp_sample(
    predict: Predict,
    z_T: Tensor,
    schedule: Schedule,
    *,
    num_steps: int,
    clamp: bool | Bounds = True,
    objective: Objective = "eps",
    spacing: Spacing = "published",
    strength: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 with DPM-Solver++(2M) (Lu et al. 2022, algorithm 2); arguments as of `euler_sample`.

    D is the predicted z0 carried on, in lambda, from the one before to the middle of the jump. The
    first step and the last have D = z0: one has nothing before it, the other has no middle.
    """
    z_t = z_T
    before: Step | None = None
    z0_before: Tensor | None = None
    for step in plan(schedule, num_steps, spacing, strength):
        z0 = _z0(predict, z_t, step, objective, clamp)
        z_t = jump(step, z_t, _carried_on(step, before, z0, z0_before))
        before, z0_before = step, z0
        if on_step is not None:
            on_step(step.k, num_steps)
    return z_t


def unipc_sample(
    predict: Predict,
    z_T: Tensor,
    schedule: Schedule,
    *,
    num_steps: int,
    clamp: bool | Bounds = True,
    objective: Objective = "eps",
    spacing: Spacing = "published",
    strength: float = 1.0,
    on_step: OnStep | None = None,
) -> Tensor:
    """Sample z0 with UniPC of order 2, B2 (Zhao et al. 2023, algorithms 1, 2); see `euler_sample`.

    The predictor is the step of DPM-Solver++(2M). Once the network has been asked at the point it
    leads to, the corrector makes the jump again with that answer: no call more.
    """
    z_t = z_T
    before: Step | None = None
    z0_before: Tensor | None = None
    correct: _Corrector | None = None
    for step in plan(schedule, num_steps, spacing, strength):
        z0 = _z0(predict, z_t, step, objective, clamp)
        if correct is not None:
            z_t = correct(z0)
        correct = _Corrector(step, before, z_t, z0, z0_before)
        z_t = jump(step, z_t, _carried_on(step, before, z0, z0_before))
        before, z0_before = step, z0
        if on_step is not None:
            on_step(step.k, num_steps)
    return z_t


def jump(step: Step, z_t: Tensor, d: Tensor) -> Tensor:
    """Solve the ODE from z_t over one step where z0 is d all along."""
    return step.keep * z_t + step.gain * d


def asked(steps: Sequence[Step], *, twice: bool) -> list[int]:
    """Timesteps of the network calls of a run, in order; `twice` as Heun's method does."""
    first, *others = [step.t for step in steps]
    return [first, *(t for t in others for _ in range(1 + twice))]


class _Corrector:
    """UniC of order 2 (Zhao et al. 2023, algorithm 1): a jump again, once z0 is known at its end."""

    def __init__(
        self, step: Step, before: Step | None, z_t: Tensor, z0: Tensor, z0_before: Tensor | None
    ) -> None:
        self.step, self.z_t, self.z0, self.z0_before = step, z_t, z0, z0_before
        self.ratio = _ratio(step, before)

    def __call__(self, z0_next: Tensor) -> Tensor:
        """Return the corrected z_next [b, c, n]."""
        of_past, of_next = corrector_weights(self.step.h, self.ratio)
        d = self.z0 + of_next * (z0_next - self.z0)
        if of_past and self.z0_before is not None:
            d = d + of_past * self.ratio * (self.z0 - self.z0_before)
        return jump(self.step, self.z_t, d)


def corrector_weights(h: float, ratio: float) -> tuple[float, float]:
    """Weights of the slope before a jump and of the change over it (Zhao et al. 2023, B2).

    They make the jump exact where z0 is a parabola in lambda through its three values. Without a
    value before (ratio 0) the change has weight 1/2, as there.

    Args:
        h: Length of the jump in lambda.
        ratio: h over that of the jump before; 0 without one.
    """
    if not ratio:
        return 0.0, 0.5
    whole = -math.expm1(-h)
    linear = (1 - whole / h) / whole
    square = 2 * (0.5 - (1 - whole / h) / h) / whole
    of_past = (linear - square) / (1 + 1 / ratio)
    return of_past, linear - of_past


def _carried_on(step: Step, before: Step | None, z0: Tensor, z0_before: Tensor | None) -> Tensor:
    """Carry the predicted z0 on to the middle of the jump (Lu et al. 2022, algorithm 2)."""
    ratio = _ratio(step, before)
    return z0 + ratio / 2 * (z0 - z0_before) if ratio and z0_before is not None else z0


def _ratio(step: Step, before: Step | None) -> float:
    """Length of a jump in lambda over that of the one before; 0 where either is infinite."""
    if before is None or math.isinf(step.h) or math.isinf(before.h):
        return 0.0
    return step.h / before.h


def _tau(step: Step) -> float:
    """Time of flow matching at the start of a step: 1 is noise, 0 is z0."""
    return step.noise / (step.signal + step.noise)


def _z0(
    predict: Predict, z_t: Tensor, step: Step, objective: Objective, clamp: bool | Bounds
) -> Tensor:
    """Ask for the z0 of z_t at the start of a step."""
    prediction = ask(predict, z_t, step.t)
    return clamped(x0_from(objective, prediction, z_t, step.signal, step.noise), clamp)


def _told(on_step: OnStep | None, calls: int, total: int) -> int:
    """Tell of one more call; return how many there were."""
    if on_step is not None:
        on_step(calls + 1, total)
    return calls + 1
