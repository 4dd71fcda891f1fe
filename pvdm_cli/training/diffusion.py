"""Stage two: the denoiser learns the latents of a cache (Sec. 3.3, joint training).

Axes: b batch, c latent channels, n flat latent length.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pvdm_cli.config import ClipConfig, DiffusionConfig, RunConfig
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.catalog import Source, split
from pvdm_cli.data.live import LiveLatents
from pvdm_cli.data.source import original
from pvdm_cli.diffusion.objective import diffusion_loss, draw, drop_labels, mask_prefix
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.errors import ConfigError, DataError
from pvdm_cli.model import Model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import NULL_CLASS, Denoiser
from pvdm_cli.models.layers import recompute
from pvdm_cli.runtime import generator
from pvdm_cli.training.metrics import tally

ShowSamples = Callable[[Model, Path], None]
VALIDATION = 0x7A1  # a fourth word keys validation draws apart from training draws


class JudgeSamples(Protocol):
    """Measures videos drawn from a model; lower is better."""

    @property
    def name(self) -> str:
        """Name of the figure."""

    def __call__(self, model: Model) -> dict[str, float]:
        """Measure."""


class Batch(NamedTuple):
    """Latents and everything drawn for them."""

    z0: Tensor  # [b, c, n]
    z_prefix: Tensor  # [b, c, n], anything where the null prefix is trained
    keep: Tensor  # bool [b], False where the null prefix is trained
    level: Tensor  # [b], standard deviation of the noise on the prefix
    prefix_eps: Tensor  # [b, c, n], or [b, 1, 1] where no prefix is noised
    t: Tensor  # int64 [b]
    eps: Tensor  # [b, c, n]
    label: Tensor  # int64 [b], place in the classes of the network, NULL_CLASS for none


class DiffusionStage:
    """Joint training with and without the previous clip, from a latent cache."""

    weights_file = "denoiser.safetensors"
    rival = None
    rival_share = 1.0

    def __init__(
        self,
        config: RunConfig,
        network: Denoiser,
        autoencoder: Autoencoder,
        cache: Cache | LiveLatents,
        show: ShowSamples,
        judge: JudgeSamples | None = None,
    ) -> None:
        assert config.diffusion is not None
        self.config, self.network, self.cache, self.show = config, network, cache, show
        self.judge = judge
        self.judged_by = ("val_loss", -1)
        if judge is not None and config.training.judge == "fvd":
            self.judged_by = (judge.name, -1)
        self.diffusion = config.diffusion
        recompute(network, config.training.activation_checkpointing)
        self.autoencoder = autoencoder
        self.schedule = Schedule.from_config(config.diffusion)
        self.device = next(network.parameters()).device
        self.predecessor = _predecessors(cache, self.diffusion)  # -1 where a clip continues none
        self.classes = config.classes
        self.labels = labels_of(cache, self.classes)  # int64 [rows]
        self.train, self.held_out = _split_rows(cache, config.data.holdout)

    def draw(self, step: int, samples: range) -> Batch:
        """Draw latents, their prefixes, timesteps and noise."""
        settings = self.config.training
        keys = [(settings.seed, step, sample) for sample in samples]
        picks = [int(np.random.default_rng(key).integers(len(self.train))) for key in keys]
        return self._batch(self.train[picks], keys)

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Mean squared error of the prediction, also by quarter of the timesteps (t1: least noise)."""
        batch = self._at_device(batch)
        loss = self._per_sample(network, batch, self.diffusion.min_snr)
        quarter = 4 * batch.t // self.diffusion.num_timesteps
        parts = {f"loss_t{q + 1}": tally(loss.detach(), quarter == q) for q in range(4)}
        return {"loss": loss.mean(), **parts}

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Loss on held-out videos at fixed draws, with the prefix where there is one and without."""
        if not len(self.held_out):
            return {}
        settings = self.config.training
        spread = torch.linspace(0, len(self.held_out) - 1, settings.validation_clips).long()
        rows = self.held_out[spread]
        given, null = [], []
        keys = [(settings.seed, 0, sample, VALIDATION) for sample in range(len(rows))]
        for start in range(0, len(rows), settings.batch_size):
            now = slice(start, start + settings.batch_size)
            part = rows[now]
            batch = self._at_device(self._batch(part, keys[now], 1.0, 0.0, 0.0))
            given.append(self._per_sample(network, batch)[batch.keep])
            without = batch._replace(keep=torch.zeros_like(batch.keep))
            null.append(self._per_sample(network, without))
        found = {"val_loss": float(torch.cat(null).mean())}
        if with_prefix := torch.cat(given).tolist():
            found["val_loss_prefix"] = sum(with_prefix) / len(with_prefix)
        return found

    def score(self, network: nn.Module) -> dict[str, float]:
        """Measure drawn videos, where `training.score_every` asks for it."""
        return self.judge(self.model(network)) if self.judge else {}

    def model(self, network: nn.Module) -> Model:
        """Put the denoiser beside the autoencoder whose latents it knows."""
        assert isinstance(network, Denoiser)
        provenance = {"stage": "diffusion", "cache": self.cache.path.name}
        fps = self.cache.manifest.fps
        return Model(self.config.model(), self.autoencoder, network, fps, provenance)

    def sample(self, network: nn.Module, path: Path) -> None:
        """Show sampled videos."""
        self.show(self.model(network), path)

    def _at_device(self, batch: Batch) -> Batch:
        """Bring a batch to the network, and its latents to the network's scale."""
        batch = Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch))
        z0, z_prefix = self.network.normalise(batch.z0), self.network.normalise(batch.z_prefix)
        z_prefix = z_prefix + batch.level[:, None, None] * batch.prefix_eps
        return batch._replace(z0=z0, z_prefix=z_prefix)

    def _per_sample(self, network: nn.Module, batch: Batch, min_snr: float = 0.0) -> Tensor:
        """Loss of each sample [b]; validation weighs all timesteps the same."""
        told = {"prefix_noise": torch.where(batch.keep, batch.level, 0)}
        if self.classes:
            told["label"] = batch.label
        return diffusion_loss(
            partial(network, **told),
            self.schedule,
            batch.z0,
            mask_prefix(batch.z_prefix, batch.keep),
            batch.t,
            batch.eps,
            self.diffusion.objective,
            min_snr,
        )

    def _batch(
        self,
        rows: Tensor,
        keys: Sequence[tuple[int, ...]],
        prefix_prob: float | None = None,
        prefix_noise: float | None = None,
        class_dropout: float | None = None,
    ) -> Batch:
        """Read rows and their predecessors; draw t, noise and coins of each by its key."""
        z0 = self.cache.read(rows, dtype=torch.float32)
        before = self.predecessor[rows]
        z_prefix = self.cache.read(before.clamp(min=0), dtype=torch.float32)
        coin = self.diffusion.prefix_prob if prefix_prob is None else prefix_prob
        generators = [generator("cpu", *key) for key in keys]
        noise = self.diffusion.prefix_noise if prefix_noise is None else prefix_noise
        draws = draw(z0, self.diffusion.num_timesteps, coin, generators, noise)
        label = self.labels[rows]
        if self.classes:
            dropout = self.diffusion.class_dropout if class_dropout is None else class_dropout
            label = drop_labels(label, dropout, NULL_CLASS, generators)
        keep = draws.keep & (before >= 0)
        return Batch(z0, z_prefix, **draws._replace(keep=keep)._asdict(), label=label)


