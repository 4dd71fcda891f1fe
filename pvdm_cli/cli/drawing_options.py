"""Options of scores that draw their videos themselves, by --model."""

from pathlib import Path
from typing import Annotated

import typer

SCORED = Path("samples-scored")
STEPS, LENGTH, AT_ONCE = "400/400", 128, 4

StepsOpt = Annotated[
    str, typer.Option(metavar="N/M", help="With --model: steps, as of `pvdm sample`.")
]
ClassOpt = Annotated[
    str | None,
    typer.Option(
        "--class",
        metavar="NAME",
        help="With --model: class of all videos, as of `pvdm sample`; else each in turn.",
    ),
]
ClassGuidanceOpt = Annotated[
    float, typer.Option(min=0, help="With --model: weight of guidance on the class.")
]
LengthOpt = Annotated[
    int, typer.Option(min=1, metavar="S", help="With --model: frames to draw of each video.")
]
ScoredOpt = Annotated[
    Path, typer.Option("--out", "-o", help="With --model: where drawn videos and scores go.")
]
AtOnceOpt = Annotated[int, typer.Option(min=1, help="With --model: videos drawn at once.")]


def drawing_asked(steps: str, length: int, out: Path, batch_size: int) -> bool:
    """Whether any of these was given, which without --model would do nothing."""
    return (steps, length, out, batch_size) != (STEPS, LENGTH, SCORED, AT_ONCE)
