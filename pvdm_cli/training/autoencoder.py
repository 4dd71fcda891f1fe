"""Stage one: the autoencoder learns to reconstruct clips (Sec. 3.2, first phase).

Axes: b batch, s frames, H x W pixels, c latent channels, n flat latent length.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pvdm_cli.config import AdversarialConfig, RunConfig
from pvdm_cli.data.clips import Clips
from pvdm_cli.latents import flatten, unflatten
from pvdm_cli.model import Model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.layers import recompute
from pvdm_cli.models.perceptual import LPIPS
from pvdm_cli.runtime import generator
from pvdm_cli.training.adversary import Adversary, Seen
from pvdm_cli.training.players import Rival
from pvdm_cli.video.pixels import psnr, to_float, to_uint8

SHOWN = 0xF4A  # a fourth word keys the draw of frames apart from other draws
Distance = Callable[[Tensor, Tensor], float]  # of originals and reconstructions, as sets
ShowVideos = Callable[[Tensor, Tensor, Path], None]  # originals, reconstructions, path


def shares(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Share of each weighted term in the sum of their sizes, where there is more than one."""
    if len(parts) < 2:
        return {}
    sizes = torch.stack([*parts.values()]).detach().abs()
    names = [f"{name}_share" for name in parts]
    return dict(zip(names, sizes / sizes.sum().clamp(min=1e-30), strict=True))


class ClipBatch(NamedTuple):
    """Clips and what is drawn for them."""

    frames: Tensor  # uint8 [b, s, H, W, 3]
    shown: Tensor  # int64 [b], the frame of each clip that the perceptual loss looks at
    noise: Tensor | None  # [b, c, n], added to the latents
    step: int


