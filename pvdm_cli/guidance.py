"""What the network is told beside z_t and t, and guidance on it.

Axes: b videos, c latent channels, n flat latent length.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pvdm_cli.diffusion.samplers import Predict
from pvdm_cli.models.denoiser import NULL_CLASS, Denoiser


def within(guided: Predict, plain: Predict, inside: Sequence[bool]) -> Predict:
    """Guide only some calls of a run (Kynkäänniemi et al. 2024); the others are not more batches.

    Which ones follows from their order, known before: t is on the device and not waited for.
    """
    each = iter(inside)
    return lambda z_t, t: (guided if next(each) else plain)(z_t, t)


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
