"""TimeSformer: attention over frames, then over patches, then a feed-forward (Sec. 3.2).

Axes: b batch, s frames, h and w patch rows and columns, p = h*w patches, m heads, d head size,
c channels.
"""

from functools import lru_cache
from math import log2, pi
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pvdm_cli.models import kernels, native
from pvdm_cli.models.layers import (
    FeedForward,
    HeadAttention,
    add_mapped,
    attention,
    map_normed,
    rotate_pairs,
    run,
)


class Rotary(NamedTuple):
    """Cosine and sine of each position and feature, [n, d]."""

    cos: Tensor
    sin: Tensor


@lru_cache(maxsize=32)
def frame_rotary(s: int, d: int, device: torch.device) -> Rotary:
    """Table of s frames with frequencies 10000^(-2i/d).

    Angles lie as cat(f, f) although `rotate_pairs` pairs neighbours: the published layout.
    """
    frequencies = 10000.0 ** (-torch.arange(0, d, 2).float() / d)
    angles = torch.arange(s).float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)
    return _on_device(angles, device)


@lru_cache(maxsize=32)
def patch_rotary(h: int, w: int, d: int, device: torch.device) -> Rotary:
    """Axial table of h x w patches: half the features turn with the row, half with the column.

    Positions run over [-1, 1], frequencies from 1 to 10/2 times pi.
    """
    scales = torch.logspace(0.0, log2(10 / 2), d // 4, base=2) * pi
    rows = (torch.linspace(-1, 1, h)[:, None] * scales)[:, None].expand(h, w, -1)
    columns = (torch.linspace(-1, 1, w)[:, None] * scales)[None].expand(h, w, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1).repeat_interleave(2, dim=-1)
    return _on_device(angles, device)


def _on_device(angles: Tensor, device: torch.device) -> Rotary:
    """Make both tables from angles [n, d] (a normal tensor even under inference mode)."""
    with torch.inference_mode(mode=False), torch.no_grad():
        angles = angles.clone()
        return Rotary(angles.cos().to(device), angles.sin().to(device))


class AxisAttention(HeadAttention):
    """Pre-norm attention with residual over one axis of the token grid [b, s, p, c]."""

    fused = False  # by a kernel of ours: CUDA, inference

    def __init__(self, width: int, num_heads: int, head_dim: int, *, over_frames: bool) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.over_frames = num_heads, head_dim, over_frames
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * num_heads * head_dim, bias=False)
        self.out = nn.Linear(num_heads * head_dim, width)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Attend over frames (for each patch) or over patches (for each frame)."""
        qkv = map_normed(self.qkv, x, self.norm)
        qkv = qkv.unflatten(-1, (3, self.num_heads, self.head_dim))
        # [b, s, p, m, d] -> [b, p or s, m, s or p, d], and back
        order, back = (
            ((0, 2, 3, 1, 4), (0, 3, 1, 2, 4)) if self.over_frames else ((0, 1, 3, 2, 4),) * 2
        )
        if self.native and native.can_attend(self.head_dim):
            mixed = qkv.new_empty(qkv[..., 0, :, :].shape)
            q, k, v = (each.permute(order) for each in qkv.unbind(3))
            native.attend(q, k, v, mixed.permute(order), rotary)
            return add_mapped(self.out, mixed.flatten(3), x)
        if self.fused:
            kernels.rotate_(qkv, *rotary, over_frames=self.over_frames)
            q, k = qkv[..., :2, :, :].unbind(3)
        else:
            # Both at once and as they lie: each copy into another order costs more than attention.
            # [p, 2, m, d] of [b, s, p, 2, m, d]
            tables = [table[:, None, None] for table in rotary]
            if self.over_frames:
                tables = [table[:, None] for table in tables]  # [s, p, 2, m, d]
            q, k = rotate_pairs(qkv[..., :2, :, :], *tables).unbind(3)
        q, k, v = (each.permute(order).flatten(0, 1) for each in (q, k, qkv[..., 2, :, :]))
        mixed = attention(q, k, v).unflatten(0, (x.shape[0], -1))
        return add_mapped(self.out, mixed.permute(back).flatten(3), x)


class Block(nn.Module):
    """Time attention, space attention, GEGLU feed-forward (x4)."""

    grain = "block"

    def __init__(self, width: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.time = AxisAttention(width, num_heads, head_dim, over_frames=True)
        self.space = AxisAttention(width, num_heads, head_dim, over_frames=False)
        self.feed_forward = FeedForward(width, 4 * width, gated=True)

    def forward(self, x: Tensor, frames: Rotary, patches: Rotary) -> Tensor:
        """Map [b, s, p, c] to the same shape."""
        x = run(self.time, x, frames)
        return self.feed_forward(run(self.space, x, patches))


class TimeSformer(nn.Module):
    """A stack of blocks over the grid [b, s, h, w, c]."""

    def __init__(self, width: int, depth: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.blocks = nn.ModuleList(Block(width, num_heads, head_dim) for _ in range(depth))

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights, and so of the features."""
        first = self.blocks[0]
        assert isinstance(first, Block)
        return first.time.norm.weight.dtype

    def forward(self, x: Tensor) -> Tensor:
        """Map [b, s, h, w, c] to the same shape."""
        _, s, h, w, _ = x.shape
        frames = frame_rotary(s, self.head_dim, x.device)
        patches = patch_rotary(h, w, self.head_dim, x.device)
        x = x.flatten(2, 3)
        for block in self.blocks:
            x = run(block, x, frames, patches)
        return x.unflatten(2, (h, w))
