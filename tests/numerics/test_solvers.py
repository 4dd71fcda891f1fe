"""Solvers without noise: closed forms, diffusers' schedulers, and their order on a known target."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from mixture import STARTS, arrivals, score_network
from torch import Tensor

from pvdm_cli.config import DiffusionConfig
from pvdm_cli.diffusion.objective import Objective, q_sample, target
from pvdm_cli.diffusion.samplers import Predict, ddim_sample
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.diffusion.solvers import (
    asked,
    corrector_weights,
    dpmpp_sample,
    euler_sample,
    heun_sample,
    unipc_sample,
)
from pvdm_cli.diffusion.steps import SPACINGS, Spacing, plan
from pvdm_cli.runtime import generator

SCHEDULE, FLOW = Schedule.from_config(DiffusionConfig()), Schedule.flow(1000)
THEIR_NAMES: dict[Objective, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler": euler_sample,
    "heun": heun_sample,
    "dpm++": dpmpp_sample,
    "unipc": unipc_sample,
}
SHAPE = (3, 4, 47)


def noise(k: int) -> Tensor:
    """The noise of number k, float64."""
    return torch.randn(SHAPE, generator=generator("cpu", 7, k), dtype=torch.float64)


def schedule_of(objective: Objective) -> Schedule:
    """A schedule that ends without signal, for the objectives that can."""
    if objective == "flow":
        return FLOW
    return SCHEDULE if objective == "eps" else SCHEDULE.without_terminal_signal()


def toy(objective: Objective, schedule: Schedule) -> Predict:
    """A denoiser that is not linear, depends on t, and whose z0 leaves [-1, 1] now and then."""
    exact = score_network(schedule, objective)

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        return exact(z_t, t) + 0.2 * torch.sin(3 * z_t) * (t / 1000)[:, None, None]

    return predict


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return ((found - expected).norm() / expected.norm()).item()


# Closed forms ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("objective", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_solver_told_the_truth_stays_on_its_path_and_lands_on_z0(
    name: str, objective: Objective, spacing: Spacing
) -> None:
    # v, x0 and flow start where no signal is left: nothing may divide by it.
    schedule = schedule_of(objective)
    z0, eps = noise(1).tanh(), noise(2)
    for num_steps in (1, 2, 7):
        steps = plan(schedule, num_steps, spacing)
        seen: list[int] = []

        def predict(z_t: Tensor, t: Tensor, seen: list[int] = seen) -> Tensor:
            torch.testing.assert_close(z_t, q_sample(schedule, z0, t, eps))
            seen.append(int(t[0]))
            return target(objective, schedule, z0, t, eps)

        start = q_sample(schedule, z0, torch.full((3,), steps[0].t), eps)
        found = SOLVERS[name](
            predict, start, schedule, num_steps=num_steps, objective=objective, spacing=spacing
        )
        torch.testing.assert_close(found, z0)
        assert seen == asked(steps, twice=name == "heun")


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("objective", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 20])
def test_nothing_is_divided_by_zero(
    name: str, objective: Objective, spacing: Spacing, num_steps: int
) -> None:
    schedule = Schedule.flow(20) if objective == "flow" else Schedule(SCHEDULE.betas[::50])
    if objective in ("x0", "v"):
        schedule = schedule.without_terminal_signal()
        assert schedule.alphas_cumprod[-1] == 0
    found = SOLVERS[name](
        lambda z, t: z.sin(), noise(0), schedule,
        num_steps=num_steps, objective=objective, spacing=spacing,
    )  # fmt: skip
    assert found.isfinite().all()
    assert found.abs().max() <= 1  # the last step lands on the clamped z0


@pytest.mark.parametrize("objective", ["eps", "x0", "v", "flow"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_is_ddim_without_noise_where_nothing_is_clamped(
    objective: Objective, spacing: Spacing
) -> None:
    schedule = schedule_of(objective)
    options = {"num_steps": 13, "clamp": False, "objective": objective, "spacing": spacing}
    predict = toy(objective, schedule)
    euler = euler_sample(predict, noise(0), schedule, **options)
    torch.testing.assert_close(euler, ddim_sample(predict, noise(0), schedule, eta=0.0, **options))


@pytest.mark.parametrize("clamp", [True, (-0.5 * torch.ones(47), 0.7 * torch.ones(47))])
@pytest.mark.parametrize("name", ["euler", "dpm++"])
def test_under_the_clamp_the_direction_follows_from_the_clamped_z0(
    name: str, clamp: bool | tuple[Tensor, Tensor]
) -> None:
    low, high = (-1.0, 1.0) if clamp is True else (-0.5, 0.7)
    eps, z_T, path = noise(1), 3 * noise(2), []

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        path.append(z_t)
        return eps

    SOLVERS[name](predict, z_T, SCHEDULE, num_steps=2, clamp=clamp)
    a, a_next = SCHEDULE.alphas_cumprod[[999, 499]]
    z0 = ((z_T - (1 - a).sqrt() * eps) / a.sqrt()).clamp(low, high)
    assert ((z0 == low) | (z0 == high)).any()  # the clamp bites
    direction = (z_T - a.sqrt() * z0) / (1 - a).sqrt()
    torch.testing.assert_close(path[1], a_next.sqrt() * z0 + (1 - a_next).sqrt() * direction)


def test_second_step_of_dpm_solver_is_the_published_formula() -> None:
    z_T, answers, path = noise(0), [noise(1), noise(2), noise(3)], []

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        path.append(z_t)
        return answers[len(path) - 1]

    dpmpp_sample(predict, z_T, SCHEDULE, num_steps=3, clamp=False, objective="x0")
    abar = SCHEDULE.alphas_cumprod[[999, 665, 332]]
    lam = (abar / (1 - abar)).log() / 2
    h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    d = (1 + 1 / (2 * r)) * answers[1] - 1 / (2 * r) * answers[0]
    ratio = ((1 - abar[2]) / (1 - abar[1])).sqrt()
    expected = ratio * path[1] - abar[2].sqrt() * ((-h).exp() - 1) * d
    torch.testing.assert_close(path[2], expected)


@pytest.mark.parametrize("h", [0.05, 0.7, 4.0])
@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("power", [0, 1, 2])
def test_the_corrector_is_exact_for_parabolas(h: float, ratio: float, power: int) -> None:
    # z0 = l^power along the jump, l from 0 to h: gain D must be the integral of e^(l - h) l^power.
    before, now, after = (-h / ratio) ** power, 0.0**power, h**power
    of_past, of_next = corrector_weights(h, ratio)
    d = now + of_past * ratio * (now - before) + of_next * (after - now)
    l = np.linspace(0, h, 200_001)
    integral = np.trapezoid(np.exp(l - h) * l**power, l)
    assert d * (1 - math.exp(-h)) == pytest.approx(integral, rel=1e-6)


def test_the_corrector_without_a_step_before_takes_the_mean() -> None:
    assert corrector_weights(0.3, 0.0) == (0.0, 0.5)


@pytest.mark.parametrize("name", SOLVERS)
def test_progress_is_told_after_each_network_call(name: str) -> None:
    told: list[tuple[int, int]] = []
    SOLVERS[name](
        lambda z, t: z, noise(0), SCHEDULE, num_steps=4, on_step=lambda k, n: told.append((k, n))
    )
    total = 7 if name == "heun" else 4
    assert told == [(k, total) for k in range(1, total + 1)]


@pytest.mark.parametrize("name", SOLVERS)
def test_a_half_precision_prediction_leaves_the_state_in_its_own_dtype(name: str) -> None:
    found = SOLVERS[name](lambda z, t: z.bfloat16(), noise(0).float(), SCHEDULE, num_steps=3)
    assert found.dtype == torch.float32


# diffusers ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # diffusers with numpy 2
@pytest.mark.parametrize(
    ("solver", "scheduler", "options"),
    [
        (dpmpp_sample, DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++"}),
        (unipc_sample, UniPCMultistepScheduler, {"solver_type": "bh2", "predict_x0": True}),
    ],
)
@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
@pytest.mark.parametrize("num_steps", [4, 10, 50])
def test_multistep_solvers_agree_with_diffusers(
    solver: Callable[..., Tensor],
    scheduler: type,
    options: dict[str, object],
    objective: Objective,
    spacing: Spacing,
    num_steps: int,
) -> None:
    # Not compared: the clamp, which they do not have (theirs is the threshold of Imagen).
    theirs = scheduler(
        1000,
        trained_betas=SCHEDULE.betas.numpy(),
        solver_order=2,
        prediction_type=THEIR_NAMES[objective],
        timestep_spacing=spacing,
        final_sigmas_type="zero",
        **options,
    )
    theirs.set_timesteps(num_steps)
    steps = plan(SCHEDULE, num_steps, spacing)
    their_own = theirs.timesteps.tolist()
    if spacing == "leading":  # theirs divide T by N + 1: put ours in their place
        theirs.timesteps = torch.tensor([step.t for step in steps])
        sigmas = [(1 / step.abar - 1) ** 0.5 for step in steps]
        theirs.sigmas = torch.tensor([*sigmas, 0.0], dtype=torch.float32)
    else:
        assert their_own == [step.t for step in steps]
    predict, z = toy(objective, SCHEDULE), noise(0)
    for t in theirs.timesteps:
        z = theirs.step(predict(z, t.expand(3)), t, z).prev_sample
    found = solver(
        predict, noise(0), SCHEDULE,
        num_steps=num_steps, clamp=False, objective=objective, spacing=spacing,
    )  # fmt: skip
    assert relative(found, z.double()) < 1e-4


@pytest.mark.parametrize("num_steps", [1, 4, 10, 50])
@pytest.mark.parametrize("twice", [False, True])
def test_flow_matching_agrees_with_diffusers(num_steps: int, twice: bool) -> None:
    # Their own levels fall from 1 to 1/T in N points; ours, k/N, are put in their place. Their state
    # is the point (1 - tau) z0 + tau eps itself, ours is scaled to unit variance.
    taus = torch.arange(num_steps, 0, -1) / num_steps
    if twice:
        theirs = FlowMatchHeunDiscreteScheduler(1000)
        theirs.set_timesteps(num_steps)
        taus_asked = torch.cat([taus[:1], taus[1:].repeat_interleave(2)])
        theirs.sigmas = torch.cat([taus_asked, torch.zeros(1)])
        theirs.timesteps = 1000 * taus_asked
    else:
        theirs = FlowMatchEulerDiscreteScheduler(1000)
        theirs.set_timesteps(sigmas=taus.tolist())
        taus_asked = taus
    velocity, z = toy("flow", FLOW), noise(0)
    for tau, t in zip(taus_asked.tolist(), theirs.timesteps, strict=True):
        unit = z / ((1 - tau) ** 2 + tau**2) ** 0.5
        z = theirs.step(velocity(unit, torch.full((3,), round(1000 * tau) - 1)), t, z).prev_sample
    solver = heun_sample if twice else euler_sample
    found = solver(velocity, noise(0), FLOW, num_steps=num_steps, clamp=False, objective="flow")
    assert relative(found, z.double()) < 1e-4


# Order -------------------------------------------------------------------------------------


def error(name: str, objective: Objective, num_steps: int, spacing: Spacing) -> float:
    """Root mean square distance from where the ODE arrives, known in closed form."""
    schedule = FLOW if objective == "flow" else SCHEDULE
    found = {**SOLVERS, "ddim": ddim_sample}[name](
        score_network(schedule, objective), STARTS, schedule,
        num_steps=num_steps, clamp=False, objective=objective, spacing=spacing,
    )  # fmt: skip
    start = plan(schedule, num_steps, spacing)[0].abar
    return (found - arrivals(STARTS, start)).square().mean().sqrt().item()


def order(name: str, objective: Objective, counts: list[int], spacing: Spacing) -> float:
    """Slope of the error against the steps, by least squares in their logarithms."""
    errors = [error(name, objective, count, spacing) for count in counts]
    return -float(np.polyfit(np.log(counts), np.log(errors), 1)[0])


@pytest.mark.parametrize(
    ("name", "spacing", "low", "high"),
    [
        ("ddim", "published", 0.95, 1.05),
        ("euler", "published", 0.95, 1.05),
        ("heun", "published", 1.9, 2.1),
        ("unipc", "published", 1.8, 2.3),
        ("dpm++", "published", 1.5, 2.1),  # lambda's steps grow without end at both ends of tau
        ("euler", "karras", 0.95, 1.05),
        ("heun", "karras", 1.9, 2.1),
        ("dpm++", "karras", 1.9, 2.4),
        (
            "unipc",
            "karras",
            2.7,
            3.4,
        ),  # UniC raises the order by one (Zhao et al. 2023)
    ],
)
def test_each_solver_has_its_order_on_a_mixture_whose_score_is_known(
    name: str, spacing: Spacing, low: float, high: float
) -> None:
    assert low < order(name, "flow", [25, 50, 100, 200], spacing) < high


@pytest.mark.parametrize("name", ["heun", "dpm++", "unipc"])
def test_at_the_published_levels_the_last_jump_makes_every_solver_first_order(name: str) -> None:
    # Their noise rises as the square root of t: the last of N jumps starts at a variance of about
    # 1/N and takes z0 as it is told. Karras' spacing spends its steps there.
    assert 0.7 < order(name, "eps", [25, 50, 100, 200], "published") < 1.1
    assert error(name, "eps", 25, "karras") < 0.2 * error(name, "eps", 25, "published")


def test_the_last_noise_level_bounds_what_any_solver_can_reach() -> None:
    for name in ("heun", "dpm++", "unipc"):
        assert 1e-3 < error(name, "eps", 100, "karras") < 2.5e-3
