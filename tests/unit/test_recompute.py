"""Activations computed again in the backward pass: the same gradients from less memory."""

import pytest
import torch
from tiny import CONFIG
from torch import Tensor, nn

from pvdm_cli.config import RunConfig, TrainingConfig
from pvdm_cli.footprint import count_step
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.models.layers import recompute

NETWORKS = {"autoencoder": Autoencoder, "denoiser": Denoiser}
GRAINS = ["none", "attention", "block"]


def gradients(kind: str, grain: str) -> list[Tensor]:
    """Gradients of a network with seeded weights, none of them zero."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = NETWORKS[kind](CONFIG)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        clip, latent = CONFIG.clip, CONFIG.latent
        x = torch.randn(2, 3, clip.frames, clip.height, clip.width)
        z = torch.randn(2, latent.c, latent.flat)
    recompute(network, grain)
    inputs = (x,) if kind == "autoencoder" else (z, torch.tensor([3, 9]), z)
    network(*inputs).square().mean().backward()
    return [p.grad for p in network.parameters() if p.grad is not None]


@pytest.mark.parametrize("grain", ["attention", "block"])
@pytest.mark.parametrize("kind", NETWORKS)
def test_gradients_are_the_same(kind: str, grain: str) -> None:
    for ours, plain in zip(gradients(kind, grain), gradients(kind, "none"), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("kind", NETWORKS)
def test_less_is_kept(kind: str) -> None:
    def kept(grain: str) -> int:
        config = RunConfig(
            stage="autoencoder" if kind == "autoencoder" else "diffusion",
            clip=CONFIG.clip,
            autoencoder=CONFIG.autoencoder,
            denoiser=CONFIG.denoiser,
            diffusion=CONFIG.diffusion,
            training=TrainingConfig.model_validate({"activation_checkpointing": grain}),
        )
        return count_step(config, 1, "fp32").kept

    none, attention, block = (kept(grain) for grain in GRAINS)
    assert block < 0.5 * none
    assert block < attention < 0.9 * none


def test_without_gradients_nothing_is_computed_twice() -> None:
    network = Denoiser(CONFIG)
    recompute(network, "block")
    calls: list[int] = []
    network.middle_block.register_forward_pre_hook(lambda *given: calls.append(1))
    z = torch.zeros(1, CONFIG.latent.c, CONFIG.latent.flat)
    with torch.no_grad():
        network(z, torch.tensor([0]))
    assert len(calls) == 1
    network(z, torch.tensor([0])).sum().backward()
    assert len(calls) == 3
