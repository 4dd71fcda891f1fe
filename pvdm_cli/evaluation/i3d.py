"""I3D, the network whose features the Frechet video distance compares (Carreira & Zisserman 2017).

Built as the TensorFlow original: "SAME" padding that follows from the size of what is padded, and
BatchNorm with eps 1e-3. Ports with PyTorch's 1e-5 move the distance by about 0.2 %. The names of
the weights are those of the PyTorch files in use (`Mixed_3b.b1a.bn.running_mean`).

Axes: b clips, s frames, H x W pixels.
"""

from collections import OrderedDict
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.video.pixels import to_float

SIDE = 224  # pixels of its input
NUM_FEATURES = 400  # classes of Kinetics-400; the features are their logits
FEWEST_FRAMES = 9  # below it the last average has fewer than its two steps in time
EPS = 1e-3  # TensorFlow's

Triple = tuple[int, int, int]  # along s, H, W

# Channels of a block's branches: 1x1x1; 1x1x1 -> 3x3x3; 1x1x1 -> 3x3x3; pool -> 1x1x1.
Branches = tuple[int, int, int, int, int, int]


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after an axis that TensorFlow calls "SAME": an odd one goes after."""
    total = max(kernel - (size % stride or stride), 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """Pad [b, c, s, H, W] with zeros: behind a ReLU they change no maximum either."""
    sides = [same_padding(*axis) for axis in zip(x.shape[2:], kernel, stride, strict=True)]
    flat = [amount for pair in reversed(sides) for amount in pair]
    return F.pad(x, flat) if any(flat) else x


class Unit(nn.Module):
    """Convolution -> BatchNorm -> ReLU."""

    def __init__(self, given: int, made: int, kernel: int = 1, stride: int = 1, eps: float = EPS):
        super().__init__()
        self.kernel, self.stride = (kernel, kernel, kernel), (stride, stride, stride)
        self.conv3d = nn.Conv3d(given, made, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(made, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[b, given, s, H, W] -> [b, made, ...]."""
        return F.relu(self.bn(self.conv3d(pad_same(x, self.kernel, self.stride))), inplace=True)


class Pool(nn.Module):
    """Maximum over a window, padded "SAME"."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """[b, c, s, H, W] -> the same, smaller by the stride; one axis after the other.

        torch's own max_pool3d also looks for the places of the maxima: a quarter of the time of
        the whole network on a CPU (0.82 s a clip with it, 0.60 without).
        """
        x = pad_same(x, self.kernel, self.stride)
        for axis, (kernel, stride) in enumerate(zip(self.kernel, self.stride, strict=True)):
            x = _maximum(x, axis + 2, kernel, stride)
        return x


def _maximum(x: Tensor, axis: int, kernel: int, stride: int) -> Tensor:
    """Maximum over windows along one axis."""
    span = (x.shape[axis] - kernel) // stride * stride + 1  # from the first start to the last
    ahead = (slice(None),) * axis
    shifted = [x[*ahead, slice(k, k + span, stride)] for k in range(kernel)]
    return reduce(torch.maximum, shifted)


class Mixed(nn.Module):
    """Four branches side by side (an inception block)."""

    def __init__(self, given: int, channels: Branches, eps: float = EPS) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.b0 = Unit(given, b0, eps=eps)
        self.b1a, self.b1b = Unit(given, b1a, eps=eps), Unit(b1a, b1b, 3, eps=eps)
        self.b2a, self.b2b = Unit(given, b2a, eps=eps), Unit(b2a, b2b, 3, eps=eps)
        self.b3a, self.b3b = Pool((3, 3, 3), (1, 1, 1)), Unit(given, b3b, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[b, given, s, H, W] -> [b, the branches' channels together, s, H, W]."""
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return torch.cat(branches, dim=1)


class Logits(nn.Module):
    """Average over 7 x 7 places and two steps in time, then one convolution."""

    def __init__(self, given: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(given, NUM_FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[b, given, s', 7, 7] -> [b, 400], averaged over time."""
        logits = self.conv3d(F.avg_pool3d(x, (2, 7, 7), 1))
        return logits.mean(dim=(2, 3, 4))


class I3D(nn.Sequential):
    """Clips x [b, 3, s, 224, 224] in [-1, 1], s >= 9 -> features [b, 400].

    Args:
        eps: Of BatchNorm; 1e-5 only to repeat the scores of a port that has it so.
    """

    def __init__(self, eps: float = EPS) -> None:
        halve, across = Pool((3, 3, 3), (2, 2, 2)), (1, 2, 2)
        layers: dict[str, nn.Module] = {
            "Conv3d_1a_7x7": Unit(3, 64, 7, 2, eps=eps),
            "pool_1": Pool((1, 3, 3), across),
            "Conv3d_2b_1x1": Unit(64, 64, eps=eps),
            "Conv3d_2c_3x3": Unit(64, 192, 3, eps=eps),
            "pool_2": Pool((1, 3, 3), across),
            "Mixed_3b": Mixed(192, (64, 96, 128, 16, 32, 32), eps),
            "Mixed_3c": Mixed(256, (128, 128, 192, 32, 96, 64), eps),
            "pool_3": halve,
            "Mixed_4b": Mixed(480, (192, 96, 208, 16, 48, 64), eps),
            "Mixed_4c": Mixed(512, (160, 112, 224, 24, 64, 64), eps),
            "Mixed_4d": Mixed(512, (128, 128, 256, 24, 64, 64), eps),
            "Mixed_4e": Mixed(512, (112, 144, 288, 32, 64, 64), eps),
            "Mixed_4f": Mixed(528, (256, 160, 320, 32, 128, 128), eps),
            "pool_4": Pool((2, 2, 2), (2, 2, 2)),
            "Mixed_5b": Mixed(832, (256, 160, 320, 32, 128, 128), eps),
            "Mixed_5c": Mixed(832, (384, 192, 384, 48, 128, 128), eps),
            "logits": Logits(1024),
        }
        super().__init__(OrderedDict(layers))


def prepare(frames: Tensor) -> Tensor:
    """Bring frames to the input of I3D, as the detector of StyleGAN-V does inside itself.

    Args:
        frames: uint8 [b, s, H, W, 3].

    Returns:
        float32 [b, 3, s, 224, 224] in [-1, 1], resized bilinearly without antialias.
    """
    x = to_float(frames)
    size = (x.shape[2], SIDE, SIDE)
    if x.shape[2:] == size:
        return x
    return F.interpolate(x, size, mode="trilinear", align_corners=False)
