"""The denoiser against the published implementation's output and against itself."""

import json
from pathlib import Path

import pytest
import torch
from recipe import published_state, relative_error, seeded_input, seeded_state
from safetensors.torch import load_file
from torch import nn

from pvdm_cli.config import ModelConfig
from pvdm_cli.latents import Planes, flatten, unflatten
from pvdm_cli.models.denoiser import Denoiser, GroupNorm
from pvdm_cli.models.triplane import group_planes
from pvdm_cli.published.names import build, from_published, is_buffer

REFERENCE = ModelConfig.model_validate(
    {
        "denoiser": {
            "base_channels": 32,
            "channel_multipliers": (1, 2, 2),
            "num_res_blocks": 1,
            "attention_downsamplings": (1, 2),
            "num_heads": 4,
        }
    }
)


def small(s: int, h: int, w: int) -> ModelConfig:
    """A tiny denoiser for planes of any sizes."""
    return ModelConfig.model_validate(
        {
            "clip": {"frames": s, "height": 8 * h, "width": 8 * w},
            "autoencoder": {"latent_channels": 3},
            "denoiser": {
                "base_channels": 32,
                "channel_multipliers": (1, 2),
                "num_res_blocks": 1,
                "attention_downsamplings": (2,),
                "num_heads": 2,
            },
        }
    )


def seeded_denoiser(config: ModelConfig) -> Denoiser:
    """A denoiser with the recipe's weights, none of them zero."""
    denoiser = Denoiser(config)
    state = published_state("denoiser", config)
    denoiser.load_state_dict(from_published(state, denoiser, where="recipe"))
    return denoiser.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def reference(shared: Path) -> tuple[Denoiser, dict[str, torch.Tensor]]:
    """The reference's network, made from the keys of its meta.json, and its vectors."""
    folder = shared / "reference" / "pvdm"
    keys = json.loads((folder / "meta.json").read_text())["unet_keys"]
    shapes = {key: tuple(shape) for key, shape in keys.items() if not is_buffer(key)}
    denoiser = Denoiser(REFERENCE)
    weights = from_published(seeded_state(shapes, "denoiser"), denoiser, where="meta.json")
    denoiser.load_state_dict(weights)
    return denoiser.requires_grad_(False).eval(), load_file(folder / "vectors.safetensors")


