"""What to draw and how to write it; what came of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch

from pvdm_cli.errors import PvdmError
from pvdm_cli.noise import Arc, Source
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import PUBLISHED, Sampling

FORMATS = ("mp4", "gif", "webp", "png", "npz")
GRID_FORMATS = ("mp4", "gif", "webp")
QUALITY = 80
STRENGTH = 0.6


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to draw and how to write it.

    Attributes:
        frames: Frames of each video; the last clip is cut.
        seconds: The same in seconds of the video, instead.
        clips: The same in clips, instead.
        num: Videos; video i depends on (seed, i) and the settings alone, not on num.
        sampling: Steps, sampler, eta, guidance, strength.
        class_name: Name or number of the class of all videos, "each" for all classes in turn (video
            i has class i mod n), or "none". None draws the class of each by lot, by (seed, i), where
            the model knows classes.
        seed: Seed of the run.
        seeds: Instead, a seed for each video: video 0 of each of these runs.
        between: Instead, two seeds: num videos from video 0 of one to video 0 of the other.
        prefix: What to continue: a video, whose last clip is encoded, or CACHE#ROW.
        keep_prefix: Begin each video with the clip that is continued.
        init: What the first clip starts from: a video, whose first clip is encoded, or CACHE#ROW.
        batch_size: Videos drawn at once; changes speed and memory, not the videos. None finds it.
        format: mp4, gif, webp, png (a folder of frames) or npz.
        quality: 0 to 100, for mp4 and webp.
        fps: Frame rate written; the model's own when None.
        grid: Also write all videos side by side as grid.mp4, grid.gif or grid.webp.
        columns: Videos in a row of the grid; None makes it about square.
        sheet: Also write every so-many-th frame of each video into sheet.png, a row for each.
        drift: Measure how the clips of each video change; see `generation.drift`.
        profile: Measure where the time goes.
        overwrite: Replace what an earlier run left in the folder.
    """

    frames: int = 128
    seconds: float | None = None
    clips: int | None = None
    num: int = 1
    sampling: Sampling = PUBLISHED
    class_name: str | None = None
    seed: int = 0
    seeds: tuple[int, ...] = ()
    between: tuple[int, int] | None = None
    prefix: str | None = None
    keep_prefix: bool = False
    init: str | None = None
    batch_size: int | None = None
    format: str = "mp4"
    quality: int = QUALITY
    fps: float | None = None
    grid: str | None = None
    columns: int | None = None
    sheet: int | None = None
    drift: bool = False
    profile: bool = False
    overwrite: bool = False

    def check(self) -> None:
        """Reject impossible values.

        Raises:
            PvdmError: Naming the option, its value and what is allowed.
        """
        for name in ("frames", "clips", "num", "batch_size", "columns", "sheet"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise PvdmError(f"--{name.replace('_', '-')} {value}: expected 1 or more")
        if self.format not in FORMATS:
            raise PvdmError(f"--format {self.format!r}: choose {', '.join(FORMATS)}")
        if self.grid is not None and self.grid not in GRID_FORMATS:
            raise PvdmError(f"--grid {self.grid!r}: choose {', '.join(GRID_FORMATS)}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise PvdmError(f"--fps {self.fps}: expected a number above 0, at most 1000")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise PvdmError(f"--seconds {self.seconds}: expected a number above 0")
        if not 0 <= self.quality <= 100:
            raise PvdmError(f"--quality {self.quality}: expected 0 to 100")
        if self.quality != QUALITY and self.format not in ("mp4", "webp"):
            raise PvdmError(f"--quality belongs to mp4 and webp, not {self.format}; leave it out")
        if self.columns is not None and self.grid is None:
            raise PvdmError("--columns belongs to --grid; give that too")
        self._check_starts()

    def _check_starts(self) -> None:
        """Reject starts that exclude each other."""
        if self.seeds and self.between:
            raise PvdmError("--seeds and --between both say what the videos start from; give one")
        if self.seeds and (self.num != 1 or self.seed):
            raise PvdmError("--seeds draws one video for each seed; leave out --num and --seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise PvdmError(f"--seeds {','.join(map(str, self.seeds))}: each seed once")
        if self.between and (self.num < 2 or self.seed or len(set(self.between)) < 2):
            raise PvdmError("--between needs two different seeds and --num 2 or more, no --seed")
        if self.prefix is not None and self.init is not None:
            raise PvdmError(
                "--prefix continues a clip and --init changes one; a video begins with either"
            )
        if self.keep_prefix and self.prefix is None:
            raise PvdmError("--keep-prefix needs --prefix, the clip to keep")
        if self.init is None and self.sampling.strength != 1:
            raise PvdmError("--strength belongs to --init; give that too")

    def items(self) -> "list[Item]":
        """List the videos of the run, in order: what processes would share out among them."""
        if self.seeds:
            return [Item(f"seed-{seed:05d}", seed, 0, ((seed, 0),)) for seed in self.seeds]
        if self.between:
            a, b = self.between
            return [
                Item(_numbered(i), a, i, ((a, 0), (b, 0)), i / (self.num - 1))
                for i in range(self.num)
            ]
        return [Item(_numbered(i), self.seed, i, ((self.seed, i),)) for i in range(self.num)]


class Item(NamedTuple):
    """One video of a run.

    Attributes:
        name: Of its files, without suffix; names sort as the videos do.
        seed: That it belongs to.
        number: Its place in the run.
        keys: (seed, number) of the noise it is drawn from, or of the two it lies between.
        fraction: Where between them.
    """

    name: str
    seed: int
    number: int
    keys: tuple[tuple[int, int], ...]
    fraction: float = 0.0

    def source(self, device: torch.device) -> Source:
        """Return its noise, from the beginning."""
        sources = [generator(device, *key) for key in self.keys]
        return sources[0] if len(sources) == 1 else Arc(sources[0], sources[1], self.fraction)


def parse_seeds(text: str, option: str) -> tuple[int, ...]:
    """Read "1,5,9".

    Raises:
        PvdmError: If the text is something else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise PvdmError(f"{option} {text!r}: expected seeds with commas between, like 1,5,9")
    return tuple(map(int, parts))


def parse_pair(text: str) -> tuple[int, int]:
    """Read "3,8", the seeds of --between.

    Raises:
        PvdmError: If the text is something else.
    """
    seeds = parse_seeds(text, "--between")
    if len(seeds) != 2:
        raise PvdmError(f"--between {text!r}: expected two seeds, like 3,8")
    return seeds[0], seeds[1]


def parse_batch_size(text: str) -> int | None:
    """Read a number of videos, or "auto".

    Raises:
        PvdmError: If the text is neither.
    """
    if text == "auto":
        return None
    if not text.isdecimal():
        raise PvdmError(f"--batch-size {text!r}: expected a whole number of videos, or auto")
    return int(text)


def _numbered(number: int) -> str:
    """Name a video by its number."""
    return f"video-{number:05d}"


@dataclass(frozen=True)
class SampleResult:
    """The videos of a run, those found from before included."""

    out: Path
    videos: list[Path]
    made: int
    continued: int  # of those made, how many existed and were lengthened
    grid: Path | None
    sheet: Path | None
    drift: Path | None
    frames: int
    frames_drawn: int
    fps: float
    seconds: float
    peak_memory: int | None  # bytes, None where the system does not tell
    device: str
    profile: dict[str, float] = field(default_factory=dict)  # seconds by part of the work

    @property
    def frames_per_second(self) -> float:
        """Speed of this run."""
        return self.frames_drawn / self.seconds if self.frames_drawn else 0.0
