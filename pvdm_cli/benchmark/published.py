"""What the paper measured: table 5, at 256 x 256 pixels on one card."""

from dataclasses import dataclass

SOURCE = "Yu et al., CVPR 2023 (arXiv 2302.07685), table 5"
HARDWARE = "RTX 3090 Ti 24 GB"


@dataclass(frozen=True)
class Cost:
    """Of synthesising one video."""

    seconds: float
    gigabytes: float


@dataclass(frozen=True)
class PublishedRow:
    """A row of table 5.

    Attributes:
        method: Its name in the paper.
        steps: Network steps of the first / of each following clip, where the table says.
        train_batch: The largest training batch of 16-frame clips; 0: not even one fits.
        frames16: Cost of one video of 16 frames.
        frames128: Cost of one of 128 frames, None where it was not possible.
    """

    method: str
    steps: str | None
    train_batch: int
    frames16: Cost
    frames128: Cost | None
    hardware: str = HARDWARE
    source: str = SOURCE

    def cost(self, frames: int) -> Cost | None:
        """Cost at a number of frames, None if the table has none."""
        return {16: self.frames16, 128: self.frames128}.get(frames)


TABLE_5 = (
    PublishedRow("TATS", None, 0, Cost(84.8, 18.7), Cost(434, 19.2)),
    PublishedRow("VideoGPT", None, 0, Cost(139, 15.2), None),
    PublishedRow("VDM", "100/20", 0, Cost(113, 11.1), None),
    PublishedRow("PVDM-L", "200/200", 2, Cost(20.4, 5.22), Cost(166, 5.22)),
    PublishedRow("PVDM-L", "400/400", 2, Cost(40.9, 5.22), Cost(328, 5.22)),
    PublishedRow("PVDM-S", "100/20", 7, Cost(7.88, 4.33), Cost(31.3, 4.33)),
)
