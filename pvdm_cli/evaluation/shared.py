"""What a network says of the clips of a reel, which the processes of one work share out.

Axes: n clips, b batch, d features.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.evaluation.footage import Frames
from pvdm_cli.evaluation.reel import Reel, Take
from pvdm_cli.progress import Reporter
from pvdm_cli.ranks import here

Number = TypeVar("Number", bound=np.floating)


class Rows(Generic[Number]):
    """Rows [n, d] in one array, which doubles when it is full.

    Each batch by itself, kept between the network's large tensors that come and go, would split up
    the memory they leave free: 847 MiB after 1,024 clips in place of 401.
    """

    def __init__(self) -> None:
        self._rows: NDArray[Number] | None = None
        self._count = 0

    def add(self, batch: NDArray[Number]) -> None:
        """Add rows [b, d]."""
        last = self._count + len(batch)
        if self._rows is None:
            self._rows = np.empty((64, *batch.shape[1:]), dtype=batch.dtype)
        while last > len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count : last] = batch
        self._count = last

    @property
    def whole(self) -> NDArray[Number]:
        """All rows."""
        if self._rows is None:
            return np.zeros((0, 0))  # type: ignore[return-value]  # no rows are of no type
        return self._rows[: self._count]


def features_of(
    reel: Reel,
    compute: Callable[[Iterable[Frames]], Iterator[NDArray[Number]]],
    what: str,
    reporter: Reporter,
) -> NDArray[Number]:
    """Compute the features [n, d] of all clips, in their order: the same in every process.

    Args:
        reel: The clips; counts what it gave.
        compute: Turns clips, as they are read, into features [b, d].
        what: What the bar calls them.
        reporter: Told of each clip of this process.
    """
    ranks = here()
    total = min(reel.most, len(reel.videos)) if reel.window.rule != "all" else None
    if ranks.size > 1:
        what = f"{what} of each of {ranks.size} processes"
        total = total and -(-total // ranks.size)
    reporter.start(what, total, "clip")
    found = []
    while coming := reel.coming(ranks.size):
        takes: list[Take] = []
        rows: Rows[Number] = Rows()
        for batch in compute(reel.read(coming[ranks.rank :: ranks.size], takes)):
            rows.add(batch)
            reporter.advance(len(batch))
        parts = _by_video(ranks.gather((takes, rows.whole)))
        for take, given in sorted(parts, key=lambda pair: pair[0]):
            if needed := reel.count(take):
                found.append(given[:needed])
    reporter.done()
    return np.concatenate(found) if found else Rows[Number]().whole


def _by_video(
    parts: Iterable[tuple[list[Take], NDArray[Number]]],
) -> Iterator[tuple[Take, NDArray[Number]]]:
    """Give each video its rows; a process has those of its videos one after the other."""
    for takes, rows in parts:
        first = 0
        for take in takes:
            yield take, rows[first : first + take.clips]
            first += take.clips
