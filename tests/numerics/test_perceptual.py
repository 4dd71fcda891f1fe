"""LPIPS against its definition, with seeded weights under the published names."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pvdm_cli.models.perceptual import LPIPS

# Where torchvision's VGG16 has convolutions and poolings, and where LPIPS reads features.
CONVOLUTIONS = {0: 64, 2: 64, 5: 128, 7: 128, 10: 256, 12: 256, 14: 256, 17: 512, 19: 512, 21: 512,
                24: 512, 26: 512, 28: 512}  # fmt: skip
POOLINGS, READ = {4, 9, 16, 23}, [3, 8, 15, 22, 29]


@pytest.fixture(scope="module")
def published() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """State dicts under the published names."""
    draw, before = torch.Generator().manual_seed(0), 3
    vgg16 = {"classifier.0.weight": torch.zeros(1)}
    for number, channels in CONVOLUTIONS.items():
        weight = torch.randn(channels, before, 3, 3, generator=draw) * (2 / (9 * before)) ** 0.5
        vgg16[f"features.{number}.weight"] = weight
        vgg16[f"features.{number}.bias"] = 0.1 * torch.randn(channels, generator=draw)
        before = channels
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, channels, 1, 1, generator=draw)
        for i, channels in enumerate((64, 128, 256, 512, 512))
    }
    return vgg16, heads


@pytest.fixture(scope="module")
def loss(published: tuple[dict[str, Tensor], dict[str, Tensor]]) -> LPIPS:
    network = LPIPS()
    network.load_published(*published)
    return network


def images(seed: int, *, size: tuple[int, int] = (32, 48)) -> Tensor:
    return torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def by_definition(
    x: Tensor, y: Tensor, vgg16: dict[str, Tensor], heads: dict[str, Tensor]
) -> Tensor:
    """Equation 1 of the paper, layer by layer, in float64."""
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    a, b = ((each.double() - shift) / scale for each in (x, y))
    total = torch.zeros(len(x), dtype=torch.float64)
    for layer in range(30):
        if layer in CONVOLUTIONS:
            weight, bias = (vgg16[f"features.{layer}.{k}"].double() for k in ("weight", "bias"))
            a, b = (F.conv2d(each, weight, bias, padding=1) for each in (a, b))
        elif layer in POOLINGS:
            a, b = (F.max_pool2d(each, 2, 2) for each in (a, b))
        else:
            a, b = a.clamp(min=0), b.clamp(min=0)
        if layer in READ:
            head = heads[f"lin{READ.index(layer)}.model.1.weight"].double()
            apart = (F.normalize(a, dim=1) - F.normalize(b, dim=1)) ** 2
            total += (apart * head[0]).sum(1).mean((1, 2))
    return total


def test_it_is_the_distance_the_paper_defines(
    loss: LPIPS, published: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> None:
    x, y = images(1), images(2)
    expected = by_definition(x, y, *published)
    assert (expected > 0.01).all()
    torch.testing.assert_close(loss(x, y).double(), expected, rtol=1e-4, atol=1e-6)


def test_equal_images_have_no_distance_and_swapped_ones_the_same(loss: LPIPS) -> None:
    x, y = images(1), images(2)
    assert loss(x, x).eq(0).all()
    torch.testing.assert_close(loss(x, y), loss(y, x))


def test_only_images_get_gradients_and_they_are_finite_where_features_are_dead(
    loss: LPIPS,
) -> None:
    x = torch.full((1, 3, 32, 32), -0.03).requires_grad_()  # a flat image: many dead features
    loss(x, images(2, size=(32, 32))[:1]).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() > 0
    assert not any(parameter.requires_grad for parameter in loss.parameters())


def test_a_file_of_another_kind_is_refused(
    published: tuple[dict[str, Tensor], dict[str, Tensor]],
) -> None:
    with pytest.raises(KeyError):
        LPIPS().load_published({}, published[1])
