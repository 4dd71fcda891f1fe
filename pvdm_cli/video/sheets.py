"""Videos side by side in one picture: moving grids, and contact sheets as in the paper's figures."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Frames = NDArray[np.uint8]  # [s, H, W, 3]


def grid(videos: Sequence[Frames], columns: int | None = None, gap: int = 2) -> Frames:
    """Lay videos of one size out in rows on white; shorter ones hold their last frame.

    Args:
        videos: uint8 [s, H, W, 3] each.
        columns: Videos per row; None makes the grid about square.
        gap: Pixels between neighbours.

    Returns:
        uint8 [s, H', W', 3].
    """
    columns = min(len(videos), columns or math.ceil(math.sqrt(len(videos))))
    rows = math.ceil(len(videos) / columns)
    _, height, width, _ = videos[0].shape
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.full((max(map(len, videos)), *size, 3), 255, np.uint8)
    for i, video in enumerate(videos):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        cell = sheet[:, top : top + height, left : left + width]
        cell[: len(video)] = video
        cell[len(video) :] = video[-1]
    return sheet


def contact_sheet(rows: Sequence[Frames], gap: int = 2) -> NDArray[np.uint8]:
    """Lay stills out in a row for each video, as in the paper's figures 3 and 4.

    Args:
        rows: uint8 [k, H, W, 3] each: the stills of one video, from left to right.
        gap: Pixels between neighbours.

    Returns:
        uint8 [H', W', 3].
    """
    longest = max(map(len, rows))
    stills = [
        still[None]
        for row in rows
        for still in [*row, *[np.full_like(row[0], 255)] * (longest - len(row))]
    ]
    return grid(stills, columns=longest, gap=gap)[0]
