"""Objectives: conversions, targets, and the joint prefix / null draw."""

from itertools import product

import pytest
import torch
from torch import Tensor

from pvdm_cli.config import DiffusionConfig
from pvdm_cli.diffusion import objective
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.runtime import generator

SCHEDULE = Schedule.from_config(DiffusionConfig())
T = torch.tensor([0, 17, 803, 999])


def example() -> tuple[Tensor, Tensor, Tensor]:
    """z0, eps and z_t in float64 at the timesteps T."""
    source = generator("cpu", 5)
    z0 = torch.rand(4, 3, 47, generator=source, dtype=torch.float64) * 2 - 1
    eps = torch.randn(4, 3, 47, generator=source, dtype=torch.float64)
    return z0, eps, objective.q_sample(SCHEDULE, z0, T, eps)


def test_noised_latents_have_the_variance_of_the_schedule() -> None:
    _, eps, z_t = example()
    zeros = torch.zeros_like(eps)
    ratio = objective.q_sample(SCHEDULE, zeros, T, eps) / eps
    expected = (1 - SCHEDULE.alphas_cumprod[T]).sqrt()[:, None, None].expand_as(eps)
    torch.testing.assert_close(ratio, expected)
    assert z_t.shape == eps.shape


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow"])
def test_the_right_prediction_gives_back_both_z0_and_eps(name: objective.Objective) -> None:
    z0, eps, z_t = example()
    prediction = objective.target(name, SCHEDULE, z0, T, eps)
    torch.testing.assert_close(objective.to_x0(name, SCHEDULE, z_t, T, prediction), z0)
    torch.testing.assert_close(objective.to_eps(name, SCHEDULE, z_t, T, prediction), eps)


def test_velocity_is_the_derivative_of_z_t_along_the_noise_angle() -> None:
    z0, eps, z_t = example()
    angle = torch.asin((1 - SCHEDULE.alphas_cumprod[T]).sqrt())[:, None, None]
    d = 1e-6
    ahead = torch.cos(angle + d) * z0 + torch.sin(angle + d) * eps
    v = objective.to_v(SCHEDULE, z0, T, eps)
    torch.testing.assert_close((ahead - z_t) / d, v, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow"])
def test_loss_of_each_sample_is_its_mean_squared_error(name: objective.Objective) -> None:
    z0, eps, z_t = example()
    wanted = objective.target(name, SCHEDULE, z0, T, eps)
    seen: list[Tensor | None] = []

    def denoise(z: Tensor, t: Tensor, z_prefix: Tensor | None) -> Tensor:
        torch.testing.assert_close(z, z_t)
        assert torch.equal(t, T)
        seen.append(z_prefix)
        return wanted + torch.arange(4.0)[:, None, None]

    prefix = torch.ones_like(z0)
    loss = objective.diffusion_loss(denoise, SCHEDULE, z0, prefix, T, eps, name)
    torch.testing.assert_close(loss, torch.tensor([0.0, 1.0, 4.0, 9.0], dtype=torch.float64))
    assert seen == [prefix]


@pytest.mark.parametrize("gamma", [1.0, 5.0, 1e9])
@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow"])
def test_min_snr_weighs_the_error_of_z0_whatever_is_predicted(
    name: objective.Objective, gamma: float
) -> None:
    z0, eps, z_t = example()
    wrong = objective.target(name, SCHEDULE, z0, T, eps) + 0.1 * torch.cos(z_t)
    loss = objective.diffusion_loss(
        lambda z, t, z_prefix: wrong, SCHEDULE, z0, None, T, eps, name, min_snr=gamma
    )
    abar = SCHEDULE.alphas_cumprod[T]
    error = objective.squared_error(objective.to_x0(name, SCHEDULE, z_t, T, wrong), z0)
    torch.testing.assert_close(loss, (abar / (1 - abar)).clamp(max=gamma) * error)


@pytest.mark.parametrize("name", ["x0", "v", "flow"])
def test_min_snr_gives_no_weight_where_no_signal_is_left(name: objective.Objective) -> None:
    schedule = SCHEDULE.without_terminal_signal()
    weights = objective.min_snr_weight(name, schedule, torch.tensor([0, 999]), 5.0)
    assert weights[1] == 0
    assert weights[0] > 0


def test_loss_of_half_precision_predictions_is_summed_in_float32() -> None:
    prediction = torch.full((2, 4, 2048), 0.1, dtype=torch.bfloat16)
    loss = objective.squared_error(prediction, torch.zeros(2, 4, 2048))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, prediction[:, 0, 0].float() ** 2)