def labels_of(cache: Cache | LiveLatents, classes: Sequence[str]) -> Tensor:
    """Label of each row, int64 [rows], as the place of its class's name in `classes`.

    Raises:
        DataError: If the cache has a class that is not among them.
    """
    if not classes:
        return torch.full((len(cache),), NULL_CLASS)
    names, labels = cache.manifest.labels, cache.index[:, 2]
    for name in (names[label] for label in labels.unique().tolist() if label >= 0):
        if name not in classes:
            raise DataError(
                f"{cache.path} has the class {name!r}, which denoiser.classes does not name: name "
                "it too, or leave denoiser.classes out"
            )
    places = [classes.index(name) if name in classes else NULL_CLASS for name in names]
    return torch.tensor([*places, NULL_CLASS])[labels]  # the last for rows without a class


def check_stride(cache: Cache, clip: ClipConfig) -> None:
    """Refuse a cache of another frame stride.

    Raises:
        DataError: Naming both.
    """
    stride = cache.manifest.clip.frame_stride
    if stride != clip.frame_stride:
        raise DataError(
            f"cache {cache.path} has every frame_stride={stride}-th frame, the settings say "
            f"clip.frame_stride={clip.frame_stride}; give clip.frame_stride={stride}"
        )


FREE = {"frame_stride"}  # an autoencoder does not know what it was trained on; the cache does


def check_geometry(config: RunConfig, autoencoder: Model) -> None:
    """Refuse an autoencoder of another geometry than the configuration's.

    Raises:
        ConfigError: Naming the keys that differ.
    """
    ours, theirs = config.model(), autoencoder.config
    for section in ("clip", "autoencoder"):
        mine, other = getattr(ours, section), getattr(theirs, section)
        keys = [
            key
            for key in type(mine).model_fields
            if getattr(mine, key) != getattr(other, key) and key not in FREE
        ]
        if keys:
            pairs = ", ".join(
                f"{section}.{key}={getattr(mine, key)} (the autoencoder has {getattr(other, key)})"
                for key in keys
            )
            raise ConfigError(f"preset and autoencoder do not match: {pairs}")


def _predecessors(cache: Cache | LiveLatents, diffusion: DiffusionConfig) -> Tensor:
    """Row number [rows] of the clip before each clip, -1 where there is none.

    Raises:
        DataError: If the cache's window stride leaves all clips without one.
    """
    manifest = cache.manifest
    later = manifest.clip.frames - diffusion.overlap
    if diffusion.prefix_prob and later % manifest.window_stride:
        raise DataError(
            f"cache {cache.path} has a clip every {manifest.window_stride} frames, so none starts "
            f"{later} frames after another: encode again with a --window-stride that divides "
            f"{later}, or train with diffusion.prefix_prob=0"
        )
    before = torch.full((len(cache),), -1, dtype=torch.int64)
    pairs = cache.pairs(diffusion.overlap)
    before[pairs.next] = pairs.first
    return before


def _split_rows(cache: Cache | LiveLatents, holdout: float) -> tuple[Tensor, Tensor]:
    """Rows of the training videos and of those held out (by hash of the video's name)."""
    used = [video for video in cache.videos if len(cache.rows_of(video.video))]
    sources = [Source(Path(video.path), original(video.path)) for video in used]
    _, held_out = split(sources, holdout)
    names = {source.name for source in held_out}
    chosen = [video.video for video in used if original(video.path) in names]
    numbers = torch.tensor(chosen, dtype=torch.int64)
    held = torch.isin(cache.index[:, 0], numbers)
    rows = torch.arange(len(cache))
    return rows[~held], rows[held]
