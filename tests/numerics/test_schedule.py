"""The noise schedule against closed forms, the published vectors and diffusers."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from safetensors.torch import load_file

from pvdm_cli.config import DiffusionConfig
from pvdm_cli.diffusion.schedule import Schedule

SCHEDULE = Schedule.from_config(DiffusionConfig())


def test_betas_rise_linearly_in_their_square_root_between_the_configured_ends() -> None:
    schedule = Schedule.from_config(
        DiffusionConfig(num_timesteps=7, beta_start=0.01, beta_end=0.04)
    )
    roots = schedule.betas.sqrt()
    torch.testing.assert_close(roots[[0, -1]], torch.tensor([0.1, 0.2], dtype=torch.float64))
    torch.testing.assert_close(roots.diff(), torch.full((6,), 0.1 / 6, dtype=torch.float64))


def test_posterior_is_bayes_rule_applied_to_the_forward_process() -> None:
    # q(z_(t-1) | z_t, z0) ~ N(z_t; sqrt(1-beta) z_(t-1), beta) N(z_(t-1); sqrt(a) z0, 1-a)
    beta, a = SCHEDULE.betas[1:], SCHEDULE.alphas_cumprod[:-1]
    precision = (1 - beta) / beta + 1 / (1 - a)
    torch.testing.assert_close(SCHEDULE.posterior_variance[1:], 1 / precision)
    torch.testing.assert_close(SCHEDULE.posterior_mean_z0[1:], a.sqrt() / (1 - a) / precision)
    torch.testing.assert_close(SCHEDULE.posterior_mean_zt[1:], (1 - beta).sqrt() / beta / precision)


def test_first_posterior_is_z0_itself() -> None:
    assert SCHEDULE.posterior_variance[0] == 0
    assert SCHEDULE.posterior_mean_zt[0] == 0
    torch.testing.assert_close(SCHEDULE.posterior_mean_z0[0].item(), 1.0)


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod", "posterior_variance"])
def test_tables_equal_the_published_ones(shared: Path, name: str) -> None:
    published = load_file(shared / "reference/pvdm/vectors.safetensors")[f"schedule.{name}"]
    torch.testing.assert_close(
        getattr(SCHEDULE, name), published.double(), rtol=0, atol=1e-6, check_dtype=False
    )
    ratio = getattr(SCHEDULE, name)[1:] / published.double()[1:]
    assert (ratio - 1).abs().max() < 1e-4  # small values too


def test_alphas_cumprod_equal_those_of_diffusers() -> None:
    theirs = DDPMScheduler(1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
    torch.testing.assert_close(
        SCHEDULE.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=1e-4, atol=0
    )


def test_a_schedule_without_terminal_signal_equals_that_of_diffusers() -> None:
    ours = Schedule.from_config(DiffusionConfig(objective="v", zero_terminal_snr=True))
    theirs = DDPMScheduler(
        1000, beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear",
        rescale_betas_zero_snr=True,
    )  # fmt: skip
    expected = theirs.alphas_cumprod.double()
    assert ours.alphas_cumprod[-1] == 0
    torch.testing.assert_close(ours.alphas_cumprod[:-1], expected[:-1], rtol=2e-3, atol=1e-6)
    torch.testing.assert_close(ours.alphas_cumprod[0], SCHEDULE.alphas_cumprod[0])


def test_the_schedule_of_flow_matching_has_straight_scales() -> None:
    abar = Schedule.from_config(DiffusionConfig(objective="flow", num_timesteps=10)).alphas_cumprod
    ratio = (abar / (1 - abar)).sqrt()  # signal over noise: (1 - tau) / tau
    tau = torch.arange(1, 11, dtype=torch.float64) / 10
    torch.testing.assert_close(ratio, (1 - tau) / tau)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_lookup_follows_the_tensor_it_is_for(dtype: torch.dtype) -> None:
    z, t = torch.zeros(3, 4, 47, dtype=dtype), torch.tensor([0, 500, 999])
    signal, noise = SCHEDULE.at(t, like=z)
    assert signal.shape == noise.shape == (3, 1, 1)
    assert signal.dtype == noise.dtype == dtype
    abar = SCHEDULE.alphas_cumprod[t]
    # One rounding to dtype, even where 1 - abar is nearly 0: the root comes before the cast.
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(signal.flatten().double(), abar.sqrt(), rtol=tolerance, atol=0)
    torch.testing.assert_close(noise.flatten().double(), (1 - abar).sqrt(), rtol=tolerance, atol=0)


def test_a_table_first_used_in_inference_mode_can_be_trained_through() -> None:
    schedule = Schedule.from_config(DiffusionConfig())
    z, t = torch.ones(2, 1, 3, requires_grad=True), torch.tensor([3, 9])
    with torch.inference_mode():
        schedule.at(t, like=z)
    signal, _ = schedule.at(t, like=z)
    (signal * z).sum().backward()
    assert z.grad is not None
    assert z.grad[0, 0, 0] == signal[0, 0, 0]


@pytest.mark.parametrize("betas", [torch.tensor([1.0, 0.1]), torch.tensor([0.0, 0.1])])
def test_impossible_betas_are_refused(betas: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Schedule(betas.double())
    with pytest.raises(ValueError, match="float64"):
        Schedule(betas.float())
