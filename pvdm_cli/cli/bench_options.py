"""Options that the commands of `pvdm bench` share."""

from pathlib import Path
from typing import Annotated

import typer

ModelsArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL|PRESET",
        help="Models, and presets (built at full size with random weights).",
    ),
]
StepsOpt = Annotated[
    str,
    typer.Option("--steps", metavar="N/M[,N/M]", help="Steps of the first / each following clip."),
]
FramesOpt = Annotated[
    str,
    typer.Option("--frames", metavar="S[,S]", help="Lengths of the video, a column each."),
]
ExtrapolateOpt = Annotated[
    bool,
    typer.Option(
        "--extrapolate",
        help="Measure a few steps and one decoding and multiply out; marked ~ in the table.",
    ),
]
SystemsOpt = Annotated[
    str,
    typer.Option(
        "--systems",
        metavar="NAME[,NAME]",
        help="vdm, latte-s, latte-xl are run; vdm-256, unet3d, animatediff, cogvideox, wan, ltx "
        "are counted; all.",
    ),
]
RepeatsOpt = Annotated[
    int | None,
    typer.Option(
        "--repeats", min=1, help="Times each is measured: 3, or fewer once 20 s are spent."
    ),
]
MarkdownOpt = Annotated[
    bool, typer.Option("--markdown", help="Print the tables as Markdown on stdout.")
]
CsvOpt = Annotated[bool, typer.Option("--csv", help="Print every number as CSV on stdout.")]
FileOpt = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Also write the JSON result here, for `pvdm bench compare`."),
]
PlotOpt = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE.svg|png",
        help="Draw seconds against frames and memory against the batch (PNG needs matplotlib).",
    ),
]
BaselineOpt = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="An earlier result (--out) to compare with, row by row."),
]
FailAboveOpt = Annotated[
    float | None,
    typer.Option(
        metavar="R",
        help="Exit with 1 if a time or a peak is more than R times the baseline's, or a largest "
        "batch so much smaller.",
    ),
]
BatchesOpt = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="N[,N]|max",
        help="So many at a time, each is measured; max searches for the most that fit.",
    ),
]
PrecisionsOpt = Annotated[
    str,
    typer.Option("--precision", metavar="NAME[,NAME]", help="fp32, bf16, fp16: each is measured."),
]
MemoryOpt = Annotated[
    str | None,
    typer.Option(
        metavar="GB",
        help="Memory to fit in, like 24 or 24GiB (2^30 bytes each); else the card, or 80 % of "
        "the free main memory. On the CPU: resident memory above that of the bare process.",
    ),
]
MaxBatchOpt = Annotated[
    int | None,
    typer.Option(min=1, help="Where the search stops: 64, on CUDA 1024, unless given."),
]
