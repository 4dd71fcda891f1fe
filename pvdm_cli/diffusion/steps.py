"""The steps of a sampler: which timesteps it visits, and the noise levels of each jump.

T trained timesteps, N steps, k = 1..N. A jump goes from timestep t to the next one visited; the last
lands on z0, written -1. Everything here is float64 on the host, worked out once before a run.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

from pvdm_cli.diffusion.schedule import Schedule

Spacing = Literal["published", "leading", "trailing", "karras"]
SPACINGS: tuple[str, ...] = get_args(Spacing)
RHO = 7  # curvature of the spacing of Karras et al. (2022), their choice


class Step(NamedTuple):
    """One jump from timestep t to the next one visited: abar before and after."""

    k: int
    t: int
    abar: float
    abar_next: float  # 1 at the last step

    @property
    def signal(self) -> float:
        """Weight of z0 in z_t."""
        return self.abar**0.5

    @property
    def noise(self) -> float:
        """Weight of eps in z_t."""
        return (1 - self.abar) ** 0.5

    @property
    def posterior_std(self) -> float:
        """Standard deviation of q(z_next | z_t, z0) (DDPM eq. 7; DDIM eq. 16 at eta = 1)."""
        alpha = self.abar / self.abar_next
        return ((1 - alpha) * (1 - self.abar_next) / (1 - self.abar)) ** 0.5

    @property
    def forward_std(self) -> float:
        """Standard deviation of q(z_t | z_next), the square root of beta (DDPM eq. 2)."""
        return (1 - self.abar / self.abar_next) ** 0.5

    @property
    def keep(self) -> float:
        """What is left of z_t if z0 is the same all along the jump: the ratio of the noises."""
        return ((1 - self.abar_next) / (1 - self.abar)) ** 0.5

    @property
    def gain(self) -> float:
        """What z0 adds then: signal_next - keep * signal, so that z_next = keep z_t + gain z0."""
        return self.abar_next**0.5 - self.keep * self.signal

    @property
    def h(self) -> float:
        """How far the jump goes in lambda = log(signal / noise); infinite from no signal, or to z0."""
        return _log_snr(self.abar_next) - _log_snr(self.abar)


def _log_snr(abar: float) -> float:
    """Half the log of the signal-to-noise ratio, lambda = log(signal / noise)."""
    if not 0 < abar < 1:
        return math.inf if abar else -math.inf
    return (math.log(abar) - math.log1p(-abar)) / 2


def plan(
    schedule: Schedule, num_steps: int, spacing: Spacing = "published", strength: float = 1.0
) -> list[Step]:
    """List the steps of a run.

    Args:
        schedule: Noise levels.
        num_steps: Steps N of a whole run, k = 1..N.
        spacing: Which timesteps are visited.
        strength: Only the steps that start from at most this share of the T noise levels: the last
            part of a run, for a start that is not all noise (Meng et al. 2022).

    Raises:
        ValueError: If num_steps is not in 1..T, or there is no such spacing.
    """
    abar = schedule.alphas_cumprod.tolist()
    if spacing == "karras":
        visited = karras_timesteps(abar, num_steps)
    else:
        visited = timesteps(len(abar), num_steps, spacing)
    return [
        Step(k, t, abar[t], abar[t_next] if t_next >= 0 else 1.0)
        for k, (t, t_next) in enumerate(pairwise(visited), start=1)
        if t + 1 <= strength * len(abar)
    ]


def timesteps(num_timesteps: int, num_steps: int, spacing: Spacing = "published") -> list[int]:
    """Return the num_steps + 1 timesteps visited, falling, the last of them -1 (which is z0).

    published: linspace(-1, T-1, N+1) truncated to integers, reversed, e.g. 999, 899, ..., 99, -1
    for 10 of 1000. Computed in integers: the published float32 linspace falls one short at a few
    counts that do not divide T, e.g. at 26 steps.
    trailing (Lin et al. 2024, table 2): the same, rounded instead of truncated.
    leading (there too; DDPM and DDIM as first released): 900, ..., 100, 0, which never sees T-1.

    Raises:
        ValueError: If num_steps is not in 1..num_timesteps, or there is no such spacing.
    """
    _check_count(num_timesteps, num_steps)
    T, N = num_timesteps, num_steps
    if spacing == "published":
        return [k * T // N - 1 for k in range(N, -1, -1)]
    if spacing == "trailing":
        return [round(k * T / N) - 1 for k in range(N, -1, -1)]
    if spacing == "leading":
        return [*(k * T // N for k in range(N - 1, -1, -1)), -1]
    raise ValueError(f"spacing={spacing!r}: choose {', '.join(SPACINGS)}")


def karras_timesteps(abar: Sequence[float], num_steps: int) -> list[int]:
    """Space sigma = noise / signal evenly in sigma^(1/7) (Karras et al. 2022, eq. 5).

    Each sigma is rounded to the nearest trained timestep, by its logarithm, that was not visited
    yet: a network is asked only for levels it learnt, and at each for the level it is at. Where no
    signal is left at T-1, the run starts there and the spacing at T-2.

    Args:
        abar: alphas_cumprod, falling [T].
        num_steps: Steps N.

    Raises:
        ValueError: If num_steps is not in 1..T.
    """
    _check_count(len(abar), num_steps)
    levels = [-_log_snr(value) for value in abar]  # log(sigma), rising with t
    top = len(levels) - 1
    high = levels[top] if math.isfinite(levels[top]) else levels[top - 1]
    start, end = math.exp(high / RHO), math.exp(levels[0] / RHO)
    visited = [top]
    for i in range(1, num_steps):
        wanted = RHO * math.log(start + i / (num_steps - 1) * (end - start))
        right = bisect_left(levels, wanted, hi=visited[-1])
        near = [t for t in (right - 1, right) if 0 <= t < visited[-1]]
        nearest = min(near, key=lambda t: abs(levels[t] - wanted))
        visited.append(max(nearest, num_steps - 1 - i))  # leave room for the steps to come
    return [*visited, -1]


def _check_count(num_timesteps: int, num_steps: int) -> None:
    """Reject more steps than timesteps, and none."""
    if not 1 <= num_steps <= num_timesteps:
        raise ValueError(f"num_steps={num_steps} is not in 1..{num_timesteps}")
