"""What a network says of the clips of a reel, which the processes of one work share out.

Axes: n clips, b batch, d features.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.evaluation.footage import Frames
from pvdm_cli.evaluation.reel import Reel, Take
from pvdm_cli.progress import Reporter
from pvdm_cli.ranks import here

Number = TypeVar("Number", bound=np.floating)


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
        rows: list[NDArray[Number]] = []
        for batch in compute(reel.read(coming[ranks.rank :: ranks.size], takes)):
            rows += list(batch)
            reporter.advance(len(batch))
        for take, given in sorted(_by_video(ranks.gather((takes, rows))), key=lambda pair: pair[0]):
            found += given[: reel.count(take)]
    reporter.done()
    return np.stack(found) if found else np.zeros((0, 0), dtype=np.float32)


def _by_video(
    parts: Iterable[tuple[list[Take], list[NDArray[Number]]]],
) -> Iterator[tuple[Take, list[NDArray[Number]]]]:
    """Give each video its rows [d]; a process has those of its videos one after the other."""
    for takes, rows in parts:
        first = 0
        for take in takes:
            yield take, rows[first : first + take.clips]
            first += take.clips
