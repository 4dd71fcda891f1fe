"""Algorithm 1: a long video, clip by clip, each clip conditioned on the latent of the one before.

Axes: b videos, c latent channels, n flat latent length, s frames of a clip, H x W pixels.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pvdm_cli.diffusion.samplers import Bounds, Draw, OnStep, Predict
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.latents import unflatten
from pvdm_cli.model import Model
from pvdm_cli.models.denoiser import NULL_CLASS, Denoiser
from pvdm_cli.sampling import PUBLISHED, Sampling


def rollout(
    model: Model,
    num_clips: int,
    *,
    generators: Sequence[torch.Generator],
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
    return _decoded(model, latents)


def rollout_latents(
    model: Model,
    num_clips: int,
    *,
    generators: Sequence[torch.Generator],
    sampling: Sampling = PUBLISHED,
    z_prefix: Tensor | None = None,
    labels: Tensor | None = None,
    on_step: OnStep | None = None,
) -> Iterator[Tensor]:
    """As `rollout`, without decoding: yield the latents z0 [b, c, n] of one clip after another."""
    model.require_denoiser("this model")
    assert model.config.diffusion is not None
    sampling.check(model.config.diffusion)
    if not generators:
        raise ValueError("no generators: one is needed per video")
    sampling.check_labels(labels, model.config)
    return _clips(model, num_clips, generators, sampling, z_prefix, labels, on_step)


@torch.inference_mode()
def _clips(
    model: Model,
    num_clips: int,
    generators: Sequence[torch.Generator],
    sampling: Sampling,
    z_prefix: Tensor | None,
    labels: Tensor | None,
    on_step: OnStep | None,
) -> Iterator[Tensor]:
    """Run Algorithm 1's outer loop."""
    denoiser, _ = model.require_denoiser("this model")
    draw = noise_source(generators, model)
    prefix = None if z_prefix is None else denoiser.normalise(z_prefix)
    for _ in range(num_clips):
        num_steps = sampling.steps.first if prefix is None else sampling.steps.following
        if prefix is not None and sampling.prefix_noise:
            prefix = prefix + sampling.prefix_noise * draw(0)
        predict = _predict(model, prefix, labels, num_steps, sampling)
        prefix = _sample(model, predict, draw, num_steps, sampling, on_step)
        yield denoiser.denormalise(prefix)


def _predict(
    model: Model,
    prefix: Tensor | None,
    labels: Tensor | None,
    num_steps: int,
    sampling: Sampling,
) -> Predict:
    """Bind what one clip is drawn from, guided where the settings say so."""
    denoiser, schedule = model.require_denoiser("this model")

    def bound(guidance: float, class_guidance: float) -> Predict:
        noise = sampling.prefix_noise
        return predictor(denoiser, prefix, guidance, noise, labels, class_guidance)

    guided = bound(sampling.guidance, sampling.class_guidance)
    if sampling.guided_everywhere:
        return guided
    return within(guided, bound(0.0, 0.0), _inside(sampling, schedule, num_steps))


def _inside(sampling: Sampling, schedule: Schedule, num_steps: int) -> list[bool]:
    """Say of each network call of a clip, in order, whether it is guided."""
    return [sampling.guides(t, schedule) for t in sampling.asked(schedule, num_steps)]


def within(guided: Predict, plain: Predict, inside: Sequence[bool]) -> Predict:
    """Guide only some calls of a run (Kynkäänniemi et al. 2024); the others are not more batches.

    Which ones follows from their order, known before: t is on the device and not waited for.
    """
    each = iter(inside)
    return lambda z_t, t: (guided if next(each) else plain)(z_t, t)


def _sample(
    model: Model,
    predict: Predict,
    draw: Draw,
    num_steps: int,
    sampling: Sampling,
    on_step: OnStep | None,
) -> Tensor:
    """Draw one clip's z0 [b, c, n], in the denoiser's scale, with the chosen sampler."""
    (denoiser, schedule), config = model.require_denoiser("this model"), model.config.diffusion
    assert config is not None
    run = sampling.bind(draw, schedule, num_steps)
    return run(
        predict,
        draw(0),
        schedule,
        num_steps=num_steps,
        clamp=_bounds(model, denoiser) if config.clamp else False,
        objective=config.objective,
        on_step=on_step,
    )