class AutoencoderStage:
    """Reconstruction training on clips.

    Args:
        config: The run.
        network: The autoencoder.
        train: Clips to learn from.
        held_out: Clips to measure on.
        show: Writes originals beside reconstructions.
        perceptual: The perceptual loss, where `loss.lpips` asks for it.
        adversary: The discriminators of the second phase.
        rfvd: Measures reconstructions where `training.judge` goes by it.
    """

    weights_file = "autoencoder.safetensors"
    rival_share = 1.0

    def __init__(
        self,
        config: RunConfig,
        network: Autoencoder,
        train: Clips,
        held_out: Clips | None,
        show: ShowVideos,
        perceptual: LPIPS | None = None,
        adversary: Adversary | None = None,
        rfvd: Distance | None = None,
    ) -> None:
        self.config, self.network, self.train, self.show = config, network, train, show
        self.perceptual, self.adversary = perceptual, adversary
        self.held_out, self.rfvd = held_out, rfvd
        self.judged_by = ("val_psnr", 1) if rfvd is None else ("val_rfvd", -1)
        recompute(network, config.training.activation_checkpointing)
        self.device = next(network.parameters()).device
        self.validation = (
            held_out.first_windows(config.training.validation_clips) if held_out else None
        )

    def draw(self, step: int, samples: range) -> ClipBatch:
        """Draw clips, a frame of each, and noise for their latents if the loss asks for it."""
        settings = self.config.training
        noise = None
        if self.config.loss.latent_noise:
            noise = torch.stack([self._noise(settings.seed, step, i) for i in samples])
        frames = self.config.clip.frames
        shown = torch.stack(
            [
                torch.randint(frames, (), generator=generator("cpu", settings.seed, step, i, SHOWN))
                for i in samples
            ]
        )
        clips = self.train.draw(settings.seed, step, samples, flip=self.config.data.flip)
        return ClipBatch(clips, shown, noise, step)

    def _noise(self, *key: int) -> Tensor:
        """Draw noise [c, n] whose standard deviation is uniform in [0, loss.latent_noise].

        A sampled latent is never quite one that the encoder gives; a decoder that has only seen
        those turns small errors into visible patch borders.
        """
        latent, draws = self.config.latent, generator("cpu", *key)
        level = self.config.loss.latent_noise * torch.rand((), generator=draws)
        return level * torch.randn(latent.c, latent.flat, generator=draws)

    def losses(self, network: nn.Module, batch: ClipBatch) -> dict[str, Tensor]:
        """Weighted sum of L1, L2, LPIPS, and what the discriminators think (method, section 2)."""
        real, fake = self._seen(network, batch)
        terms, weights = self._reconstruction_terms(fake, real), self.config.loss
        weight_of = {"l1": weights.l1, "l2": weights.l2, "lpips": weights.lpips}
        if self.adversary is not None:
            terms |= self.adversary.generator_terms(fake, real)
            share = self._adversarial_share(batch.step)
            weight_of["generator"] = share * self.adversarial.generator_weight
            weight_of["features"] = share * self.adversarial.feature_weight
        parts = {name: weight_of[name] * term for name, term in terms.items() if weight_of[name]}
        return {"loss": torch.stack([*parts.values()]).sum(), **terms, **shares(parts)}

    def _reconstruction_terms(self, fake: Seen, real: Seen) -> dict[str, Tensor]:
        """L1, L2 and LPIPS (of one frame) of reconstructions."""
        error = fake.clip - real.clip
        terms = {"l1": error.abs().mean(), "l2": error.square().mean()}
        if self.perceptual is not None:
            terms["lpips"] = self.perceptual(fake.frame, real.frame).mean()
        return terms

    @property
    def rival(self) -> Rival | None:
        """The discriminators, in the second phase."""
        if self.adversary is None:
            return None
        clip = self.adversarial.discriminator_grad_clip
        return Rival("adversary", self.adversary, self.adversary_losses, clip)

    def adversary_losses(self, batch: ClipBatch) -> dict[str, Tensor]:
        """Hinge loss of the discriminators on reconstructions made without gradients."""
        assert self.adversary is not None
        with torch.no_grad():
            real, fake = self._seen(self.network, batch)
        return self.adversary.discriminator_terms(fake, real)

    @property
    def adversarial(self) -> AdversarialConfig:
        """Settings of the second phase."""
        assert self.config.adversarial is not None
        return self.config.adversarial

    def _adversarial_share(self, step: int) -> float:
        """Share of the adversarial weights that counts at a step: rises from 0 to 1."""
        return self.rival_share * min(1.0, (step + 1) / max(1, self.adversarial.ramp_steps))

    def _seen(self, network: nn.Module, batch: ClipBatch) -> tuple[Seen, Seen]:
        """Reconstruct a batch; return clips with one frame of each, and their reconstructions."""
        assert isinstance(network, Autoencoder)
        x = to_float(batch.frames.to(self.device, non_blocking=True))
        z = network.encode(x)
        if batch.noise is not None:
            noisy = flatten(z) + batch.noise.to(self.device, non_blocking=True)
            z = unflatten(noisy, self.config.latent)
        y = network.decode(z).float()
        rows, shown = torch.arange(len(x), device=self.device), batch.shown.to(self.device)
        return Seen(x[rows, :, shown], x), Seen(y[rows, :, shown], y)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """PSNR and loss on the first clip of each held-out video, and PSNR of its mean frame.

        Where training goes by it, also the distance of all clips from their reconstructions.
        """
        if self.validation is None:
            return {}
        ours, still, losses, again = [], [], [], []
        for frames in self.validation.split(self.config.training.batch_size):
            x = to_float(frames.to(self.device))
            y = network(x)
            ours.append(psnr(y, x))
            still.append(psnr(x.mean(2, keepdim=True).expand_as(x), x))
            losses.append(self._reconstruction_loss(y, x) * len(x))
            again += [to_uint8(y).cpu()] if self.rfvd else []
        return {
            "val_psnr": float(torch.cat(ours).mean()),
            "val_psnr_mean_frame": float(torch.cat(still).mean()),
            "val_loss": float(torch.stack(losses).sum()) / len(self.validation),
            **({"val_rfvd": self.rfvd(self.validation, torch.cat(again))} if self.rfvd else {}),
        }

    def _reconstruction_loss(self, y: Tensor, x: Tensor) -> Tensor:
        """Loss of reconstructions y of clips x [b, 3, s, H, W], LPIPS at their middle frames."""
        middle = x.shape[2] // 2
        terms = self._reconstruction_terms(Seen(y[:, :, middle], y), Seen(x[:, :, middle], x))
        weights = self.config.loss
        return torch.stack([getattr(weights, name) * term for name, term in terms.items()]).sum()

    def score(self, network: nn.Module) -> dict[str, float]:
        """Nothing is drawn in this stage."""
        return {}

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
