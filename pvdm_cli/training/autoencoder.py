"""Stage one: the autoencoder learns to reconstruct clips (Sec. 3.2, first phase).

Axes: b batch, s frames, H x W pixels.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from pvdm_cli.config import RunConfig
from pvdm_cli.data.clips import Clips
from pvdm_cli.errors import ConfigError
from pvdm_cli.model import Model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.video.pixels import to_float, to_uint8

ShowVideos = Callable[[Tensor, Tensor, Path], None]  # originals, reconstructions, path


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each clip [b] for pixels in [-1, 1]."""
    return 10 * torch.log10(4 / (a - b).square().flatten(1).mean(1).clamp(min=1e-10))


def refuse_untrainable(config: RunConfig) -> None:
    """Refuse what this version cannot train, before any data is read.

    Raises:
        ConfigError: For the adversarial phase and for the perceptual loss.
    """
    if config.adversarial is not None:
        raise ConfigError(
            "the adversarial phase cannot be trained by this version yet; "
            "use the preset without it (`pvdm presets ls`)"
        )
    if config.loss.lpips:
        raise ConfigError(
            f"loss.lpips={config.loss.lpips:g}: the perceptual loss cannot be computed by "
            "this version yet; add loss.lpips=0 to train without it"
        )


class AutoencoderStage:
    """Reconstruction training on clips."""

    weights_file = "autoencoder.safetensors"

    def __init__(
        self,
        config: RunConfig,
        network: Autoencoder,
        train: Clips,
        held_out: Clips | None,
        show: ShowVideos,
    ) -> None:
        self.config, self.network, self.train, self.show = config, network, train, show
        self.held_out = held_out
        self.device = next(network.parameters()).device
        self.validation = (
            held_out.first_windows(config.training.validation_clips) if held_out else None
        )

    def draw(self, step: int, micro: int) -> Tensor:
        """Draw clips as uint8 [b, s, H, W, 3]."""
        settings = self.config.training
        samples = range(micro * settings.batch_size, (micro + 1) * settings.batch_size)
        return self.train.draw(settings.seed, step, samples)

    def losses(self, network: nn.Module, batch: Tensor) -> dict[str, Tensor]:
        """Weighted L1 and L2 between clips and reconstructions."""
        x = to_float(batch.to(self.device, non_blocking=True))
        error = network(x).float() - x
        terms = {"l1": error.abs().mean(), "l2": error.square().mean()}
        weights = self.config.loss
        return {"loss": weights.l1 * terms["l1"] + weights.l2 * terms["l2"], **terms}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR on the first clip of each held-out video, beside repeating each clip's mean frame."""
        if self.validation is None:
            return {}
        ours, still = [], []
        for frames in self.validation.split(self.config.training.batch_size):
            x = to_float(frames.to(self.device))
            ours.append(psnr(network(x), x))
            still.append(psnr(x.mean(2, keepdim=True).expand_as(x), x))
        return {
            "val_psnr": float(torch.cat(ours).mean()),
            "val_psnr_mean_frame": float(torch.cat(still).mean()),
        }

    def model(self, network: nn.Module) -> Model:
        """Wrap the autoencoder alone."""
        assert isinstance(network, Autoencoder)
        config = self.config.model().model_copy(update={"denoiser": None, "diffusion": None})
        return Model(config, network, fps=self.train.fps, provenance={"stage": "autoencoder"})

    def sample(self, network: nn.Module, path: Path) -> None:
        """Show held-out clips beside their reconstructions."""
        clips = self.validation if self.validation is not None else self.train.first_windows(4)
        frames = clips[:4]
        x = to_float(frames.to(self.device))
        self.show(frames, to_uint8(network(x).cpu()), path)
