"""Algorithm 1: a long video, clip by clip, each clip conditioned on the latent of the one before.

Axes: b videos, c latent channels, n flat latent length, s frames of a clip, H x W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pvdm_cli.diffusion.samplers import Bounds, Draw, OnStep, Predict, noised
from pvdm_cli.guidance import predictor, within
from pvdm_cli.latents import Planes, unflatten
from pvdm_cli.model import Model
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.noise import Source, fill
from pvdm_cli.sampling import PUBLISHED, Sampling
from pvdm_cli.stopwatch import Timer, untimed


class Position(NamedTuple):
    """Where a roll-out stands after a clip: everything that the clips to come depend on."""

    z: Tensor  # [b, c, n]: latents of the clip, in the denoiser's scale
    noise: list[Tensor]  # state of each video's source of noise, uint8


def rollout(
    model: Model,
    num_clips: int,
    *,
    generators: Sequence[Source],
    sampling: Sampling = PUBLISHED,
    z_prefix: Tensor | None = None,
    labels: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """Yield pixels x [b, 3, s, H, W] in [-1, 1], clip by clip (Algorithm 1).

    A clip is decoded as soon as its latent is ready. Video i draws from generators[i] alone, so it
    is the same in any batch, up to float rounding. A model trained with `diffusion.overlap` draws
    the last frames of a clip again with the next one; the two fade into each other.

    Args:
        model: With a denoiser; on the device to sample on.
        num_clips: Clips L of each video.
        generators: One per video, b of them.
        sampling: Steps, sampler, eta, guidance.
        z_prefix: Latents [b, c, n] of clips to continue; None starts from nothing.
        labels: Class of each video, int64 [b], as its place in the model's classes; -1: none. None:
            none for all.
        on_step: Called as (k, steps of this clip) after each step.

    Raises:
        PvdmError: If the model has no denoiser or cannot be sampled this way; raised at the call,
            not at the first clip.
    """
    latents = rollout_latents(
        model,
        num_clips,
        generators=generators,
        sampling=sampling,
        z_prefix=z_prefix,
        labels=labels,
        on_step=on_step,
    )
    return decoded(model, latents)


def rollout_latents(
    model: Model,
    num_clips: int,
    *,
    generators: Sequence[Source],
    sampling: Sampling = PUBLISHED,
    z_prefix: Tensor | None = None,
    labels: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """As `rollout`, without decoding: yield the latents z0 [b, c, n] of one clip after another."""
    positions = rollout_positions(
        model,
        num_clips,
        generators=generators,
        sampling=sampling,
        z_prefix=z_prefix,
        labels=labels,
        on_step=on_step,
    )
    return (latents_at(model, position) for position in positions)


def rollout_positions(
    model: Model,
    num_clips: int,
    *,
    generators: Sequence[Source],
    sampling: Sampling = PUBLISHED,
    z_prefix: Tensor | None = None,
    z_init: Tensor | None = None,
    start: Position | None = None,
    labels: Tensor | None = None,
    on_step: OnStep | None = None,
    timer: Timer = untimed,
) -> Iterator[Position]:
    """As `rollout_latents`, yielding where the roll-out stands after each clip.

    Args:
        model: As there, and so are the others that are not named here.
        num_clips: Clips to draw.
        generators: One per video.
        sampling: Its strength says how much of z_init is noised away.
        z_prefix: Latents [b, c, n] to continue.
        z_init: Latents [b, c, n] that the first clip starts from, instead of from noise alone.
        start: Position to go on from; the clips are those of a roll-out that never stopped.
        labels: Class of each video.
        on_step: Called after each step.
        timer: Measures what is spent in the "network".
    """
    model.require_denoiser("this model")
    assert model.config.diffusion is not None
    sampling.check(model.config.diffusion)
    if not generators:
        raise ValueError("no generators: one is needed per video")
    if sum(each is not None for each in (z_prefix, z_init, start)) > 1:
        raise ValueError("a roll-out has one start: z_prefix, z_init or a position")
    sampling.check_labels(labels, model.config)
    if start is not None:
        for source, state in zip(generators, start.noise, strict=True):
            source.set_state(state)
    run = _Run(model, generators, sampling, labels, on_step, timer)
    return run.clips(num_clips, z_prefix, z_init, start)


def latents_at(model: Model, position: Position) -> Tensor:
    """Latents z0 [b, c, n] of the clip at a position, in the autoencoder's scale."""
    denoiser, _ = model.require_denoiser("this model")
    with torch.inference_mode():
        return denoiser.denormalise(position.z)


