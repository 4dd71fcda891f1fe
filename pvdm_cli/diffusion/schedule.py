"""The forward process q(z_t | z0): how much of z0 and how much noise is left at each timestep.

Axes: T trained timesteps, b batch. t is int64 in 0..T-1, where 0 means one step of noise.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor

from pvdm_cli.config import DiffusionConfig


class Scales(NamedTuple):
    """z_t = signal * z0 + noise * eps, with signal^2 + noise^2 = 1; each [b, 1, ...]."""

    signal: Tensor  # sqrt(abar_t)
    noise: Tensor  # sqrt(1 - abar_t)


@dataclass(frozen=True, eq=False)
class Schedule:
    """Noise levels of the T trained timesteps, in float64 on the CPU; everything follows from beta.

    Lookups cast to the dtype of the tensor they are for; the square roots are taken before the
    cast, because 1 - abar_0 = 0.0015 would lose most of bfloat16's and half of float32's digits.
    """

    betas: Tensor  # [T]
    _tables: dict[tuple[torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        """Reject betas that are no schedule."""
        betas = self.betas
        if betas.ndim != 1 or betas.dtype != torch.float64:
            raise ValueError(f"betas must be float64 [T], got {betas.dtype} {list(betas.shape)}")
        if not bool(((betas > 0) & (betas <= 1)).all() & (betas[:-1] < 1).all()):
            raise ValueError("every beta must lie between 0 and 1; only the last may be 1")

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> Self:
        """Build the published schedule (betas linear in their square root), or what was asked for."""
        if config.objective == "flow":
            return cls.flow(config.num_timesteps)
        start, end = config.beta_start**0.5, config.beta_end**0.5
        schedule = cls(torch.linspace(start, end, config.num_timesteps, dtype=torch.float64) ** 2)
        return schedule.without_terminal_signal() if config.zero_terminal_snr else schedule

    @classmethod
    def flow(cls, num_timesteps: int) -> Self:
        """The straight path (1 - tau) z0 + tau eps of flow matching (Lipman et al. 2023).

        Its points are scaled to unit variance, which changes neither the path of z0 and eps nor
        Euler steps along it: these are DDIM's. tau = (t + 1) / T, so nothing of z0 is left at T.
        """
        tau = torch.arange(1, num_timesteps + 1, dtype=torch.float64) / num_timesteps
        return cls._from_abar((1 - tau) ** 2 / ((1 - tau) ** 2 + tau**2))

    def without_terminal_signal(self) -> Self:
        """Shift and scale sqrt(abar) so that it ends at 0 and starts as before (Lin et al. 2024)."""
        signal = self.alphas_cumprod.sqrt()
        first, last = signal[0], signal[-1]
        return self._from_abar(((signal - last) * first / (first - last)) ** 2)

    @classmethod
    def _from_abar(cls, abar: Tensor) -> Self:
        """Build the schedule with these alphas_cumprod."""
        return cls(1 - abar / torch.cat([abar.new_ones(1), abar[:-1]]))

    @property
    def num_timesteps(self) -> int:
        """Trained timesteps T."""
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar_t = prod over s <= t of (1 - beta_s) (DDPM, below eq. 3), float64 [T]."""
        return (1 - self.betas).cumprod(0)

    @property
    def alphas_cumprod_prev(self) -> Tensor:
        """abar_(t-1), with 1 before the first timestep, float64 [T]."""
        return torch.cat([self.betas.new_ones(1), self.alphas_cumprod[:-1]])

    @property
    def posterior_variance(self) -> Tensor:
        """Variance of q(z_(t-1) | z_t, z0) (DDPM eq. 7), float64 [T]; 0 at t = 0."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @property
    def posterior_mean_z0(self) -> Tensor:
        """Weight of z0 in the mean of q(z_(t-1) | z_t, z0) (DDPM eq. 7), float64 [T]."""
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)

    @property
    def posterior_mean_zt(self) -> Tensor:
        """Weight of z_t in the mean of q(z_(t-1) | z_t, z0) (DDPM eq. 7), float64 [T]."""
        return (1 - self.betas).sqrt() * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    def at(self, t: Tensor, *, like: Tensor) -> Scales:
        """Look up the scales of timesteps t [b], shaped to multiply `like` [b, ...].

        The tables stay on the device of `like` after the first call: no host sync on CUDA.
        """
        signal, noise = self._table(like)[:, t.to(like.device, non_blocking=True)]
        shape = (-1, *[1] * (like.ndim - 1))
        return Scales(signal.view(shape), noise.view(shape))

    def _table(self, like: Tensor) -> Tensor:
        """Return sqrt(abar) and sqrt(1 - abar) as [2, T] in the dtype and on the device of like."""
        key = (like.device, like.dtype)
        if key not in self._tables:
            # A table made while sampling must also serve training: never an inference tensor.
            with torch.inference_mode(mode=False):
                abar = self.alphas_cumprod
                table = torch.stack([abar.sqrt(), (1 - abar).sqrt()]).to(like.dtype)
                self._tables[key] = table.to(like.device)
        return self._tables[key]
