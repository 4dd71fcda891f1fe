"""The autoencoder against the published implementation's output and against slow formulas."""

import json
from pathlib import Path

import pytest
import torch
from recipe import published_state, relative_error, seeded_input, seeded_state
from safetensors.torch import load_file

from pvdm_cli.config import ModelConfig
from pvdm_cli.latents import flatten, unflatten
from pvdm_cli.models.autoencoder import Autoencoder, Projection
from pvdm_cli.models.layers import SelfAttention, rotate_pairs
from pvdm_cli.models.timesformer import frame_rotary, patch_rotary
from pvdm_cli.published.names import from_published, is_buffer

REFERENCE = ModelConfig.model_validate({"autoencoder": {"width": 64}})


@pytest.fixture(scope="module")
def reference(shared: Path) -> tuple[Autoencoder, dict[str, torch.Tensor]]:
    """The reference's network, made from the keys of its meta.json, and its vectors."""
    folder = shared / "reference" / "pvdm"
    keys = json.loads((folder / "meta.json").read_text())["ae_keys"]
    shapes = {key: tuple(shape) for key, shape in keys.items() if not is_buffer(key)}
    autoencoder = Autoencoder(REFERENCE)
    weights = from_published(seeded_state(shapes, "autoencoder"), autoencoder, where="meta.json")
    autoencoder.load_state_dict(weights)
    return autoencoder.requires_grad_(False).eval(), load_file(folder / "vectors.safetensors")


def test_latents_and_reconstruction_equal_the_published_ones(
    reference: tuple[Autoencoder, dict[str, torch.Tensor]],
) -> None:
    autoencoder, vectors = reference
    x = seeded_input("video", (1, 3, 16, 256, 256)).tanh()
    z = flatten(autoencoder.encode(x))
    assert relative_error(z, vectors["ae.latents"]) < 1e-4
    expected = vectors["ae.recon_stride8"]  # [s, 3, H/8, W/8]
    found = autoencoder.decode(unflatten(vectors["ae.latents"], REFERENCE.latent))
    found = found[0].movedim(0, 1)[..., ::8, ::8]
    assert relative_error(found, expected) < 1e-4


def small(**sizes: int) -> ModelConfig:
    """A tiny autoencoder whose axes all differ."""
    autoencoder = {
        "patch": 4,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "head_dim": 8,
        "latent_channels": 3,
        "projection_depth": 2,
        "projection_heads": 2,
        "projection_mlp": 24,
    }
    clip = {"frames": 6, "height": 8, "width": 16}
    return ModelConfig.model_validate({"clip": clip | sizes, "autoencoder": autoencoder})


def seeded_autoencoder(config: ModelConfig) -> Autoencoder:
    """An autoencoder with the recipe's weights, none of them zero."""
    autoencoder = Autoencoder(config)
    state = published_state("autoencoder", config)
    autoencoder.load_state_dict(from_published(state, autoencoder, where="recipe"))
    return autoencoder.requires_grad_(False).eval()


def test_pixels_are_those_of_a_transposed_convolution() -> None:
    config = small()
    autoencoder = seeded_autoencoder(config)
    v = seeded_input("v", (6, 16, 2, 4))  # [s, e, h, w]
    expected = 2 * torch.sigmoid(autoencoder.to_pixels(v)) - 1

    class Given(torch.nn.Module):
        dtype = v.dtype

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return v.movedim(1, -1)[None]

    autoencoder.decoder = Given()
    z = unflatten(torch.zeros(1, 3, config.latent.flat), config.latent)
    found = autoencoder.decode(z)[0].movedim(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_reading_only_the_first_position_equals_computing_all() -> None:
    config = small().autoencoder
    projection = Projection(config, 6).requires_grad_(False)
    u = seeded_input("u", (5, 6, 16))
    x = torch.cat([u, projection.token.expand(5, 1, -1)], 1) + projection.positions
    for block in projection.blocks:
        x = block(x)
    expected = projection.to_latent(x[:, 0]).tanh()
    torch.testing.assert_close(projection(u), expected, rtol=1e-5, atol=1e-6)


def test_attention_is_softmax_of_scaled_products() -> None:
    attention = SelfAttention(16, 2, 8).requires_grad_(False)
    x = seeded_input("x", (3, 5, 16))
    q, k, v = attention.qkv(attention.norm(x)).view(3, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-1, -2) / 8**0.5).softmax(-1)
    expected = x + attention.out((weights @ v).transpose(1, 2).reshape(3, 5, 16))
    torch.testing.assert_close(attention(x), expected, rtol=1e-5, atol=1e-5)


def test_rotary_tables_follow_their_formulas() -> None:
    cos, sin = frame_rotary(5, 8, torch.device("cpu"))
    frequencies = torch.tensor([1, 0.1, 0.01, 0.001])
    angles = 3 * torch.cat([frequencies, frequencies])  # cat(f, f): the published layout
    torch.testing.assert_close(cos[3], angles.cos())
    torch.testing.assert_close(sin[3], angles.sin())
    cos, sin = patch_rotary(3, 5, 8, torch.device("cpu"))
    row, column = -1.0, 0.5  # patch (0, 3) of a grid 3 x 5
    scales = torch.tensor([1, 5.0]) * torch.pi
    angles = torch.cat([row * scales, column * scales]).repeat_interleave(2)
    torch.testing.assert_close(cos[3], angles.cos())
    torch.testing.assert_close(sin[3], angles.sin())


def test_pairs_turn_by_their_angle() -> None:
    x = seeded_input("x", (7, 2, 5, 8))
    angle = seeded_input("angle", (5, 4))
    table = angle.repeat_interleave(2, dim=-1)
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.polar(torch.ones(5, 4), angle)
    found = rotate_pairs(x, table.cos(), table.sin())
    torch.testing.assert_close(found, torch.view_as_real(turned).flatten(-2))
