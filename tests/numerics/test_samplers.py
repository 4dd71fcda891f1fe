"""Samplers against closed forms, known Gaussian data and diffusers' schedulers."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from pvdm_cli.config import DiffusionConfig
from pvdm_cli.diffusion.objective import Objective, q_sample, target
from pvdm_cli.diffusion.samplers import Variance, ddim_sample, ddpm_sample
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.diffusion.steps import Step, plan, timesteps
from pvdm_cli.runtime import generator

SCHEDULE = Schedule.from_config(DiffusionConfig())
THEIR_NAMES: dict[Objective, str] = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
MEAN, STD = 0.4, 0.3


def noise(k: int, shape: tuple[int, ...] = (3, 4, 47)) -> Tensor:
    """The noise of step k, float64."""
    return torch.randn(shape, generator=generator("cpu", 7, k), dtype=torch.float64)


def exact(objective: Objective, z_t: Tensor, t: Tensor) -> Tensor:
    """The best possible prediction where z0 ~ N(MEAN, STD^2): E[eps], E[z0] or E[v] given z_t."""
    signal, sigma = SCHEDULE.at(t, like=z_t)
    centred = (z_t - signal * MEAN) / (signal**2 * STD**2 + sigma**2)
    z0, eps = MEAN + signal * STD**2 * centred, sigma * centred
    return target(objective, SCHEDULE, z0, t, eps)


@pytest.mark.parametrize("num_steps", [1, 2, 4, 5, 8, 10, 20, 50, 100, 125, 200, 250, 500, 1000])
def test_timesteps_are_the_published_ones_where_the_count_divides(num_steps: int) -> None:
    published = torch.linspace(-1, 999, num_steps + 1).int().tolist()
    assert timesteps(1000, num_steps) == published[::-1]


def test_timesteps_for_ten_steps_are_those_of_the_reference() -> None:
    assert timesteps(1000, 10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, -1]


@pytest.mark.parametrize("num_steps", [3, 7, 26, 60, 120, 333, 999])
def test_timesteps_never_repeat_and_truncate(num_steps: int) -> None:
    found = timesteps(1000, num_steps)
    assert (found[0], found[-1], len(found)) == (999, -1, num_steps + 1)
    assert all(a > b for a, b in pairwise(found))
    exactly = torch.linspace(-1, 999, num_steps + 1, dtype=torch.float64).flip(0)
    assert (torch.tensor(found) - exactly).abs().max() < 1


@pytest.mark.parametrize("num_steps", [0, 1001, -5])
def test_an_impossible_number_of_steps_is_refused(num_steps: int) -> None:
    with pytest.raises(ValueError, match=r"not in 1\.\.1000"):
        timesteps(1000, num_steps)


def test_ddim_with_the_true_noise_lands_on_z0_in_one_step() -> None:
    z0 = noise(1).tanh()
    eps = noise(2)
    z_T = q_sample(SCHEDULE, z0, torch.full((3,), 999), eps)
    found = ddim_sample(lambda z_t, t: eps, z_T, SCHEDULE, num_steps=1)
    torch.testing.assert_close(found, z0)


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("num_steps", [3, 10])
def test_ddim_with_the_truth_stays_on_its_path(objective: Objective, num_steps: int) -> None:
    z0, eps = noise(1).tanh(), noise(2)
    seen = []

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        torch.testing.assert_close(z_t, q_sample(SCHEDULE, z0, t, eps))
        seen.append(int(t[0]))
        return target(objective, SCHEDULE, z0, t, eps)

    z_T = q_sample(SCHEDULE, z0, torch.full((3,), 999), eps)
    found = ddim_sample(predict, z_T, SCHEDULE, num_steps=num_steps, objective=objective)
    torch.testing.assert_close(found, z0)
    assert seen == timesteps(1000, num_steps)[:-1]


def test_ddim_is_eulers_method_along_the_straight_path_of_flow_matching() -> None:
    schedule, target_of = Schedule.flow(1000), noise(1).tanh()

    def velocity(z: Tensor, tau: float) -> Tensor:  # any field that is not constant along the path
        return (z - target_of) * (1 + tau) + torch.sin(3 * z)

    def straight(t: int) -> tuple[float, float]:
        tau = (t + 1) / 1000
        return tau, ((1 - tau) ** 2 + tau**2) ** 0.5

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        tau, norm = straight(int(t[0]))
        return velocity(z_t * norm, tau)

    z = noise(2)
    found = ddim_sample(predict, z, schedule, num_steps=8, objective="flow", clamp=False)
    for k in range(8, 0, -1):
        tau, step = k / 8, 1 / 8
        z = z - step * velocity(z, tau)
    torch.testing.assert_close(found, z)


@pytest.mark.parametrize("objective", ["x0", "v", "flow"])
def test_samplers_start_where_no_signal_is_left(objective: Objective) -> None:
    straight = objective == "flow"
    schedule = Schedule.flow(1000) if straight else SCHEDULE.without_terminal_signal()
    assert schedule.alphas_cumprod[-1] == 0
    z0, eps = noise(1).tanh(), noise(2)

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        return target(objective, schedule, z0, t, eps)

    for num_steps in (1, 2, 10, 1000):
        found = ddim_sample(predict, eps, schedule, num_steps=num_steps, objective=objective)
        torch.testing.assert_close(found, z0)
        drawn = ddpm_sample(
            predict, eps, schedule, num_steps=num_steps, objective=objective, draw=noise
        )
        assert drawn.isfinite().all()


def test_ddim_step_is_equation_12_with_the_predicted_noise_kept_under_the_clamp() -> None:
    eps, z_T, drawn = noise(1), 3 * noise(2), noise(3)
    a, a_next = SCHEDULE.alphas_cumprod[[999, 499]]
    z0 = ((z_T - (1 - a).sqrt() * eps) / a.sqrt()).clamp(-1, 1)
    assert (z0.abs() == 1).any()  # the clamp bites
    sigma = 0.7 * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
    expected = a_next.sqrt() * z0 + (1 - a_next - sigma**2).sqrt() * eps + sigma * drawn
    path: list[Tensor] = []

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        path.append(z_t)
        return eps

    ddim_sample(predict, z_T, SCHEDULE, num_steps=2, eta=0.7, draw=lambda k: drawn)
    torch.testing.assert_close(path[1], expected)


def test_unclamped_ancestral_step_is_algorithm_1() -> None:
    step: Step = plan(SCHEDULE, 1000)[400]
    eps, z_t, drawn = noise(1), noise(2), noise(3)
    path: list[Tensor] = []

    def predict(z: Tensor, t: Tensor) -> Tensor:
        path.append(z)
        return eps

    short = Schedule(SCHEDULE.betas[: step.t + 1])
    ddpm_sample(predict, z_t, short, draw=lambda k: drawn, clamp=False)
    beta, abar = SCHEDULE.betas[step.t], SCHEDULE.alphas_cumprod[step.t]
    mean = (z_t - beta / (1 - abar).sqrt() * eps) / (1 - beta).sqrt()
    expected = mean + SCHEDULE.posterior_variance[step.t].sqrt() * drawn
    torch.testing.assert_close(path[1], expected)


def test_the_large_variance_is_beta() -> None:
    eps, z_T, drawn = noise(1), noise(2), noise(3)
    paths: dict[Variance, list[Tensor]] = {"small": [], "large": []}
    for variance, path in paths.items():

        def predict(z: Tensor, t: Tensor, path: list[Tensor] = path) -> Tensor:
            path.append(z)
            return eps

        ddpm_sample(predict, z_T, SCHEDULE, draw=lambda k: drawn, num_steps=4, variance=variance)
    kept = SCHEDULE.alphas_cumprod[[999, 749]]
    beta = 1 - kept[0] / kept[1]
    small = beta * (1 - kept[1]) / (1 - kept[0])
    wider = paths["large"][1] - paths["small"][1]
    torch.testing.assert_close(wider, (beta.sqrt() - small.sqrt()) * drawn)


def test_clamped_ancestral_step_takes_the_posterior_mean() -> None:
    eps, z_T, drawn = noise(1), 3 * noise(2), noise(3)
    path: list[Tensor] = []

    def predict(z: Tensor, t: Tensor) -> Tensor:
        path.append(z)
        return eps

    ddpm_sample(predict, z_T, SCHEDULE, draw=lambda k: drawn)
    abar = SCHEDULE.alphas_cumprod[-1]
    z0 = ((z_T - (1 - abar).sqrt() * eps) / abar.sqrt()).clamp(-1, 1)
    mean = SCHEDULE.posterior_mean_z0[-1] * z0 + SCHEDULE.posterior_mean_zt[-1] * z_T
    expected = mean + SCHEDULE.posterior_variance[-1].sqrt() * drawn
    torch.testing.assert_close(path[1], expected)


def test_ancestral_sampling_is_ddim_with_eta_one_where_nothing_is_clamped() -> None:
    ddim = ddim_sample(
        lambda z, t: exact("eps", z, t), noise(0), SCHEDULE,
        num_steps=20, eta=1.0, draw=noise, clamp=False,
    )  # fmt: skip
    ddpm = ddpm_sample(
        lambda z, t: exact("eps", z, t), noise(0), SCHEDULE, num_steps=20, draw=noise, clamp=False
    )
    torch.testing.assert_close(ddpm, ddim)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_noise_is_drawn_once_per_step_but_not_on_the_last(sampler: str) -> None:
    drawn, told = [], []

    def draw(k: int) -> Tensor:
        drawn.append(k)
        return noise(k)

    def predict(z: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.int64
        assert t.shape == (3,)
        return exact("eps", z, t)

    common = {"num_steps": 5, "draw": draw, "on_step": lambda k, n: told.append((k, n))}
    if sampler == "ddim":
        ddim_sample(predict, noise(0), SCHEDULE, eta=0.5, **common)
    else:
        ddpm_sample(predict, noise(0), SCHEDULE, **common)
    assert drawn == [1, 2, 3, 4]
    assert told == [(k, 5) for k in range(1, 6)]


def test_deterministic_ddim_draws_nothing() -> None:
    def draw(k: int) -> Tensor:
        raise AssertionError("drawn at eta 0")

    ddim_sample(lambda z, t: z, noise(0), SCHEDULE, num_steps=3, eta=0.0, draw=draw)


def test_last_step_returns_the_clamped_z0() -> None:
    found = ddim_sample(lambda z, t: 5 * z, noise(0), SCHEDULE, num_steps=4, objective="x0")
    assert found.abs().max() == 1
    loose = ddim_sample(
        lambda z, t: 5 * z, noise(0), SCHEDULE, num_steps=4, objective="x0", clamp=False
    )
    assert loose.abs().max() > 1


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_outside_its_range_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        ddim_sample(lambda z, t: z, noise(0), SCHEDULE, num_steps=2, eta=eta, draw=noise)


def test_eta_without_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="needs draw"):
        ddim_sample(lambda z, t: z, noise(0), SCHEDULE, num_steps=2, eta=1.0)


def test_a_half_precision_prediction_leaves_the_state_in_its_own_dtype() -> None:
    found = ddim_sample(lambda z, t: z.bfloat16(), noise(0).float(), SCHEDULE, num_steps=3)
    assert found.dtype == torch.float32


def expected_std(num_steps: int, eta: float) -> float:
    """Spread of the samples of N(MEAN, STD^2): every step is linear, so it follows exactly."""
    variance = 1.0
    for step in plan(SCHEDULE, num_steps):
        per_z = 1 / (step.abar * STD**2 + 1 - step.abar)
        z0_per_z, eps_per_z = step.abar**0.5 * STD**2 * per_z, (1 - step.abar) ** 0.5 * per_z
        after, ratio = step.abar_next, step.abar / step.abar_next
        sigma2 = eta**2 * (1 - after) / (1 - step.abar) * (1 - ratio)
        gain = after**0.5 * z0_per_z + max(0.0, 1 - after - sigma2) ** 0.5 * eps_per_z
        variance = gain**2 * variance + sigma2
    return variance**0.5


@pytest.mark.parametrize(
    ("sampler", "num_steps", "eta", "objective", "off"),
    [
        # `off`: how far the spread may be from that of the data, by the size of the steps
        ("ddpm", 1000, 1.0, "eps", 0.035),
        ("ddpm", 1000, 1.0, "v", 0.035),
        ("ddim", 1000, 1.0, "x0", 0.035),
        ("ddim", 1000, 0.0, "eps", 0.02),
        ("ddim", 100, 0.0, "v", 0.11),
        ("ddim", 100, 0.5, "eps", 0.12),
    ],
)
def test_gaussian_data_is_sampled_with_its_mean_and_spread(
    sampler: str, num_steps: int, eta: float, objective: Objective, off: float
) -> None:
    shape = (4, 10, 1000)
    source = generator("cpu", 11)

    def draw(k: int) -> Tensor:
        return torch.randn(shape, generator=source)

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        return exact(objective, z_t, t)

    options = {"num_steps": num_steps, "draw": draw, "clamp": False, "objective": objective}
    if sampler == "ddpm":
        found = ddpm_sample(predict, draw(0), SCHEDULE, **options)
    else:
        found = ddim_sample(predict, draw(0), SCHEDULE, eta=eta, **options)
    assert abs(found.mean().item() - MEAN) < 0.01
    assert abs(found.std().item() / expected_std(num_steps, eta) - 1) < 0.015
    assert abs(found.std().item() / STD - 1) < off


def smooth(objective: Objective, z_t: Tensor, t: Tensor) -> Tensor:
    """A prediction that is not linear and whose z0 leaves [-1, 1] now and then."""
    return exact(objective, z_t, t) + 0.2 * torch.sin(3 * z_t) * (t / 1000)[:, None, None]


def relative(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("num_steps", [10, 50, 200])
def test_ddim_agrees_with_diffusers(
    num_steps: int, eta: float, clamp: bool, objective: Objective
) -> None:
    # Their "trailing" spacing visits our timesteps where the count divides T, and by default
    # (use_clipped_model_output=False) they too keep the predicted noise under the clamp.
    theirs = DDIMScheduler(
        1000,
        trained_betas=SCHEDULE.betas.numpy(),
        clip_sample=clamp,
        prediction_type=THEIR_NAMES[objective],
        timestep_spacing="trailing",
        set_alpha_to_one=True,
    )
    theirs.set_timesteps(num_steps)
    assert theirs.timesteps.tolist() == timesteps(1000, num_steps)[:-1]
    z = noise(0)
    for k, t in enumerate(theirs.timesteps, start=1):
        prediction = smooth(objective, z, t.expand(3))
        z = theirs.step(prediction, int(t), z, eta=eta, variance_noise=noise(k)).prev_sample
    found = ddim_sample(
        lambda z_t, t: smooth(objective, z_t, t), noise(0), SCHEDULE,
        num_steps=num_steps, eta=eta, draw=noise, clamp=clamp, objective=objective,
    )  # fmt: skip
    assert relative(found, z) < 1e-4


@pytest.mark.parametrize("objective", ["eps", "x0", "v"])
@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("num_steps", [10, 250])
def test_ancestral_sampling_agrees_with_diffusers(
    num_steps: int, variance: Variance, clamp: bool, objective: Objective
) -> None:
    check_ancestral(num_steps, clamp, objective, variance)


def test_all_thousand_ancestral_steps_agree_with_diffusers() -> None:
    check_ancestral(1000, clamp=True, objective="eps")


def check_ancestral(
    num_steps: int, clamp: bool, objective: Objective, variance: Variance = "small"
) -> None:
    """Compare a whole run with diffusers' DDPMScheduler, fed with the same noise."""
    theirs = DDPMScheduler(
        1000,
        trained_betas=SCHEDULE.betas.numpy(),
        variance_type=f"fixed_{variance}",
        clip_sample=clamp,
        prediction_type=THEIR_NAMES[objective],
        timestep_spacing="trailing",
    )
    theirs.set_timesteps(num_steps)
    z = noise(0)
    for k, t in enumerate(theirs.timesteps, start=1):
        prediction = smooth(objective, z, t.expand(3))
        told = theirs.step(prediction, int(t), z, generator=generator("cpu", 7, k))
        # Their last jump draws noise too unless it starts at t = 0; ours never (Algorithm 1).
        z = told.prev_sample if k < num_steps else told.pred_original_sample
    found = ddpm_sample(
        lambda z_t, t: smooth(objective, z_t, t), noise(0), SCHEDULE,
        num_steps=num_steps, draw=noise, clamp=clamp, objective=objective, variance=variance,
    )  # fmt: skip
    assert relative(found, z) < 1e-4