class _Run:
    """One roll-out: what all its clips share."""

    def __init__(
        self,
        model: Model,
        generators: Sequence[Source],
        sampling: Sampling,
        labels: Tensor | None,
        on_step: OnStep | None,
        timer: Timer,
    ) -> None:
        assert model.config.diffusion is not None
        self.denoiser, self.schedule = model.require_denoiser("this model")
        self.diffusion = model.config.diffusion
        clamp = self.diffusion.clamp and sampling.clamp
        self.bounds = _bounds(model, self.denoiser) if clamp else False
        self.generators, self.draw = generators, noise_source(generators, model)
        self.sampling, self.labels = sampling, labels
        self.on_step, self.timer = on_step, timer

    @torch.inference_mode()
    def clips(
        self,
        num_clips: int,
        z_prefix: Tensor | None,
        z_init: Tensor | None,
        start: Position | None,
    ) -> Iterator[Position]:
        """Run Algorithm 1's outer loop."""
        prefix = start.z if start else None
        if z_prefix is not None:
            prefix = self.denoiser.normalise(z_prefix)
        for _ in range(num_clips):
            if prefix is not None and self.sampling.prefix_noise:
                prefix = prefix + self.sampling.prefix_noise * self.draw(0)
            z = self._clip(prefix, z_init)
            prefix, z_init = z, None
            yield Position(z, [source.get_state() for source in self.generators])

    def _clip(self, prefix: Tensor | None, z_init: Tensor | None) -> Tensor:
        """Draw one clip's z0 [b, c, n], in the denoiser's scale, with the chosen sampler."""
        first = prefix is None
        z_start = self.draw(0)
        if z_init is not None and self.sampling.strength < 1:
            step = self.sampling.plan(self.schedule, first=True)[0]
            z_start = noised(self.denoiser.normalise(z_init), z_start, step)
        run = self.sampling.bind(self.draw, self.schedule, first=first)
        return run(
            self._predict(prefix),
            z_start,
            self.schedule,
            clamp=self.bounds,
            objective=self.diffusion.objective,
            on_step=self.on_step,
        )

    def _predict(self, prefix: Tensor | None) -> Predict:
        """Bind what one clip is drawn from, guided where the settings say so."""
        sampling = self.sampling

        def bound(guidance: float, class_guidance: float) -> Predict:
            noise = sampling.prefix_noise
            predict = predictor(self.denoiser, prefix, guidance, noise, self.labels, class_guidance)
            return predict if self.timer is untimed else _timed(predict, self.timer)

        guided = bound(sampling.guidance, sampling.class_guidance)
        if sampling.guided_everywhere:
            return guided
        asked = sampling.asked(self.schedule, first=prefix is None)
        inside = [sampling.guides(t, self.schedule) for t in asked]
        return within(guided, bound(0.0, 0.0), inside)


def _timed(predict: Predict, timer: Timer) -> Predict:
    """Measure each call of the network."""

    def timed(z_t: Tensor, t: Tensor) -> Tensor:
        with timer("network"):
            return predict(z_t, t)

    return timed


def _bounds(model: Model, denoiser: Denoiser) -> Bounds:
    """Least and greatest latents [c, n] of the autoencoder, in the denoiser's scale."""
    latent = model.config.latent
    ones = torch.ones(latent.c, latent.flat, device=model.device)
    return denoiser.normalise(-ones), denoiser.normalise(ones)


def noise_source(generators: Sequence[Source], model: Model) -> Draw:
    """Return draw(k) -> N(0, I) [b, c, n], row i from generators[i], on the model's device."""
    latent, device = model.config.latent, model.device
    shape, where = (len(generators), latent.c, latent.flat), generators[0].device

    def draw(k: int) -> Tensor:
        noise = torch.empty(shape, device=where)
        for row, source in zip(noise, generators, strict=True):
            fill(row, source)
        return noise.to(device, non_blocking=True)

    return draw


@torch.inference_mode()
def decoded(
    model: Model, latents: Iterator[Tensor], decode: Callable[[Planes], Tensor] | None = None
) -> Iterator[Tensor]:
    """Decode each latent [b, c, n] when it comes; keep back the frames that the next clip shares.

    Yields pixels x [b, 3, s, H, W] once for each latent, and once more for what was kept back.

    Args:
        model: What decodes.
        latents: Clips in the order of the video.
        decode: What turns planes into pixels; None: the autoencoder.
    """
    assert model.config.diffusion is not None
    overlap = model.config.diffusion.overlap
    decode = decode or model.autoencoder.decode
    shared: Tensor | None = None
    for z0 in latents:
        x = decode(unflatten(z0, model.config.latent))
        if overlap and shared is not None:
            x = torch.cat([cross_fade(shared, x[:, :, :overlap]), x[:, :, overlap:]], dim=2)
        ready = x.shape[2] - overlap
        yield x[:, :, :ready]
        shared = x[:, :, ready:]
    if overlap and shared is not None:
        yield shared


def cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """Fade one rendering of the same frames [b, 3, s, H, W] into another, frame by frame."""
    weight = torch.linspace(0, 1, before.shape[2] + 2, device=before.device)[1:-1]
    return before.lerp(after, weight[:, None, None].to(before.dtype))