def test_prefixes_are_kept_per_sample_and_as_often_as_asked() -> None:
    prefix = torch.ones(4000, 2, 3)
    kept = objective.draw_prefix(prefix, 0.3, generator("cpu", 1))
    per_sample = kept.flatten(1)
    assert bool((per_sample == per_sample[:, :1]).all())  # whole samples, never parts
    assert abs(per_sample[:, 0].mean().item() - 0.3) < 0.03


@pytest.mark.parametrize(("chance", "kept"), [(0.0, 0), (1.0, 50)])
def test_sure_coins_are_sure(chance: float, kept: int) -> None:
    found = objective.draw_prefix(torch.ones(50, 1, 1), chance, generator("cpu", 2))
    assert found.sum() == kept


def test_a_sample_without_a_prefix_gets_zeros_whatever_stands_in_its_place() -> None:
    prefix = torch.full((3, 2, 5), float("nan"))
    prefix[1] = 7.0
    available = torch.tensor([False, True, False])
    found = objective.draw_prefix(prefix, 1.0, generator("cpu", 3), available)
    assert torch.equal(found[1], prefix[1])
    assert found[[0, 2]].eq(0).all()


def test_a_sample_draws_the_same_whatever_batch_it_is_in() -> None:
    z0 = torch.zeros(4, 2, 5)
    whole = objective.draw(z0, 1000, 0.5, [generator("cpu", 0, 9, i) for i in range(4)])
    part = objective.draw(z0[2:], 1000, 0.5, [generator("cpu", 0, 9, i) for i in (2, 3)])
    for all_rows, rows in zip(whole, part, strict=True):
        assert torch.equal(all_rows[2:], rows)
    assert whole.eps.unique().numel() > 30  # and samples differ


def test_levels_of_prefix_noise_are_uniform_and_change_no_other_draw() -> None:
    z0 = torch.zeros(200, 2, 5)
    without = objective.draw(z0, 1000, 0.5, [generator("cpu", 1, i) for i in range(200)])
    noised = objective.draw(z0, 1000, 0.5, [generator("cpu", 1, i) for i in range(200)], 0.4)
    for one, other in zip(without[:3], noised[:3], strict=True):
        assert torch.equal(one, other)
    assert without.level.eq(0).all()
    assert 0 < noised.level.min() < 0.04
    assert 0.36 < noised.level.max() < 0.4
    assert abs(noised.prefix_eps.std().item() - 1) < 0.1
    assert not torch.equal(noised.prefix_eps, noised.eps)


def test_draws_cover_every_timestep_and_follow_the_latents() -> None:
    z0 = torch.zeros(300, 1, 2, dtype=torch.float64)
    draws = objective.draw(z0, 5, 0.3, [generator("cpu", 4, i) for i in range(300)])
    assert draws.t.bincount(minlength=5).min() > 30
    assert draws.t.dtype == torch.int64
    assert draws.eps.dtype == torch.float64
    assert 60 < draws.keep.sum() < 120
    assert abs(draws.eps.std().item() - 1) < 0.1


def test_one_generator_per_sample_is_required() -> None:
    with pytest.raises(ValueError, match="1 generators for a batch of 2"):
        objective.draw(torch.zeros(2, 1, 1), 10, 0.5, [generator("cpu", 0)])


def test_flow_is_the_derivative_along_the_straight_path() -> None:
    z0, eps, _ = example()
    schedule = Schedule.flow(1000)
    tau = ((T + 1) / 1000)[:, None, None].double()
    straight = (1 - tau) * z0 + tau * eps
    scaled = objective.q_sample(schedule, z0, T, eps)
    torch.testing.assert_close(scaled, straight / ((1 - tau) ** 2 + tau**2).sqrt())
    d = 1e-6
    ahead = (1 - tau - d) * z0 + (tau + d) * eps
    velocity = objective.target("flow", schedule, z0, T, eps)
    torch.testing.assert_close((ahead - straight) / d, velocity, rtol=1e-6, atol=1e-6)


def test_guidance_may_be_applied_to_any_objective() -> None:
    # The conversions are affine in the prediction, so weights that sum to 1 commute with them.
    z0, eps, z_t = example()
    for name, weight in product(("x0", "v", "flow"), (0.5, 3.0)):
        one = objective.target(name, SCHEDULE, z0, T, eps)
        two = one + 0.1 * z0
        mixed = objective.to_eps(name, SCHEDULE, z_t, T, (1 + weight) * one - weight * two)
        separate = (1 + weight) * objective.to_eps(name, SCHEDULE, z_t, T, one)
        separate -= weight * objective.to_eps(name, SCHEDULE, z_t, T, two)
        torch.testing.assert_close(mixed, separate)