@pytest.mark.parametrize("prefix", ["cond", "uncond"])
@pytest.mark.parametrize("kernel", ["native", "folded"])
def test_the_denoiser_equals_the_published_one(
    reference: tuple[Denoiser, dict[str, torch.Tensor]],
    prefix: str,
    kernel: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    denoiser, vectors = reference
    monkeypatch.setattr(GroupNorm, "native", getattr(GroupNorm, kernel))
    z_prefix = seeded_input("cond", (2, 4, 2048)).tanh() if prefix == "cond" else None
    z_t = seeded_input("z_t", (2, 4, 2048))
    found = denoiser(z_t, torch.tensor([17, 803]), z_prefix)
    assert relative_error(found, vectors[f"unet.{prefix}"]) < 1e-4


@pytest.mark.parametrize(("base", "number"), [(256, 528_273_412), (128, 132_163_588)])
def test_published_sizes_have_the_published_number_of_parameters(base: int, number: int) -> None:
    config = ModelConfig.model_validate({"denoiser": {"base_channels": base}})
    assert sum(p.numel() for p in build(Denoiser, config).parameters()) == number


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [((4, 4, 4), 1), ((2, 4, 4), 2), ((4, 4, 2), 2), ((2, 4, 6), 3)],
)
def test_planes_of_equal_shape_share_a_batch(
    sizes: tuple[int, int, int], batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(*sizes)
    denoiser = seeded_denoiser(config)
    z_t, t = seeded_input("z", (2, 3, config.latent.flat)), torch.tensor([5, 900])
    found = denoiser(z_t, t)
    assert len(denoiser.groups) == batches

    apart = [group for g in denoiser.groups for group in [g._replace(planes=1)] * g.planes]
    monkeypatch.setattr(denoiser, "groups", apart)
    torch.testing.assert_close(found, denoiser(z_t, t), rtol=1e-4, atol=1e-4)


def test_turning_a_clip_by_ninety_degrees_turns_the_prediction() -> None:
    """Swap h and w with kernels transposed where they see hw: catches any swapped axis."""
    config, turned = small(4, 2, 6), small(4, 6, 2)
    one, other = seeded_denoiser(config), seeded_denoiser(turned)
    for module in [*one.modules(), *other.modules()]:
        if isinstance(module, nn.Conv2d):  # symmetric kernels commute with the transposition
            module.weight.copy_((module.weight + module.weight.transpose(2, 3)) / 2)
    z, t = seeded_input("z", (1, 3, config.latent.flat)), torch.tensor([123])
    expected = unflatten(one(z, t), config.latent)
    planes = unflatten(z, config.latent)
    turned_z = flatten(Planes(planes.hw.transpose(2, 3), planes.sh, planes.sw))
    found = unflatten(other(turned_z, t), turned.latent)
    torch.testing.assert_close(found.hw.transpose(2, 3), expected.hw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.sh, expected.sw, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.sw, expected.sh, rtol=1e-4, atol=1e-4)


def test_every_plane_hears_of_every_other() -> None:
    config = small(2, 4, 6)
    denoiser = seeded_denoiser(config)
    t = torch.tensor([500])
    for changed in range(3):
        parts = list(torch.zeros(1, 3, config.latent.flat).split(config.latent.plane_lengths, 2))
        before = denoiser(torch.cat(parts, 2), t).split(config.latent.plane_lengths, 2)
        parts[changed] = torch.ones_like(parts[changed])
        after = denoiser(torch.cat(parts, 2), t).split(config.latent.plane_lengths, 2)
        assert all((a - b).abs().max() > 1e-3 for a, b in zip(after, before, strict=True))


def test_the_null_prefix_is_zeros_and_the_prefix_matters() -> None:
    config = small(2, 4, 6)
    denoiser = seeded_denoiser(config)
    z_t, t = seeded_input("z", (2, 3, config.latent.flat)), torch.tensor([0, 999])
    without = denoiser(z_t, t)
    assert torch.equal(without, denoiser(z_t, t, torch.zeros_like(z_t)))
    assert relative_error(denoiser(z_t, t, torch.ones_like(z_t)), without) > 1e-2


def test_an_untrained_denoiser_predicts_zero_and_every_weight_can_learn() -> None:
    denoiser = Denoiser(small(2, 4, 6))
    z_t, t = seeded_input("z", (2, 3, denoiser.latent.flat)), torch.tensor([3, 700])
    assert torch.equal(denoiser(z_t, t), torch.zeros_like(z_t))
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    for _ in range(4):  # zero-initialised layers pass gradients on only once they have moved
        optimizer.zero_grad()
        (denoiser(z_t, t, z_t) - z_t).square().mean().backward()
        optimizer.step()
    still = [name for name, p in denoiser.named_parameters() if not p.grad.abs().max() > 0]
    assert still == []


def test_half_precision_stays_near_full_precision() -> None:
    config = small(2, 4, 6)
    with torch.random.fork_rng(devices=[]):  # how much rounding grows depends on the weights
        torch.random.default_generator.manual_seed(0)
        denoiser = Denoiser(config).requires_grad_(False)
        for parameter in denoiser.parameters():
            if not parameter.any():  # the recipe's large weights would amplify rounding
                nn.init.normal_(parameter, std=0.02)
    z_t, t = seeded_input("z", (2, 3, config.latent.flat)), torch.tensor([3, 700])
    expected = denoiser(z_t, t, z_t)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = denoiser(z_t, t, z_t)
    assert autocast.dtype == torch.float32
    assert 0 < relative_error(autocast, expected) < 5e-2
    z_half = z_t.bfloat16()
    half = denoiser.bfloat16()(z_half, t, z_half)
    assert half.dtype == torch.bfloat16
    assert relative_error(half.float(), expected) < 0.1


def test_convolution_weights_stay_channels_last_after_loading_by_assignment() -> None:
    denoiser = Denoiser(small(2, 4, 6))
    plain = {key: value.contiguous() for key, value in denoiser.state_dict().items()}
    other = build(Denoiser, small(2, 4, 6))
    other.load_state_dict(plain, assign=True)
    kernels = [module.weight for module in other.modules() if isinstance(module, nn.Conv2d)]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


@pytest.mark.slow
def test_the_forward_pass_is_one_graph() -> None:
    config = small(2, 4, 4)
    denoiser = seeded_denoiser(config)
    z_t, t = seeded_input("z", (2, 3, config.latent.flat)), torch.tensor([3, 700])
    compiled = torch.compile(denoiser, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(z_t, t, z_t), denoiser(z_t, t, z_t))


def test_a_latent_of_another_clip_is_refused() -> None:
    denoiser = Denoiser(small(2, 4, 6))
    assert group_planes(denoiser.latent) == denoiser.groups
    with pytest.raises(ValueError, match="n=45, the denoiser needs 44"):
        denoiser(torch.zeros(1, 3, 45), torch.tensor([0]))
