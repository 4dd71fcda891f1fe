"""Whole sampling runs, one ancestral step and the loss, as the published implementation has them.

The reference holds what the published code returned for weights and inputs that are seeded by
their names (`recipe`).
"""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from recipe import relative_error, seeded_input, seeded_state
from safetensors.torch import load_file
from torch import Tensor

from pvdm_cli.config import DenoiserConfig, DiffusionConfig, ModelConfig
from pvdm_cli.diffusion.objective import diffusion_loss, x0_from
from pvdm_cli.diffusion.samplers import ddim_sample, plan, posterior_mean
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.model import assign_weights
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.published.names import from_published, is_buffer

CONFIG = ModelConfig(
    denoiser=DenoiserConfig(
        base_channels=32,
        channel_multipliers=(1, 2, 2),
        num_res_blocks=1,
        attention_downsamplings=(1, 2),
        num_heads=4,
    ),
    diffusion=DiffusionConfig(),
)
SCHEDULE = Schedule.from_config(DiffusionConfig())
T = torch.tensor([17, 803])


def given(name: str, *shape: int) -> Tensor:
    """An input of the reference."""
    return seeded_input(name, shape)


@pytest.fixture(scope="module")
def meta(shared: Path) -> dict[str, Any]:
    return dict(json.loads((shared / "reference/pvdm/meta.json").read_text()))


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "reference/pvdm/vectors.safetensors")


@pytest.fixture(scope="module")
def denoiser(meta: dict[str, Any]) -> Denoiser:
    """The reference's U-Net."""
    with torch.device("meta"):
        network = Denoiser(CONFIG)
    shapes = {key: tuple(shape) for key, shape in meta["unet_keys"].items() if not is_buffer(key)}
    state = seeded_state(shapes, "denoiser")
    assign_weights(network, from_published(state, network, where="reference"), where="reference")
    return network.requires_grad_(False).eval()


def test_ten_ddim_steps_with_a_prefix(denoiser: Denoiser, vectors: dict[str, Tensor]) -> None:
    prefix = given("cond", 2, 4, 2048).tanh()[:1]
    found = ddim_sample(
        lambda z_t, t: denoiser(z_t, t, prefix), given("start", 1, 4, 2048), SCHEDULE,
        num_steps=10, eta=0.0,
    )  # fmt: skip
    assert relative_error(found, vectors["ddim10_eta0.cond"]) < 1e-3


def test_the_first_three_of_ten_ddim_steps_without_a_prefix(
    denoiser: Denoiser, vectors: dict[str, Tensor]
) -> None:
    # With random weights the whole run amplifies rounding to 10 %: only its beginning is fair.
    seen: list[Tensor] = []

    def predict(z_t: Tensor, t: Tensor) -> Tensor:
        seen.append(z_t)
        return denoiser(z_t, t) if len(seen) < 4 else z_t

    ddim_sample(predict, given("start", 1, 4, 2048), SCHEDULE, num_steps=10, eta=0.0)
    assert relative_error(seen[3], vectors["ddim10_eta0.uncond_after3"]) < 1e-3


def test_ten_noisy_ddim_steps_without_a_prefix(
    denoiser: Denoiser, vectors: dict[str, Tensor]
) -> None:
    found = ddim_sample(
        lambda z_t, t: denoiser(z_t, t), given("start", 1, 4, 2048), SCHEDULE,
        num_steps=10, eta=1.0, draw=lambda k: given(f"noise{k}", 1, 4, 2048),
    )  # fmt: skip
    assert relative_error(found, vectors["ddim10_eta1.uncond"]) < 1e-3


def test_one_ancestral_step(denoiser: Denoiser, vectors: dict[str, Tensor]) -> None:
    z_t, prefix = given("xt", 2, 4, 2048), given("cond", 2, 4, 2048).tanh()
    eps = denoiser(z_t, T, prefix)
    steps = {step.t: step for step in plan(SCHEDULE, 1000)}
    for i, t in enumerate(T.tolist()):
        step = steps[t]
        z0 = x0_from("eps", eps[i], z_t[i], step.signal, step.noise).clamp(-1, 1)
        mean = posterior_mean(step, z0, z_t[i])
        assert relative_error(mean, vectors["ddpm.posterior_mean"][i]) < 1e-4
        logvar = vectors["ddpm.posterior_logvar"][i].item()
        assert 2 * math.log(step.posterior_std) == pytest.approx(logvar, abs=1e-4)


def test_the_loss(denoiser: Denoiser, meta: dict[str, Any]) -> None:
    loss = diffusion_loss(
        denoiser,
        SCHEDULE,
        z0=given("x0", 2, 4, 2048).tanh(),
        z_prefix=given("cond", 2, 4, 2048).tanh(),
        t=T,
        eps=given("eps", 2, 4, 2048),
    )
    assert loss.mean().item() == pytest.approx(meta["eps_mse_loss"], rel=1e-5)
