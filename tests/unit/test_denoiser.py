"""What the denoiser adds to the published one: positions of its own and a scale of its own."""

import pytest
import torch
from tiny import CONFIG
from torch import Tensor

from pvdm_cli.config import ModelConfig
from pvdm_cli.diffusion.samplers import ddim_sample
from pvdm_cli.latents import Planes, flatten, unflatten
from pvdm_cli.model import Model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.rollout import rollout_latents
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import Sampling, Steps

MEAN = [[0.5, -0.25, 0.1, 0.0], [0.3, 0.0, -0.6, 0.2], [-0.4, 0.1, 0.0, 0.7]]
STD = [[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8], [0.05, 0.15, 0.25, 0.35]]


def denoiser(*, square: bool = False, **settings: bool) -> Denoiser:
    """A tiny denoiser of random weights, none of them zero."""
    assert CONFIG.denoiser is not None
    update: dict[str, object] = {"denoiser": CONFIG.denoiser.model_copy(update=settings)}
    if square:
        update["clip"] = CONFIG.clip.model_copy(update={"height": 16, "width": 16})
    config = CONFIG.model_copy(update=update)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = Denoiser(config).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def config_of(network: Denoiser, **diffusion: object) -> ModelConfig:
    """The tiny configuration for a network with a scale."""
    assert CONFIG.denoiser is not None
    assert CONFIG.diffusion is not None
    return CONFIG.model_copy(
        update={
            "denoiser": CONFIG.denoiser.model_copy(update={"normalise": network.scale is not None}),
            "diffusion": CONFIG.diffusion.model_copy(update=diffusion),
        }
    )


def noise(network: Denoiser, seed: int) -> Tensor:
    latent = network.latent
    generator_ = torch.Generator().manual_seed(seed)
    return torch.randn(2, latent.c, latent.flat, generator=generator_)


def swapped(network: Denoiser, z: Tensor) -> Tensor:
    """The same latents with the planes sw and sh exchanged."""
    planes = unflatten(z, network.latent)
    return flatten(Planes(planes.hw, planes.sh, planes.sw))


@pytest.mark.parametrize("positions", [False, True])
def test_square_clips_have_two_planes_that_only_positions_tell_apart(positions: bool) -> None:
    network = denoiser(square=True, positions=positions)
    z, prefix, t = noise(network, 1), noise(network, 2), torch.tensor([3, 17])
    one = swapped(network, network(z, t, prefix))
    other = network(swapped(network, z), t, swapped(network, prefix))
    assert torch.allclose(one, other, atol=1e-5) is not positions


def test_planes_that_share_an_axis_share_its_vectors() -> None:
    network = denoiser(positions=True)
    assert network.positions is not None
    planes = unflatten(network.positions()[None].transpose(1, 2), network.latent)
    # Along the shared axis w, hw and sw differ by the same vectors: rows of hw, frames of sw.
    along_w = [plane - plane[..., :1] for plane in (planes.hw[:, :, 0], planes.sw[:, :, 0])]
    torch.testing.assert_close(*along_w)
    along_s = [plane - plane[..., :1, :] for plane in (planes.sw, planes.sh)]
    torch.testing.assert_close(along_s[0][..., 0], along_s[1][..., 0])
    assert not torch.allclose(planes.sw[..., 0], planes.sh[..., 0])


def test_a_scale_is_per_plane_and_channel_and_can_be_undone() -> None:
    network = denoiser(normalise=True)
    assert network.scale is not None
    network.scale.set(MEAN, STD)
    z = noise(network, 1)
    scaled = network.normalise(z)
    planes, original = (unflatten(each, network.latent) for each in (scaled, z))
    for number, name in enumerate(("hw", "sw", "sh")):
        mean, std = (torch.tensor(each[number])[:, None, None] for each in (MEAN, STD))
        torch.testing.assert_close(
            getattr(planes, name), (getattr(original, name) - mean) / std, rtol=1e-5, atol=1e-5
        )
    torch.testing.assert_close(network.denormalise(scaled), z)
    assert denoiser().normalise(z) is z


def test_a_channel_that_never_varies_keeps_its_unit() -> None:
    network = denoiser(normalise=True)
    assert network.scale is not None
    network.scale.set(MEAN, [[0.0] * 4] * 3)
    assert network.normalise(noise(network, 1)).isfinite().all()


def test_only_a_network_trained_with_noise_on_the_prefix_hears_of_it() -> None:
    assert CONFIG.diffusion is not None
    z, t, level = noise(denoiser(), 1), torch.tensor([3, 17]), torch.tensor([0.0, 0.5])
    deaf = denoiser()
    assert torch.equal(deaf(z, t, z, level), deaf(z, t, z))

    diffusion = CONFIG.diffusion.model_copy(update={"prefix_noise": 0.5})
    network = Denoiser(CONFIG.model_copy(update={"diffusion": diffusion}))
    assert network.prefix_noise_embedding is not None
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    told, untold = network(z, t, z, level), network(z, t, z)
    torch.testing.assert_close(told[0], untold[0])  # level 0 and none are the same
    assert not torch.allclose(told[1], untold[1])


@pytest.mark.parametrize("clamp", [True, False])
def test_a_rollout_samples_in_the_denoisers_scale(clamp: bool) -> None:
    network = denoiser(normalise=True)
    assert network.scale is not None
    network.scale.set(MEAN, STD)
    config = config_of(network, clamp=clamp)
    model = Model(config, Autoencoder(config).eval().requires_grad_(False), network)
    sampling = Sampling(steps=Steps(4, 4), eta=0.0)
    z_prefix = 0.3 * noise(network, 5)[:1]
    (z0,) = rollout_latents(
        model, 1, generators=[generator("cpu", 0, 0)], sampling=sampling, z_prefix=z_prefix
    )

    # The same by hand: noise and prefix in the denoiser's scale, and bounds of -1 and 1 outside.
    mean, std = (network.denormalise(value * torch.ones_like(z_prefix)) for value in (0, 1))
    std = std - mean
    drawn = torch.randn(*z_prefix.shape[1:], generator=generator("cpu", 0, 0))[None]
    assert model.schedule is not None
    by_hand = ddim_sample(
        lambda z_t, t: network(z_t, t, (z_prefix - mean) / std),
        drawn,
        model.schedule,
        num_steps=4,
        clamp=((-1 - mean) / std, (1 - mean) / std) if clamp else False,
    )
    torch.testing.assert_close(z0, by_hand * std + mean, rtol=1e-4, atol=1e-5)
    assert bool((z0.abs() > 1.0001).any()) is not clamp
