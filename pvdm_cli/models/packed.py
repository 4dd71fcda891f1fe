"""Layers whose weights lie as the kernels that multiply them read them; CPU, inference.

Those are our own (native.py) or oneDNN's: torch's layers bring a convolution's weights into order
in every call, and hand fp32 products to a library that is slow on some processors. oneDNN's
operators are torch's compiler's and not public, so `pack` asks first whether they are there and
right, and else leaves the network as it is.

Axes: b batch, c channels, H and W of an image.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.models import native
from pvdm_cli.models.layers import FeedForward
from pvdm_cli.models.winograd import WinogradConv2d

LayerT = TypeVar("LayerT", nn.Linear, nn.Conv2d)


class PackedLinear(nn.Module):
    """nn.Linear with packed weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.product = torch.ops.mkldnn._linear_pointwise.default
        self.joined = torch.ops.mkldnn._linear_pointwise.binary
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.contiguous())
        self.bias = _copied(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return self.product(x, self.packed, self.bias, "none", [], "")

    def gelu(self, x: Tensor) -> Tensor:
        """Apply GELU to what `forward` gives, in the same pass."""
        return self.product(x, self.packed, self.bias, "gelu", [], "none")

    def join(self, x: Tensor, other: Tensor, how: Literal["add", "mul"]) -> Tensor:
        """Add or multiply what `forward` gives and something of its shape, in the same pass."""
        return self.joined(x, other.contiguous(), self.packed, self.bias, how)


class PanelLinear(nn.Module):
    """nn.Linear whose weights lie as our own kernel reads them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.panels = _panels(linear)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return native.product(x, self.panels)

    def join(self, x: Tensor, other: Tensor, how: Literal["add", "mul"]) -> Tensor:
        """Add or multiply what `forward` gives and something of its shape, in the same pass."""
        return native.product(x, self.panels, how, other)

    def map_normed(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """Normalise before what `forward` does, in the same pass."""
        return native.product(x, self.panels, norm=norm)


def pack_linear(linear: nn.Linear) -> PackedLinear | PanelLinear:
    """Pack a linear map for whichever kernel is the faster one."""
    whole = linear.out_features % native.WHOLE == 0
    fast = whole and native.can_multiply(linear.weight.dtype)
    return PanelLinear(linear) if fast else PackedLinear(linear)


class PackedFeedForward(nn.Module):
    """FeedForward whose products apply GELU, gate and residual: fewer passes over memory."""

    def __init__(self, plain: FeedForward) -> None:
        super().__init__()
        self.norm, self.down = plain.norm, PackedLinear(plain.down)
        hidden = plain.down.in_features
        self.value = PackedLinear(_rows(plain.up, 0, hidden)) if plain.gated else None
        self.gate = PackedLinear(_rows(plain.up, hidden if plain.gated else 0, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to the same shape."""
        normed = self.norm(x)
        hidden = self.gate.gelu(normed)
        if self.value is not None:
            hidden = self.value.join(normed, hidden, "mul")
        return self.down.join(hidden, x, "add")


class PanelFeedForward(nn.Module):
    """FeedForward of two products of our own kernel, which make all else in their passes."""

    def __init__(self, plain: FeedForward) -> None:
        super().__init__()
        self.gated, self.norm, self.down = plain.gated, plain.norm, _panels(plain.down)
        if plain.gated:
            hidden = plain.down.in_features
            value, gate = (_panels(_rows(plain.up, first, hidden)) for first in (0, hidden))
            self.up = native.gated(gate, value)
        else:
            self.up = _panels(plain.up)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to the same shape."""
        hidden = native.product(x, self.up, "geglu" if self.gated else "gelu", norm=self.norm)
        return native.product(hidden, self.down, "add", x)


def pack_feed_forward(plain: FeedForward) -> PackedFeedForward | PanelFeedForward:
    """Pack a feed-forward for whichever kernel is the faster one."""
    sizes = plain.down.in_features, plain.down.out_features
    whole = all(size % native.WHOLE == 0 for size in sizes)
    fast = whole and native.can_multiply(plain.down.weight.dtype)
    return PanelFeedForward(plain) if fast else PackedFeedForward(plain)


class PackedConv2d(nn.Module):
    """nn.Conv2d with packed weights; channels-last images stay channels-last."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.product = torch.ops.mkldnn._convolution_pointwise.default
        self.shape = (conv.padding, conv.stride, conv.dilation, conv.groups)
        reorder: Callable[..., Tensor] = torch._C._nn.mkldnn_reorder_conv2d_weight
        self.packed = reorder(conv.weight.contiguous().to_mkldnn(), *self.shape)
        self.bias = _copied(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [b, c, H, W]."""
        return self.product(x, self.packed, self.bias, *self.shape, "none", [], "")


class TapsConv2d(nn.Module):
    """nn.Conv2d of 3 x 3 with padding 1 as one product of what it reads at each place.

    For images of few pixels: what takes the time is reading the weights, once for all of them.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # [out, 3 * 3 * in]
        empty = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        assert conv.bias is not None
        self.product = pack_linear(_layer(empty, weight, conv.bias))

    def convolve(self, images: list[Tensor]) -> list[Tensor]:
        """Convolve each [b, H, W, c]."""
        taps = [self._taps(each) for each in images]
        found = self.product(torch.cat(taps)).split([len(each) for each in taps])
        return [rows.view(*each.shape[:3], -1) for rows, each in zip(found, images, strict=True)]

    def _taps(self, x: Tensor) -> Tensor:
        """Lay out what is read at each place of [b, H, W, c]: [b * H * W, 3 * 3 * c]."""
        around = F.pad(x, (0, 0, 1, 1, 1, 1)).unfold(1, 3, 1).unfold(2, 3, 1)  # [b, H, W, c, 3, 3]
        return around.permute(0, 1, 2, 4, 5, 3).reshape(x.shape[:3].numel(), -1)


class SizedConv2d(nn.Module):
    """nn.Conv2d of 3 x 3, packed at its first call: number and size of its images tell how.

    Other images it then convolves as well, if not as fast.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.plain = [conv]  # in a list: no submodule
        self.packed: WinogradConv2d | TapsConv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [b, c, H, W]."""
        return self.convolve([x.permute(0, 2, 3, 1)])[0].permute(0, 3, 1, 2)

    def convolve(self, images: list[Tensor]) -> list[Tensor]:
        """Convolve each [b, H, W, c], of any sizes."""
        if self.packed is None:
            m = best_tile([(len(x), x.shape[1] * x.shape[2]) for x in images])
            conv = self.plain.pop()
            self.packed = WinogradConv2d(conv, m) if m else TapsConv2d(conv)
        return self.packed.convolve(images)


def best_tile(sizes: Sequence[tuple[int, int]]) -> int:
    """Outputs along a side of Winograd's tiles, 0 for no tiles: the fastest for images of a size.

    Tiles have more weights, and few tiles have too little to do with each. Small images stay with
    small tiles: large ones would take four times the memory where the weights are most.

    Args:
        sizes: Number and pixels of the images that are convolved together.
    """
    pixels = sum(count * each for count, each in sizes)
    if min(each for _, each in sizes) >= 128 and pixels >= 1024:
        return 4
    return 2 if pixels >= 128 else 0


def pack_conv(conv: nn.Conv2d) -> PackedConv2d | SizedConv2d:
    """Pack a convolution, or have it done at its first call if tiles may make it faster.

    In bf16 our kernels make them in fp32, in which alone their rounding is small; torch's
    operations would not. With few channels they cost too much.
    """
    same = (conv.kernel_size, conv.padding, conv.stride) == ((3, 3), (1, 1), (1, 1))
    simple = same and conv.dilation == (1, 1) and conv.groups == 1 and conv.bias is not None
    dtype, channels = conv.weight.dtype, (conv.in_channels, conv.out_channels)
    kernels = native.can_multiply(dtype) and all(each % native.WHOLE == 0 for each in channels)
    exact = dtype == torch.float32 or kernels
    return SizedConv2d(conv) if simple and exact and min(channels) >= 64 else PackedConv2d(conv)


def _panels(linear: nn.Linear) -> native.Panels:
    """Lay a linear map's weights as our own kernel reads them, as fp16 if they are less than fp32."""
    bias = None if linear.bias is None else linear.bias.detach()
    halve = linear.weight.dtype != torch.float32
    return native.panels(linear.weight.detach().t(), bias, halve=halve)


def _copied(bias: Tensor | None) -> Tensor | None:
    """Copy a bias to memory of its own: the operators read a view with gaps as if it had none."""
    return None if bias is None else bias.detach().clone(memory_format=torch.contiguous_format)


def _rows(linear: nn.Linear, first: int, count: int) -> nn.Linear:
    """Take those of a linear map's outputs that are neighbours."""
    rows = slice(first, first + count)
    empty = nn.Linear(linear.in_features, count, device="meta")
    return _layer(empty, linear.weight[rows], linear.bias[rows])


PACKED: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
    FeedForward: pack_feed_forward,
    nn.Linear: pack_linear,
    nn.Conv2d: pack_conv,
}


def pack(network: nn.Module) -> bool:
    """Replace the linear maps and convolutions of a network on the CPU, where that is possible.

    The weights they held are freed one by one: the network can then neither be trained nor saved.

    Returns:
        Whether it was done.
    """
    dtype = next(network.parameters()).dtype
    if not can_pack(dtype):
        return False
    _pack_inside(network)
    for left in [*network.parameters(), *network.buffers()]:
        left.data = left.data.clone()  # a view of a mapped file keeps all of it in memory
    return True


def _pack_inside(module: nn.Module) -> None:
    """Replace layers from the outside in, so that each one's weights are free before the next's."""
    for name, layer in module.named_children():
        if type(layer) in PACKED:
            setattr(module, name, PACKED[type(layer)](layer))
        else:
            _pack_inside(layer)


@lru_cache(maxsize=4)
def can_pack(dtype: torch.dtype) -> bool:
    """Try both layers on something small: whether the operators are there and give torch's result."""
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    x = torch.linspace(-1, 1, 2 * 16 * 6 * 6).view(2, 16, 6, 6).sin()
    weight = torch.linspace(-9, 9, 24 * 16 * 3 * 3).view(24, 16, 3, 3).cos() / 12
    x, weight, bias = x.to(dtype), weight.to(dtype), weight[:, 0, 0, 0].to(dtype)
    linear = _layer(nn.Linear(16, 24, device="meta"), weight[..., 0, 0], bias)
    conv = _layer(nn.Conv2d(16, 24, 3, padding=1, device="meta"), weight, bias)
    tokens = x.movedim(1, -1)
    try:
        with torch.inference_mode():
            packed = PackedLinear(linear)
            mapped = packed(tokens)
            found = [mapped, packed.gelu(tokens), PackedConv2d(conv)(x)]
            found += [packed.join(tokens, mapped, "mul"), packed.join(tokens, mapped, "add")]
    except (AttributeError, RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
        return False
    mapped = F.linear(tokens.float(), weight[..., 0, 0].float(), bias.float())
    convolved = F.conv2d(x.float(), weight.float(), bias.float(), padding=1)
    wanted = [mapped, F.gelu(mapped), convolved, mapped**2, 2 * mapped]
    return all(
        torch.allclose(ours.float(), theirs, rtol=0, atol=tolerance)
        for ours, theirs in zip(found, wanted, strict=True)
    )


def _layer(layer: LayerT, weight: Tensor, bias: Tensor) -> LayerT:
    """Give a layer its weights."""
    layer.weight, layer.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
    return layer
