"""FVD of a few drawn videos while a denoiser is trained: too few to compare, enough for a trend.

Axes: b videos, s frames of a clip, H x W pixels.
"""

import torch
from torch import Tensor

from pvdm_cli.classes import draw_class
from pvdm_cli.config import RunConfig
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.live import LiveLatents
from pvdm_cli.evaluation.reconstruction import FeatureDistance
from pvdm_cli.latents import unflatten
from pvdm_cli.model import Model
from pvdm_cli.rollout import rollout
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import Sampling, Steps
from pvdm_cli.video.pixels import to_uint8

STEPS = 50  # of the videos drawn during training
BATCH = 4
DRAWN = 0xF7D  # a word that keys these draws apart from others


class FewVideos:
    """Distance of first clips drawn from a model from as many decoded ones of the training data.

    Against decoded clips, not real ones: what the autoencoder loses is not the denoiser's doing.
    The same clips and the same noise each time.
    """

    def __init__(
        self, config: RunConfig, latents: Cache | LiveLatents, device: torch.device
    ) -> None:
        every = config.training.score_every
        self._distance = FeatureDistance.load(
            device, config.clip.frames, key="training.score_every", on=every, off=0
        )
        self._config, self._latents = config, latents
        self._count = min(config.training.score_videos, len(latents))
        self._real: Tensor | None = None

    @property
    def name(self) -> str:
        """Name of the figure: it says of how few videos it is."""
        return f"fvd_of_{self._count}"

    def __call__(self, model: Model) -> dict[str, float]:
        """Score a model."""
        if self._real is None:
            self._real = torch.cat([self._decoded(model, part) for part in self._parts()])
        drawn = torch.cat([self._drawn(model, part) for part in self._parts()])
        return {self.name: self._distance(self._real, drawn)}

    def _parts(self) -> list[list[int]]:
        """Numbers of the videos, a few at a time."""
        numbers = list(range(self._count))
        return [numbers[k : k + BATCH] for k in range(0, self._count, BATCH)]

    def _decoded(self, model: Model, part: list[int]) -> Tensor:
        """Clips uint8 [b, s, H, W, 3] of the training data, spread over all of it."""
        rows = torch.linspace(0, len(self._latents) - 1, self._count).long()[part]
        z = self._latents.read(rows, dtype=torch.float32).to(model.device)
        with torch.no_grad():
            return to_uint8(model.autoencoder.decode(unflatten(z, model.config.latent))).cpu()

    def _drawn(self, model: Model, part: list[int]) -> Tensor:
        """First clips uint8 [b, s, H, W, 3] of new videos; of classes by lot, if there are any."""
        assert model.config.diffusion is not None
        steps = min(STEPS, model.config.diffusion.num_timesteps)
        seed = self._config.training.seed
        draws = [generator(model.device, seed, number, DRAWN) for number in part]
        sampling = Sampling(steps=Steps(steps, steps), eta=0.0)
        num_classes = len(model.config.classes)
        labels = [draw_class(num_classes, seed, number) for number in part] if num_classes else None
        told = None if labels is None else torch.tensor(labels, device=model.device)
        clips = list(rollout(model, 1, generators=draws, sampling=sampling, labels=told))
        return to_uint8(torch.cat(clips, dim=2)).cpu()
