"""LPIPS (Zhang et al. 2018) with VGG16: how different two images look.

Axes: b batch, H x W pixels, c channels.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Channels of the convolutions of VGG16; the features compared are those before each pooling.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pixels in [-1, 1]


class VGG16(nn.Module):
    """The convolutions of VGG16 (Simonyan and Zisserman 2015), named as torchvision names them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict()
        self.stages: list[list[str]] = []
        number, before = 0, 3
        for stage in STAGES:
            names = []
            for channels in stage:
                name = str(number)
                self.features[name] = nn.Conv2d(before, channels, 3, padding=1)
                names.append(name)
                number, before = number + 2, channels  # a ReLU follows each convolution
            number += 1  # and a pooling each stage
            self.stages.append(names)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map images [b, 3, H, W] to the last features [b, c, H', W'] of each stage."""
        found = []
        for stage, names in enumerate(self.stages):
            if stage:
                x = F.max_pool2d(x, 2)
            for name in names:
                x = F.relu(self.features[name](x))
            found.append(x)
        return found


class LPIPS(nn.Module):
    """Weighted squared distance of unit-length VGG16 features, mean over positions.

    Frozen: only the images get gradients. Both images need at least 16 pixels a side.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trunk = VGG16()
        self.heads = nn.ParameterList(
            [nn.Parameter(torch.rand(stage[-1])) for stage in STAGES]  # weights of channels, >= 0
        )
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])
        self.requires_grad_(False)

    def load_published(self, vgg16: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Take over the published files: torchvision's VGG16 and the heads `lin0` to `lin4`.

        Raises:
            KeyError: If one is not of its kind.
        """
        own = self.trunk.state_dict()
        self.trunk.load_state_dict({key: vgg16[key] for key in own})
        for number, head in enumerate(self.heads):
            head.data.copy_(heads[f"lin{number}.model.1.weight"].flatten())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Distance of each pair [b] of images [b, 3, H, W] in [-1, 1]."""
        both = self.trunk((torch.cat([x, y]) - self.shift) / self.scale)
        total = x.new_zeros(len(x))
        for features, head in zip(both, self.heads, strict=True):
            # The small number stands under the root: at a dead position its slope would be NaN.
            unit = features / (features.square().sum(1, keepdim=True) + 1e-10).sqrt()
            one, other = unit.chunk(2)
            difference = (one - other).square()
            total = total + (difference * head[:, None, None]).sum(1).mean((1, 2))
        return total
