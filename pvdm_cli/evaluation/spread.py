"""How sure a distance is, and how it depends on the number of clips: from features alone.

Axes: n clips, d features.
"""

from collections.abc import Sequence

import numpy as np

from pvdm_cli.evaluation.detector import Features
from pvdm_cli.evaluation.frechet import Ddof, Statistics, frechet_distance
from pvdm_cli.ranks import here


def distance(real: Features, fake: Features, ddof: Ddof) -> float:
    """Frechet distance of two sets of features; of several processes the first computes it."""
    return here().first(
        lambda: frechet_distance(Statistics.of(real), Statistics.of(fake), ddof=ddof)
    )


def bootstrap(
    real: Features, fake: Features, ddof: Ddof, *, repeats: int, seed: int
) -> list[float]:
    """Distances of sets drawn with replacement from both sides (Efron 1979).

    Their spread tells how far another draw of videos would lie; their mean is too high, because
    such sets hold fewer different clips.
    """
    found = []
    for repeat in range(repeats):
        rng = np.random.default_rng((seed, repeat))
        drawn = [side[rng.integers(len(side), size=len(side))] for side in (real, fake)]
        found.append(distance(drawn[0], drawn[1], ddof))
    return found


def at_counts(
    real: Features, fake: Features, ddof: Ddof, *, counts: Sequence[int], seed: int
) -> dict[int, float]:
    """Distances of so many clips of either side; counts beyond what is there are left out."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(real)), rng.permutation(len(fake))
    most = min(len(real), len(fake))
    return {
        count: distance(real[order[0][:count]], fake[order[1][:count]], ddof)
        for count in counts
        if 2 <= count <= most
    }


def extrapolate(scores: dict[int, float]) -> float | None:
    """Distance of infinitely many clips: the line through scores over 1/n (Chong & Forsyth 2020).

    It takes two counts or more.
    """
    if len(scores) < 2:
        return None
    inverse = [1 / count for count in scores]
    _, at_zero = np.polyfit(inverse, list(scores.values()), 1)
    return float(at_zero)


def halves(features: Features, ddof: Ddof, *, seed: int) -> float | None:
    """Distance of one random half from the other; None for fewer than four clips."""
    if len(features) < 4:
        return None
    order = np.random.default_rng(seed).permutation(len(features))
    middle = len(features) // 2
    return distance(features[order[:middle]], features[order[middle : 2 * middle]], ddof)
