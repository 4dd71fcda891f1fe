"""`pvdm report`: a page about runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.options import DebugOpt, JsonOpt, OverwriteOpt, QuietOpt

RunsArg = Annotated[
    list[Path],
    typer.Argument(metavar="RUN", help="Run folders, of trainings that go on or are done."),
]
PageOpt = Annotated[
    Path, typer.Option("--out", "-o", metavar="HTML", help="The page, or a folder for it.")
]
VideoOpt = Annotated[
    float,
    typer.Option("--video-mb", min=0, help="Room for sample videos in the page, in megabytes."),
]


def report(
    runs: RunsArg,
    out: PageOpt = Path("report.html"),
    video_mb: VideoOpt = 20.0,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Write a page about one or several runs: curves, videos, settings, hardware, results.

    It is one HTML file that needs no network. The same command again brings it up to date; only a
    file that is no report needs --overwrite. Several runs are laid over each other.

    Examples:
        pvdm report runs/sky
        pvdm report runs/a runs/b --out comparison.html
        pvdm report runs/sky --video-mb 100
    """
    from pvdm_cli.report.page import write_report  # reads text: torch is never loaded

    result = write_report(runs, out, video_mb=video_mb, overwrite=overwrite)
    reporter = render.reporter(quiet)
    for note in result.notes:
        reporter.say(note)
    for path in result.left_out:
        reporter.say(f"left out {path}: no room; --video-mb gives more")
    reporter.say(
        f"{result.path}: {len(result.charts)} charts, {len(result.videos)} videos, "
        f"{result.bytes / 1e6:.2f} MB"
    )
    if as_json:
        render.print_json(asdict(result))
