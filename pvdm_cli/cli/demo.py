"""`pvdm demo`: everything once, with nothing but this package."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pvdm_cli.cli import bench_tables, render
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, OutOpt, QuietOpt, SeedOpt

DataOpt = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Your own videos instead of drawn skies."),
]
FromScratchOpt = Annotated[
    bool,
    typer.Option("--from-scratch", help="Train both stages in full; says first how long it takes."),
]
MinutesOpt = Annotated[
    float,
    typer.Option("--minutes", min=0, help="How long to go on training from the shipped weights."),
]
FramesOpt = Annotated[int, typer.Option("--frames", min=1, help="Frames of the sampled videos.")]


def demo(
    out: OutOpt = Path("out"),
    data: DataOpt = None,
    from_scratch: FromScratchOpt = False,
    minutes: MinutesOpt = 1.0,
    frames: FramesOpt = 128,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Draw videos, encode them, train for a minute, sample a long video, measure.

    Needs no data, no network and no GPU; under 5 minutes on 2 CPU cores. Before each step it says
    the command that does the same by hand.

    Examples:
        pvdm demo
        pvdm demo --out out --data my-videos --minutes 20
        pvdm demo --out out --from-scratch
    """
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    if from_scratch:
        hours = api.demo_hours(device)
        reporter.say(f"training both stages from scratch takes about {hours:.1f} hours here")
    result = api.demo(
        out,
        data=data,
        from_scratch=from_scratch,
        minutes=minutes,
        frames=frames,
        seed=seed,
        device=device,
        reporter=reporter,
    )
    reporter.say(f"$ pvdm bench sample {out / 'diffusion'} --steps 50/25")
    bench = api.bench_sample([str(out / "diffusion")], steps="50/25", reporter=reporter)
    if not quiet and not as_json:
        bench_tables.show(bench)
    first = result.sampled.videos[0]
    reporter.say(f"{first}: {frames} frames; all of them: {result.sampled.grid}")
    if as_json:
        render.print_json(asdict(result))
