"""A kernel of ours for CUDA: group normalisation of channels-last features in one launch.

In torch's operations it takes about fourteen, and a U-Net step has 170 of them: at batch 1 a GPU
spends its time between kernels. Written in Triton, which torch's CUDA builds bring along; where it
is missing the operations stay. Inference only: the kernel has no backward pass.

Axes: b batch, n tokens, c channels.
"""

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # builds of torch without CUDA
    triton = None

LARGEST = 1 << 17  # numbers of one group that one program holds in registers


def can_fuse(device: torch.device) -> bool:
    """Tell whether the kernel runs on a device."""
    return triton is not None and device.type == "cuda"


if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _group_norm_kernel(  # type: ignore[no-untyped-def]
        x, out, weight, bias, film, film_stride, repeat, n, c, eps,
        members: tl.constexpr, has_film: tl.constexpr, silu: tl.constexpr,
        block_n: tl.constexpr, block_c: tl.constexpr,
    ):  # fmt: skip
        """Normalise one group of one row: [n, members] of [n, c]."""
        row, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
        tokens, member = tl.arange(0, block_n)[:, None], tl.arange(0, block_c)[None, :]
        inside = (tokens < n) & (member < members)
        channel, known = group * members + member, member < members
        place = row * n * c + tokens * c + channel
        v = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
        mean = tl.sum(tl.sum(v, axis=1), axis=0) / (n * members)
        centred = tl.where(inside, v - mean, 0.0)
        var = tl.sum(tl.sum(centred * centred, axis=1), axis=0) / (n * members)
        gain = tl.load(weight + channel, mask=known, other=0.0).to(tl.float32)
        shift = tl.load(bias + channel, mask=known, other=0.0).to(tl.float32)
        if has_film:
            film += row // repeat * film_stride
            scale = 1 + tl.load(film + channel, mask=known, other=0.0).to(tl.float32)
            offset = tl.load(film + c + channel, mask=known, other=0.0).to(tl.float32)
            gain, shift = gain * scale, shift * scale + offset
        y = centred * tl.rsqrt(var + eps) * gain + shift
        if silu:
            y = y * tl.sigmoid(y)
        tl.store(out + place, y.to(out.dtype.element_ty), mask=inside)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    film: Tensor | None = None,
    *,
    silu: bool = False,
) -> Tensor | None:
    """Normalise x [b, n, c] by groups of channels, then FiLM, then SiLU; sums in fp32.

    Args:
        x: Contiguous.
        groups: They divide c.
        weight: [c].
        bias: [c].
        eps: Added to the variance.
        film: Scale and shift [b / k, 2c]; each row serves k neighbours of x. None: without.
        silu: Apply x * sigmoid(x) in the end.

    Returns:
        [b, n, c], or None if a group is too large for one program.
    """
    b, n, c = x.shape
    members = c // groups
    block_n, block_c = triton.next_power_of_2(n), triton.next_power_of_2(members)
    if block_n * block_c > LARGEST:
        return None
    out = torch.empty_like(x)
    told = x if film is None else film
    _group_norm_kernel[(b, groups)](
        x, out, weight, bias, told, told.stride(0), b // told.shape[0], n, c, eps,
        members=members, has_film=film is not None, silu=silu,
        block_n=block_n, block_c=block_c,
        num_warps=min(32, max(4, block_n * block_c // 1024)),
    )  # fmt: skip
    return out
