"""uint8 frames <-> the networks' pixels x in [-1, 1], and how far two such x are apart.

Nothing else may convert between them.

Axes: b clips, s frames, h x w (here H, W) pixels.
"""

import torch
from torch import Tensor


def to_float(frames: Tensor) -> Tensor:
    """Turn frames into pixels: 0 -> -1, 255 -> 1.

    Args:
        frames: uint8 [..., s, H, W, 3].

    Returns:
        float32 [..., 3, s, H, W] in [-1, 1], contiguous.
    """
    _expect_frames(frames)
    return frames.movedim(-1, -4).to(torch.float32).contiguous().div_(127.5).sub_(1)


def to_uint8(x: Tensor) -> Tensor:
    """Turn pixels into frames, rounding halves up and clamping what lies outside [-1, 1].

    `to_uint8(to_float(frames))` gives the frames back exactly.

    Args:
        x: floating [3, s, H, W] or [b, 3, s, H, W].

    Returns:
        uint8 [..., s, H, W, 3], contiguous, on the device of x.
    """
    if x.ndim not in (4, 5) or x.shape[-4] != 3:
        raise ValueError(f"expected pixels [3, s, H, W] or [b, 3, s, H, W], got {list(x.shape)}")
    # (x + 1) * 127.5 + 0.5, floored by the cast: `round` would send halves to even numbers.
    grey = x.detach().to(torch.float32).add(1).mul_(127.5).add_(0.5).clamp_(0, 255)
    return grey.to(torch.uint8).movedim(-4, -1).contiguous()


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip [b] for pixels in [-1, 1]."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(1).clamp(min=1e-10))


def _expect_frames(frames: Tensor) -> None:
    """Refuse anything but uint8 [..., s, H, W, 3]: a swapped axis would train silently."""
    if frames.dtype != torch.uint8 or frames.ndim < 4 or frames.shape[-1] != 3:
        raise ValueError(
            f"expected uint8 frames [..., s, H, W, 3], got {frames.dtype} {list(frames.shape)}"
        )
