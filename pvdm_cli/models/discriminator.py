"""PatchGAN discriminators (Isola et al. 2017): is each patch of an image or clip real?

Axes: b batch, c channels, s frames, H x W pixels.
"""

from typing import NamedTuple

from torch import Tensor, nn

from pvdm_cli.models.batchnorm import BatchNorm2d, BatchNorm3d

KERNEL, PADDING, MOST = 4, 2, 512


class Judgement(NamedTuple):
    """What a discriminator makes of a batch."""

    logits: Tensor  # [b, 1, ...], one for each patch; above 0 means real
    features: list[Tensor]  # of each layer before them


class PatchDiscriminator(nn.Module):
    """Strided convolutions over images (dims=2) or clips (dims=3), each answer seeing one patch.

    Convolutions of kernel 4: `layers` of stride 2, then one of stride 1 and one for the logits;
    batch normalisation (over all processes) after all but the first and the last; LeakyReLU 0.2. Channels double up
    to 512.
    """

    def __init__(self, dims: int, *, channels: int, layers: int) -> None:
        super().__init__()
        convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if dims == 2 else nn.Conv3d
        norm: type[BatchNorm2d | BatchNorm3d] = BatchNorm2d if dims == 2 else BatchNorm3d
        widths = [min(channels * 2**i, max(MOST, channels)) for i in range(layers + 1)]
        self.blocks = nn.ModuleList()
        before = 3
        for number, width in enumerate(widths):
            first, last = number == 0, number == layers
            self.blocks.append(
                nn.Sequential(
                    convolution(before, width, KERNEL, stride=1 if last else 2, padding=PADDING),
                    nn.Identity() if first else norm(width),
                    nn.LeakyReLU(0.2),
                )
            )
            before = width
        self.to_logits = convolution(before, 1, KERNEL, padding=PADDING)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, BatchNorm2d | BatchNorm3d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, x: Tensor) -> Judgement:
        """Judge images [b, 3, H, W] or clips [b, 3, s, H, W] in [-1, 1]."""
        features = []
        for block in self.blocks:
            x = block(x)
            features.append(x)
        return Judgement(self.to_logits(x), features)
