"""The autoencoder at any sizes: shapes, axes, gradients, precision."""

import pytest
import torch
from torch import Tensor

from pvdm_cli.config import ModelConfig
from pvdm_cli.latents import Planes
from pvdm_cli.models.autoencoder import Autoencoder


def config_of(s: int, h: int, w: int, patch: int) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "clip": {"frames": s, "height": h * patch, "width": w * patch},
            "autoencoder": {
                "patch": patch,
                "width": 16,
                "depth": 1,
                "num_heads": 2,
                "head_dim": 8,
                "latent_channels": 3,
                "projection_depth": 1,
                "projection_heads": 2,
                "projection_mlp": 16,
            },
        }
    )


def autoencoder_of(config: ModelConfig) -> Autoencoder:
    """The same random weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Autoencoder(config)


def video(config: ModelConfig, batch: int = 2) -> Tensor:
    """Random pixels [b, 3, s, H, W] in [-1, 1]."""
    clip = config.clip
    shape = (batch, 3, clip.frames, clip.height, clip.width)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 1


SMALL = config_of(5, 2, 3, 8)


@pytest.mark.parametrize(("s", "h", "w", "patch"), [(5, 2, 3, 8), (1, 4, 1, 8), (3, 3, 7, 5)])
@torch.no_grad()
def test_any_number_of_frames_rows_columns_and_pixels_fits(
    s: int, h: int, w: int, patch: int
) -> None:
    config = config_of(s, h, w, patch)
    autoencoder, x = autoencoder_of(config), video(config)
    z = autoencoder.encode(x)
    assert [tuple(plane.shape) for plane in z] == [(2, 3, h, w), (2, 3, s, w), (2, 3, s, h)]
    assert all(plane.abs().max() < 1 for plane in z)
    reconstruction = autoencoder.decode(z)
    assert reconstruction.shape == x.shape
    assert reconstruction.abs().max() < 1
    torch.testing.assert_close(autoencoder(x), reconstruction)


@torch.no_grad()
def test_a_clip_is_encoded_the_same_alone_and_in_a_batch() -> None:
    autoencoder, x = autoencoder_of(SMALL), video(SMALL, 3)
    together, alone = autoencoder.encode(x), autoencoder.encode(x[1:2])
    for plane, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(plane[1:2], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_frames_reaches_every_plane() -> None:
    autoencoder, x = autoencoder_of(SMALL), video(SMALL)
    forth, back = autoencoder.encode(x), autoencoder.encode(x.flip(2))
    assert (forth.hw - back.hw).abs().max() > 1e-3
    for plane, flipped in zip(forth[1:], back[1:], strict=True):  # not merely flipped either
        assert (plane - flipped.flip(2)).abs().max() > 1e-3


@torch.no_grad()
def test_every_plane_reaches_every_frame() -> None:
    autoencoder = autoencoder_of(SMALL)
    z = autoencoder.encode(video(SMALL))
    before = autoencoder.decode(z)
    for name in Planes._fields:
        after = autoencoder.decode(z._replace(**{name: -getattr(z, name)}))
        assert ((after - before).abs().amax((0, 1, 3, 4)) > 1e-4).all()


@torch.no_grad()
def test_turning_a_clip_by_ninety_degrees_turns_its_planes() -> None:
    """Swap rows and columns in clip and weights: catches any swapped axis where h != w."""
    upright, turned = autoencoder_of(SMALL), autoencoder_of(config_of(5, 3, 2, 8))
    turned.load_state_dict(
        {turned_name(key): turned_weight(key, w) for key, w in upright.state_dict().items()}
    )
    x = video(SMALL)
    z, z_turned = upright.encode(x), turned.encode(x.transpose(3, 4))
    close = {"rtol": 1e-3, "atol": 1e-5}
    torch.testing.assert_close(z_turned.hw.transpose(2, 3), z.hw, **close)
    torch.testing.assert_close(z_turned.sh, z.sw, **close)
    torch.testing.assert_close(z_turned.sw, z.sh, **close)
    found = turned.decode(z_turned).transpose(3, 4)
    torch.testing.assert_close(found, upright.decode(z), **close)


def turned_name(key: str) -> str:
    """Swap the two motion planes."""
    swapped = {".sw.": ".sh.", ".sh.": ".sw."}
    return next((key.replace(a, b) for a, b in swapped.items() if a in key), key)


def turned_weight(key: str, weight: Tensor) -> Tensor:
    """Swap rows and columns of patches, and the head features that each of them turns."""
    if key == "encoder.patch_embedding.weight":
        return weight.view(16, 8, 8, 3).transpose(1, 2).reshape(weight.shape)
    if key == "to_pixels.weight":
        return weight.transpose(2, 3)
    if key.endswith("space.qkv.weight"):
        q, k, v = weight.view(3, 2, 8, 16)
        return torch.stack([q.roll(4, 1), k.roll(4, 1), v]).reshape(weight.shape)
    return weight


def test_gradients_reach_every_weight() -> None:
    autoencoder, x = autoencoder_of(SMALL), video(SMALL)
    (autoencoder(x) - x).square().mean().backward()
    still = [
        name
        for name, weight in autoencoder.named_parameters()
        if weight.grad is None or not weight.grad.abs().max() > 0
    ]
    assert still == []


@torch.no_grad()
def test_bfloat16_stays_near_full_precision() -> None:
    autoencoder, x = autoencoder_of(SMALL), video(SMALL)
    expected = autoencoder(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = autoencoder(x).float()
    assert 0 < float((found - expected).norm() / expected.norm()) < 5e-2


def test_a_clip_of_another_size_is_refused_naming_both() -> None:
    with pytest.raises(ValueError, match=r"\(3, 5, 24, 16\), expected \(3, 5, 16, 24\)"):
        autoencoder_of(SMALL).encode(video(SMALL).transpose(3, 4))
