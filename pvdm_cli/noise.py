"""Where the noise of a video comes from: a generator, or the arc between two of them."""

import math

import torch
from torch import Tensor


class Arc:
    """Noise between that of two generators: cos(f pi/2) a + sin(f pi/2) b, with f from 0 to 1.

    The arc of a great circle, as independent normal vectors of many dimensions are orthogonal and
    of one length (White 2016). What it gives is N(0, I) at every f, a at 0 and b at 1.
    """

    def __init__(self, a: torch.Generator, b: torch.Generator, fraction: float) -> None:
        self.a, self.b = a, b
        self.weights = {0.0: (1.0, 0.0), 1.0: (0.0, 1.0)}.get(
            fraction, (math.cos(fraction * math.pi / 2), math.sin(fraction * math.pi / 2))
        )

    @property
    def device(self) -> torch.device:
        """Where the generators are."""
        return self.a.device

    def get_state(self) -> Tensor:
        """Return the states of both generators, one after the other."""
        return torch.cat([self.a.get_state(), self.b.get_state()])

    def set_state(self, state: Tensor) -> None:
        """Set both generators to what `get_state` returned."""
        a, b = state.chunk(2)
        self.a.set_state(a.clone())
        self.b.set_state(b.clone())


Source = torch.Generator | Arc


def fill(row: Tensor, source: Source) -> None:
    """Fill a tensor of the source's device with its next draws from N(0, I)."""
    if isinstance(source, torch.Generator):
        row.normal_(generator=source)
        return
    of_a, of_b = source.weights
    row.normal_(generator=source.a)
    other = torch.empty_like(row).normal_(generator=source.b)
    row.mul_(of_a).add_(other, alpha=of_b)
