"""The autoencoder's opponent in the second phase: one PatchGAN for frames, one for clips.

Axes: b batch, s frames, H x W pixels.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.config import AdversarialConfig
from pvdm_cli.models.discriminator import Judgement, PatchDiscriminator


class Seen(NamedTuple):
    """What the discriminators are shown."""

    frame: Tensor  # [b, 3, H, W], one frame of each clip
    clip: Tensor  # [b, 3, s, H, W]

    def detached(self) -> "Seen":
        """The same without gradients."""
        return Seen(self.frame.detach(), self.clip.detach())


class Adversary(nn.Module):
    """Both discriminators, and what they mean for either side (method, section 2)."""

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        sizes = {"channels": config.discriminator_channels, "layers": config.discriminator_layers}
        self.frame = PatchDiscriminator(2, **sizes)
        self.clip = PatchDiscriminator(3, **sizes)

    def judge(self, seen: Seen) -> list[Judgement]:
        """Let each discriminator see its part."""
        return [self.frame(seen.frame), self.clip(seen.clip)]

    def generator_terms(self, fake: Seen, real: Seen) -> dict[str, Tensor]:
        """What the autoencoder should lower: `generator` (hinge) and `features` (matching).

        Both are sums over the discriminators; `features` is also one over layers, each the mean
        absolute difference.
        """
        self.requires_grad_(False)  # gradients pass through to the autoencoder only
        with torch.no_grad():
            wanted = self.judge(real)
        found = self.judge(fake)
        generator = torch.stack([-each.logits.mean() for each in found]).sum()
        features = torch.stack(
            [
                F.l1_loss(ours, theirs)
                for judged, original in zip(found, wanted, strict=True)
                for ours, theirs in zip(judged.features, original.features, strict=True)
            ]
        ).sum()
        return {"generator": generator, "features": features}

    def discriminator_terms(self, fake: Seen, real: Seen) -> dict[str, Tensor]:
        """What the discriminators should lower (hinge loss), and how often each side is told.

        Returns:
            `loss`, and the shares `real_accuracy` and `fake_accuracy` of patches judged rightly.
        """
        self.requires_grad_(True)
        judged_real, judged_fake = self.judge(real), self.judge(fake.detached())
        losses = [
            0.5 * (F.relu(1 - true.logits).mean() + F.relu(1 + false.logits).mean())
            for true, false in zip(judged_real, judged_fake, strict=True)
        ]
        return {
            "loss": torch.stack(losses).sum(),
            "real_accuracy": _share([each.logits > 0 for each in judged_real]),
            "fake_accuracy": _share([each.logits < 0 for each in judged_fake]),
        }


def _share(right: list[Tensor]) -> Tensor:
    """Mean over discriminators of the share of patches that are right."""
    return torch.stack([each.float().mean() for each in right]).mean()
