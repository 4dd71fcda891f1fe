"""Convolutions in Winograd's tiles are the plain ones, and are used where they pay."""

import pytest
import torch
import torch.nn.functional as F
from tiny import CONFIG
from torch import Tensor, nn

from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.models.packed import PackedConv2d, SizedConv2d, can_pack, pack, pack_conv
from pvdm_cli.models.winograd import POINTS, WinogradConv2d, transforms

needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN operators here")


def random_conv(channels: int = 64, **settings: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, 72, kernel_size=3, **{"padding": 1, **settings})
    return layer.requires_grad_(False).to(memory_format=torch.channels_last)


def random_images(*shape: int) -> Tensor:
    return torch.randn(shape).to(memory_format=torch.channels_last)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("m", POINTS)
def test_transforms_filter_a_line_exactly(m: int) -> None:
    weights, inputs, outputs = transforms(POINTS[m])
    line, kernel = torch.randn(m + 2, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    found = outputs @ ((weights @ kernel) * (inputs @ line))
    torch.testing.assert_close(found, F.conv1d(line[None], kernel[None, None])[0])


@pytest.mark.parametrize(("m", "error"), [(2, 1e-6), (4, 4e-6)])
@pytest.mark.parametrize("size", [(8, 12), (9, 6), (1, 3)])
def test_images_of_any_size_are_convolved(m: int, error: float, size: tuple[int, int]) -> None:
    layer = random_conv()
    some = [random_images(2, 64, *size), random_images(1, 64, 3, 5)]
    found = WinogradConv2d(layer, m).convolve([images.permute(0, 2, 3, 1) for images in some])
    for each, images in zip(found, some, strict=True):
        wanted = F.conv2d(images.double(), layer.weight.double(), layer.bias.double(), padding=1)
        assert distance(each.permute(0, 3, 1, 2).double(), wanted) < error


@needs_packing
def test_the_first_images_choose_and_others_are_convolved_as_well() -> None:
    chosen = {}
    shapes = [(1, 4), (1, 8), (2, 8), (16, 4), (1, 16), (4, 16), (64, 8)]
    for shape in shapes:
        layer = random_conv()
        packed = SizedConv2d(layer)
        for count, side in (shape, *shapes):
            images = random_images(count, 64, side, side)
            assert distance(packed(images), layer(images)) < 1e-5
        chosen[shape] = getattr(packed.packed, "m", 0)
    small = {(1, 4): 0, (1, 8): 0, (2, 8): 2, (16, 4): 2}
    assert chosen == {**small, (1, 16): 2, (4, 16): 4, (64, 8): 2}


@needs_packing
@pytest.mark.parametrize("sides", [(4, 2), (8, 4), (32, 16)])
def test_images_of_several_sizes_are_convolved_in_one_product(sides: tuple[int, int]) -> None:
    layer, packed = random_conv(), SizedConv2d(random_conv())
    layer.load_state_dict(packed.plain[0].state_dict())
    some = [random_images(1, 64, side, sides[0]) for side in sides]
    found = packed.convolve([images.permute(0, 2, 3, 1) for images in some])
    for each, images in zip(found, some, strict=True):
        assert distance(each.permute(0, 3, 1, 2), layer(images)) < 1e-5


@needs_packing
@pytest.mark.parametrize(
    "layer",
    [
        random_conv(stride=2),
        random_conv(padding=0),
        random_conv(dilation=2),
        random_conv(groups=8),
        random_conv(channels=32),
        random_conv(bias=False),
        random_conv().bfloat16(),
        nn.Conv2d(64, 64, 1),
    ],
)
def test_what_tiles_cannot_do_or_do_not_pay_for_is_packed_plainly(layer: nn.Conv2d) -> None:
    assert type(pack_conv(layer)) is PackedConv2d


@needs_packing
@torch.inference_mode()
def test_a_denoiser_on_large_planes_stays_within_float_rounding() -> None:
    assert CONFIG.denoiser is not None
    wide = {"base_channels": 64, "channel_multipliers": (1, 2)}
    update = {
        "clip": CONFIG.clip.model_copy(update={"frames": 16, "height": 320, "width": 256}),
        "denoiser": CONFIG.denoiser.model_copy(update=wide),
    }
    network = Denoiser(CONFIG.model_copy(update=update)).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    z, t = torch.randn(1, network.latent.c, network.latent.flat), torch.tensor([9])
    wanted = network(z, t)
    assert pack(network)
    assert distance(network(z, t), wanted) < 1e-5
    assert {layer.m for layer in network.modules() if isinstance(layer, WinogradConv2d)} == {2, 4}
