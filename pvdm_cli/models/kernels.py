"""Kernels of ours for CUDA, each in place of several of torch's; inference only.

At batch 1 a GPU spends a U-Net step between kernels, and group normalisation of channels-last
features takes fourteen of them; in the autoencoder, rotary embeddings alone moved half of all
bytes. They are written in Triton, which torch's builds for CUDA bring along; where it is missing
torch's operations stay. None has a backward pass. The plain modules are what they are tested
against.

Axes: b batch, n tokens, y and x the two axes of a plane, s frames, p patches, m heads, d head size,
c channels.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch without CUDA
    triton = None

LARGEST = 1 << 16  # numbers of one group that one program holds in registers


@lru_cache(maxsize=8)
def can_fuse(device: torch.device) -> bool:
    """Try one on something small: Triton needs a GPU that it knows, and a C compiler beside it."""
    if triton is None or device.type != "cuda":
        return False
    hidden = torch.linspace(-2, 2, 64, device=device)[None]
    value, gate = hidden.chunk(2, dim=-1)
    try:
        return torch.allclose(geglu(hidden), value * F.gelu(gate), atol=1e-5)
    except Exception:  # noqa: BLE001  (of Triton, of the compiler, of the driver)
        return False


def fuse(network: nn.Module) -> None:
    """Let the modules of a network that know a kernel of ours use it, where the device has it."""
    for module in network.modules():
        if hasattr(module, "fused"):
            module.fused = can_fuse(next(module.parameters()).device)  # type: ignore[assignment]


if triton is not None:
    VARYING = ["film_stride", "repeat", "n", "width", "has_film", "silu", "taps"]

    # What is not named constexpr makes no kernel of its own: each takes half a second to compile,
    # once on a machine. With the members of a group it is known how wide a load may be.
    @triton.jit(do_not_specialize=VARYING)  # type: ignore[untyped-decorator]
    def _group_norm_kernel(  # type: ignore[no-untyped-def]
        x, out, weight, bias, film, film_stride, repeat, n, width, c, has_film, silu, taps, eps,
        members: tl.constexpr, block_n: tl.constexpr, block_c: tl.constexpr,
    ):  # fmt: skip
        """Normalise one group of one row, [n, members] of [n, c]; write it once, or to 3x3 taps."""
        row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
        token, member = tl.arange(0, block_n)[:, None], tl.arange(0, block_c)[None, :]
        known = member < members
        inside = (token < n) & known
        channel = group * members + member
        x += row * n * c
        v = tl.load(x + token * c + channel, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(tl.sum(v, axis=1), axis=0) / (n * members)
        centred = tl.where(inside, v - mean, 0.0)
        var = tl.sum(tl.sum(centred * centred, axis=1), axis=0) / (n * members)
        gain = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
        shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
        film += row // repeat * film_stride
        given = member < members * has_film
        scale = 1 + tl.load(film + channel, mask=given, other=0.0).to(tl.float32)
        offset = tl.load(film + c + channel, mask=given, other=0.0).to(tl.float32)
        v = centred * tl.rsqrt(var + eps) * (gain * scale) + (shift * scale + offset)
        v = tl.where(silu != 0, v * tl.sigmoid(v), v).to(out.dtype.element_ty)
        # What a 3x3 convolution reads at each place, zero where that is outside; or its middle.
        out += row * n * taps * c
        y, column, height = token // width, token % width, n // width
        for i in range(taps):
            tap = i + 4 * (taps == 1)
            dy, dx = tap // 3 - 1, tap % 3 - 1
            to_y, to_x = y - dy, column - dx
            hit = (to_y >= 0) & (to_y < height) & (to_x >= 0) & (to_x < width)
            place = ((token - dy * width - dx) * taps + i) * c + channel
            tl.store(out + place, v, mask=inside & hit)
            from_y, from_x = y + dy, column + dx
            miss = (from_y < 0) | (from_y >= height) | (from_x < 0) | (from_x >= width)
            place = (token * taps + i) * c + channel
            tl.store(out + place, tl.zeros_like(v), mask=inside & miss)

    @triton.jit  # type: ignore[untyped-decorator]
    def _rotate_kernel(  # type: ignore[no-untyped-def]
        qkv, cos, sin, before, length, width,
        d: tl.constexpr, pairs: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        """Turn the pairs of q and k of one token by the tables' row of its position."""
        token = tl.program_id(0).to(tl.int64)
        feature = tl.arange(0, 2 * block)
        inside = feature < 2 * pairs
        place = qkv + token * width + feature
        table = token // before % length * d + feature % d
        even, odd = tl.split(tl.reshape(tl.load(place, mask=inside), (block, 2)))
        cos_even, cos_odd = tl.split(tl.reshape(tl.load(cos + table), (block, 2)))
        sin_even, sin_odd = tl.split(tl.reshape(tl.load(sin + table), (block, 2)))
        even, odd = even.to(tl.float32), odd.to(tl.float32)
        turned = tl.join(even * cos_even - odd * sin_even, odd * cos_odd + even * sin_odd)
        turned = tl.reshape(turned, (2 * block,)).to(qkv.dtype.element_ty)
        tl.store(place, turned, mask=inside)

    @triton.jit  # type: ignore[untyped-decorator]
    def _geglu_kernel(hidden, out, width, block: tl.constexpr):  # type: ignore[no-untyped-def]
        """Multiply the first half of one row by GELU of its second half."""
        row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * block + tl.arange(0, block)
        inside = place < width
        hidden += row * 2 * width
        value = tl.load(hidden + place, mask=inside).to(tl.float32)
        gate = tl.load(hidden + width + place, mask=inside).to(tl.float32)
        found = value * gate * 0.5 * (1 + tl.erf(gate * 0.7071067811865476))
        tl.store(out + row * width + place, found.to(out.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor,
    norm: nn.GroupNorm,
    film: Tensor | None = None,
    *,
    silu: bool = False,
    taps: bool = False,
) -> Tensor | None:
    """Normalise x [b, ..., c] by groups of channels, then FiLM, then SiLU; sums in fp32.

    Args:
        x: Features; for taps [b, y, x, c].
        norm: Number of groups, weight and bias [c], eps.
        film: Scale and shift [b / k, 2c]; each row serves k neighbours of x. None: without.
        silu: Apply v * sigmoid(v) in the end.
        taps: Return at each place what a 3x3 convolution with padding 1 reads there, [b, y, x, 9c]
            in the order of a weight [out, 3, 3, c]: it is then one matrix product.

    Returns:
        [b, ..., c] or the taps; None if a group is too large for one program.
    """
    x = x.contiguous()
    b, c = x.shape[0], x.shape[-1]
    n, members = x[0, ..., 0].numel(), c // norm.num_groups
    block_n, block_c = max(32, triton.next_power_of_2(n)), triton.next_power_of_2(members)
    if block_n * block_c > LARGEST:
        return None
    out = x.new_empty(*x.shape[:-1], 9 * c if taps else c)
    told = x if film is None else film
    _group_norm_kernel[(b, norm.num_groups)](
        x, out, norm.weight, norm.bias, told, told.stride(0), b // len(told), n, x.shape[-2], c,
        int(film is not None), int(silu), 9 if taps else 1, norm.eps,
        members=members, block_n=block_n, block_c=block_c,
        num_warps=min(32, max(4, block_n * block_c // 1024)),
    )  # fmt: skip
    return out


def rotate_(qkv: Tensor, cos: Tensor, sin: Tensor, *, over_frames: bool) -> None:
    """Turn q and k in place by `layers.rotate_pairs`, each token by its frame or its patch.

    Args:
        qkv: Contiguous [b, s, p, 3, m, d].
        cos: Table [s or p, d], fp32.
        sin: Likewise.
        over_frames: Whether positions are frames.
    """
    b, s, p, _, m, d = qkv.shape
    before, length = (p, s) if over_frames else (1, p)
    _rotate_kernel[(b * s * p,)](
        qkv, cos, sin, before, length, qkv.stride(2),
        d=d, pairs=m * d, block=triton.next_power_of_2(m * d),
    )  # fmt: skip


def geglu(hidden: Tensor) -> Tensor:
    """Return value * GELU(gate) [..., h] of value and gate side by side [..., 2h]."""
    hidden = hidden.contiguous()
    width = hidden.shape[-1] // 2
    out = hidden.new_empty(*hidden.shape[:-1], width)
    rows, block = out.numel() // width, min(2048, triton.next_power_of_2(width))
    _geglu_kernel[(rows, triton.cdiv(width, block))](hidden, out, width, block=block)
    return out
