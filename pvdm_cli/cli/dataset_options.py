"""Options about a data set, for the commands that read one: which videos, which frames of them."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pvdm_cli.config import Policy, Selection

SOME_SKIPPED = 3  # exit code: done, but not with every input

SELECTION = "Which videos"  # headings of --help
POLICY = "Which frames"


class Side(StrEnum):
    """Side of a split."""

    all = "all"
    train = "train"
    test = "test"


class Short(StrEnum):
    """What becomes of videos shorter than a clip."""

    skip = "skip"
    loop = "loop"
    hold = "hold"


class Crop(StrEnum):
    """Which part of a frame is shown."""

    centre = "centre"
    random = "random"
    letterbox = "letterbox"


VideosArg = Annotated[
    Path,
    typer.Argument(
        metavar="VIDEOS",
        help="A folder of videos (at any depth), one video, or a table of some (.csv, .jsonl).",
    ),
]
AutoencoderOpt = Annotated[
    str,
    typer.Option(
        "--autoencoder", metavar="MODEL", help="A model folder, a run folder, or 'demo' (shipped)."
    ),
]
LabelsOpt = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="folders|FILE",
        help="Classes of the videos: the folders they lie in, or a file: a list as for UCF-101 "
        "(.txt) or a table with path and label (.csv, .jsonl); then only videos it names are "
        "encoded. If VIDEOS is a table with labels, those.",
    ),
]
IncludeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--include",
        metavar="GLOB",
        rich_help_panel=SELECTION,
        help="Take only videos whose names below VIDEOS match, as '*.avi' or 'train/*' (repeat for "
        "several).",
    ),
]
ExcludeOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", rich_help_panel=SELECTION, help="Leave out those that match."
    ),
]
SplitOpt = Annotated[
    Side,
    typer.Option(
        "--split",
        rich_help_panel=SELECTION,
        help="One side: of UCF-101's lists, a table's column split, or folders train and test.",
    ),
]
FoldOpt = Annotated[
    int,
    typer.Option("--fold", min=1, max=3, rich_help_panel=SELECTION, help="Which lists of UCF-101."),
]
HoldoutOpt = Annotated[
    float | None,
    typer.Option(
        "--holdout",
        min=0,
        max=0.99,
        metavar="SHARE",
        rich_help_panel=SELECTION,
        help="Let --split go by a hash of the names, with this share as test (as data.holdout of "
        "training does).",
    ),
]
WindowStrideOpt = Annotated[
    int | None,
    typer.Option(
        "--window-stride",
        min=1,
        metavar="N",
        rich_help_panel=POLICY,
        help="Start a clip every N frames (1: every window); by default clips touch and do not overlap.",
    ),
]
FrameStrideOpt = Annotated[
    int | None,
    typer.Option(
        "--frame-stride",
        min=1,
        metavar="N",
        rich_help_panel=POLICY,
        help="Take every N-th frame; by default as the model was trained.",
    ),
]
RateOpt = Annotated[
    float | None,
    typer.Option(
        "--rate",
        min=0.001,
        metavar="FPS",
        rich_help_panel=POLICY,
        help="Take so many frames a second, picked by time, instead.",
    ),
]
FpsOpt = Annotated[
    float | None,
    typer.Option(
        "--fps",
        min=0.001,
        metavar="FPS",
        rich_help_panel=POLICY,
        help="The rate of arrays and folders of frames, which name none.",
    ),
]
ShortOpt = Annotated[
    Short,
    typer.Option(
        "--short",
        rich_help_panel=POLICY,
        help="Videos shorter than a clip: skip them, loop from their beginning, or hold their last "
        "frame.",
    ),
]
CropOpt = Annotated[
    Crop,
    typer.Option(
        "--crop",
        rich_help_panel=POLICY,
        help="Show the middle of a frame, a random place (one for each video), or all of it on "
        "black.",
    ),
]
FlipOpt = Annotated[
    bool,
    typer.Option(
        "--flip", rich_help_panel=POLICY, help="Encode a mirrored copy of each video, too."
    ),
]


def selection(
    include: list[str] | None, exclude: list[str] | None, split: Side, fold: int
) -> "Selection":
    """Put the options about which videos together."""
    from pvdm_cli.config import Selection  # pydantic need not load for --help

    return Selection(
        include=tuple(include or ()), exclude=tuple(exclude or ()), split=split.value, fold=fold
    )


def policy(
    rate: float | None, fps: float | None, short: Short, crop: Crop, flip: bool, seed: int
) -> "Policy":
    """Put the options about which frames together; a seed counts for a random crop only."""
    from pvdm_cli.config import Policy

    seed = seed if crop is Crop.random else 0
    return Policy(rate=rate, fps=fps, short=short.value, crop=crop.value, flip=flip, seed=seed)
