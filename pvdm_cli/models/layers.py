"""Blocks that both halves of the autoencoder share; the one seam for faster attention kernels.

Axes: b batch, n tokens, m heads, d head size, c channels.
"""

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pvdm_cli.models import kernels, native

PartT = TypeVar("PartT")


def run(module: nn.Module, *inputs: Any) -> Any:
    """Call a module; if it is marked by `recompute`, keep only its inputs for the backward pass."""
    if getattr(module, "recomputed", False) and torch.is_grad_enabled():
        return checkpoint(module, *inputs, use_reentrant=False, preserve_rng_state=False)
    return module(*inputs)


def recompute(network: nn.Module, grain: str) -> None:
    """Mark what is computed again in the backward pass: every module of a grain.

    Args:
        network: Its modules name their `grain`: attention or block.
        grain: attention, block, or none.
    """
    for module in network.modules():
        if hasattr(module, "grain"):
            module.recomputed = module.grain == grain  # type: ignore[assignment]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend softmax(q k^T / sqrt(d)) v over [b, m, n, d], by torch."""
    return F.scaled_dot_product_attention(q, k, v)


def add_mapped(layer: nn.Module, x: Tensor, other: Tensor) -> Tensor:
    """Return other + layer(x), made in one pass if the layer is a packed one that can."""
    join = getattr(layer, "join", None)
    return other + layer(x) if join is None else join(x, other, "add")


def map_normed(layer: nn.Module, x: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Return layer(norm(x)), made in one pass if the layer is a packed one that can."""
    map_normed = getattr(layer, "map_normed", None)
    return layer(norm(x)) if map_normed is None else map_normed(x, norm)


class HeadAttention(nn.Module):
    """What the attentions of all networks share: heads of a size, and a kernel of ours for them."""

    grain = "attention"
    native = False  # by a kernel of ours: CPU, inference

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend over views [b, m, n, d] of what a linear map gave; return the heads joined."""
        if self.native and native.can_attend(q.shape[-1]):
            return native.attend(q, k, v).transpose(1, 2).flatten(2)
        if q.device.type == "cpu":  # torch's kernels want them dense
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        return attention(q, k, v).transpose(1, 2).flatten(2)


def side_by_side(
    work: Callable[[list[PartT]], list[Tensor]], parts: Iterable[PartT]
) -> list[Tensor]:
    """Do work on several inputs; while a CUDA graph is captured, on each alone at the same time.

    Small kernels leave most of a GPU idle, so that in the graph each input gets a branch of its
    own. All that is read is made before, and all that is made is read after.
    """
    parts = list(parts)
    if torch.compiler.is_compiling() or not _capturing():
        return work(parts)
    main = torch.cuda.current_stream()
    first, *others = parts
    branches = [_branch(main.device_index, i) for i in range(len(others))]
    found: list[Tensor] = []
    for branch, part in zip(branches, others, strict=True):
        branch.wait_stream(main)
        with torch.cuda.stream(branch):
            found += work([part])
    found = work([first]) + found
    for branch in branches:
        main.wait_stream(branch)
    return found


def _capturing() -> bool:
    """Tell whether launches go into a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


@lru_cache(maxsize=16)
def _branch(device: int, i: int) -> torch.cuda.Stream:
    """Return the i-th stream beside the main one."""
    return torch.cuda.Stream(device)


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn neighbouring features (0,1), (2,3), ... of [..., d] by the angles of tables [..., d].

    Each feature uses its own table entry, so a table whose pairs disagree is not a true rotation;
    the published frame table is such a one (method, section 2) and is kept.
    """
    if x.dtype == torch.float32 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        return _rotate_complex(x, cos, sin)
    partners = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    signed = torch.stack((-sin[..., 0::2], sin[..., 1::2]), dim=-1).flatten(-2)
    return torch.addcmul(x * cos, partners, signed).to(x.dtype)


def _rotate_complex(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs as complex numbers: on the CPU copying partners costs more than all the rest."""
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))
    even = torch.complex(cos[..., 0::2], sin[..., 0::2])
    if torch.equal(even, torch.complex(cos[..., 1::2], sin[..., 1::2])):
        return torch.view_as_real(pairs * even).flatten(-2)
    partners = torch.view_as_real(pairs * 1j).flatten(-2)  # (-x1, x0), (-x3, x2), ...
    return partners.mul_(sin).addcmul_(x, cos)


class FeedForward(nn.Module):
    """Pre-norm MLP with residual: GEGLU (gated=True) or GELU."""

    fused = False  # by a kernel of ours: CUDA, inference

    def __init__(self, width: int, hidden: int, *, gated: bool) -> None:
        super().__init__()
        self.gated = gated
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * hidden if gated else hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., width] to the same shape."""
        hidden = self.up(self.norm(x))
        if self.gated and self.fused:
            hidden = kernels.geglu(hidden)
        elif self.gated:
            value, gate = hidden.chunk(2, dim=-1)
            hidden = value * F.gelu(gate)
        else:
            hidden = F.gelu(hidden)
        return x + self.down(hidden)


class SelfAttention(HeadAttention):
    """Pre-norm multi-head attention with residual over [b, n, c]; qkv without bias."""

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_dim
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """Let all tokens of [b, n, c] attend to all."""
        q, k, v = self._heads(map_normed(self.qkv, x, self.norm))
        return add_mapped(self.out, self.attend(q, k, v), x)

    def read_first(self, x: Tensor) -> Tensor:
        """Return only the first token's result [b, 1, c]: all that the last block must compute.

        The other tokens' queries are made in vain, 0.5 % of encoding: `qkv` stays one product.
        """
        q, k, v = self._heads(map_normed(self.qkv, x, self.norm))
        return add_mapped(self.out, self.attend(q[:, :, :1], k, v), x[:, :1])

    def _heads(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """Split [b, n, 3*m*d] into [b, m, n, d] each."""
        split = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        return split.permute(2, 0, 3, 1, 4).unbind(0)