def _bounds(model: Model, denoiser: Denoiser) -> Bounds:
    """Least and greatest latents [c, n] of the autoencoder, in the denoiser's scale."""
    latent = model.config.latent
    ones = torch.ones(latent.c, latent.flat, device=model.device)
    return denoiser.normalise(-ones), denoiser.normalise(ones)


class Condition(NamedTuple):
    """What the network is told beside z_t and t."""

    z_prefix: Tensor | None = None  # [b, c, n]; None: the null prefix
    prefix_noise: Tensor | None = None  # [b]
    label: Tensor | None = None  # int64 [b]; None: a network that knows no classes, or the null one

    def ask(self, denoiser: Denoiser, z_t: Tensor, t: Tensor) -> Tensor:
        """Predict under this condition."""
        more = {} if self.label is None else {"label": self.label}
        return denoiser(z_t, t, self.z_prefix, self.prefix_noise, **more)


def predictor(
    denoiser: Denoiser,
    z_prefix: Tensor | None,
    guidance: float,
    prefix_noise: float = 0.0,
    label: Tensor | None = None,
    class_guidance: float = 0.0,
) -> Predict:
    """Bind prefix and class, and guide on both: (method, section 4; Ho and Salimans 2022).

    (1 + v + w) * prediction(prefix, class) - v * prediction(null, class) - w * prediction(prefix,
    null class), v the guidance on the prefix and w that on the class. A term of weight 0 is left
    out, as is v where there is no prefix; the others are one network call of so many batches. The
    weights sum to 1, so it is the same for predictions of eps, x0 and v.
    """
    given = Condition(label=label)
    terms: list[tuple[float, Condition]] = []
    if z_prefix is not None:
        level = z_prefix.new_full((len(z_prefix),), prefix_noise)
        given = given._replace(z_prefix=z_prefix, prefix_noise=level)
        null = given._replace(
            z_prefix=torch.zeros_like(z_prefix), prefix_noise=torch.zeros_like(level)
        )
        terms.append((guidance, null))
    if label is not None:
        terms.append((class_guidance, given._replace(label=torch.full_like(label, NULL_CLASS))))
    terms = [(weight, condition) for weight, condition in terms if weight]
    if not terms:
        return partial(given.ask, denoiser)
    return partial(_guided, denoiser, given, terms)


def _guided(
    denoiser: Denoiser,
    given: Condition,
    terms: Sequence[tuple[float, Condition]],
    z_t: Tensor,
    t: Tensor,
) -> Tensor:
    """Ask under all conditions in one call and lead the prediction away from the terms'."""
    conditions = [given, *(condition for _, condition in terms)]
    k = len(conditions)
    together = Condition(
        *(
            None if column[0] is None else torch.cat(column)
            for column in zip(*conditions, strict=True)
        )
    )
    first, *others = together.ask(denoiser, torch.cat(k * [z_t]), torch.cat(k * [t])).chunk(k)
    weights = [weight for weight, _ in terms]
    found = (1 + sum(weights)) * first
    for weight, other in zip(weights, others, strict=True):
        found = found - weight * other
    return found


def noise_source(generators: Sequence[torch.Generator], model: Model) -> Draw:
    """Return draw(k) -> N(0, I) [b, c, n], row i from generators[i], on the model's device."""
    latent, device = model.config.latent, model.device

    def draw(k: int) -> Tensor:
        rows = [
            torch.randn(latent.c, latent.flat, generator=g, device=g.device) for g in generators
        ]
        return torch.stack(rows).to(device, non_blocking=True)

    return draw


@torch.inference_mode()
def _decoded(model: Model, latents: Iterator[Tensor]) -> Iterator[Tensor]:
    """Decode each latent when it comes; keep back the frames that the next clip shares."""
    assert model.config.diffusion is not None
    overlap = model.config.diffusion.overlap
    shared: Tensor | None = None
    for z0 in latents:
        x = model.autoencoder.decode(unflatten(z0, model.config.latent))
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
