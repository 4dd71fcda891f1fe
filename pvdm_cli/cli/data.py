"""`pvdm data`: videos to practise with."""

from typing import Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.options import DebugOpt, JsonOpt, OutOpt, QuietOpt, SeedOpt

NumOpt = Annotated[int, typer.Option("--num", min=1, help="How many videos.")]
FramesOpt = Annotated[int, typer.Option("--frames", min=1, help="Frames of each.")]
SizeOpt = Annotated[int, typer.Option("--size", min=16, help="Height and width in pixels.")]


def sky(
    out: OutOpt,
    num: NumOpt = 100,
    frames: FramesOpt = 64,
    size: SizeOpt = 64,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Draw procedural sky time-lapses: drifting clouds, day to dusk; the same for the same seed.

    They are what the shipped demo model was trained on. Files already there are kept.

    Examples:
        pvdm data sky --out videos
        pvdm data sky --num 800 --frames 64 --out videos
    """
    from pvdm_cli import api  # video libraries load here, not for --help

    reporter = render.reporter(quiet)
    paths = api.draw_skies(out, num=num, frames=frames, size=size, seed=seed, reporter=reporter)
    reporter.say(f"{out}: {len(paths)} videos of {frames} frames")
    if as_json:
        render.print_json([str(path) for path in paths])
