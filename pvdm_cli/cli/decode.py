"""`pvdm decode`: a latent cache back to videos."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.encode import Precision, PrecisionOpt
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, OutOpt, OverwriteOpt, QuietOpt


class Format(StrEnum):
    """Kind of file for each video."""

    mp4 = "mp4"
    gif = "gif"
    webp = "webp"
    png = "png"
    npz = "npz"


BatchSizeOpt = Annotated[int, typer.Option("--batch-size", min=1, help="Clips per forward pass.")]


def decode(
    cache: Annotated[Path, typer.Argument(metavar="CACHE", help="A folder made by pvdm encode.")],
    out: OutOpt,
    autoencoder: Annotated[
        str | None,
        typer.Option(
            "--autoencoder", metavar="MODEL", help="By default the one that the cache names."
        ),
    ] = None,
    format: Annotated[
        Format, typer.Option("--format", help="Kind of file; png is a folder of frames.")
    ] = (Format.mp4),
    num: Annotated[
        int | None, typer.Option("--num", min=1, metavar="N", help="Only the first N videos.")
    ] = None,
    fps: Annotated[
        float | None,
        typer.Option("--fps", min=0.01, help="Frame rate; by default that of the sources."),
    ] = None,
    batch_size: BatchSizeOpt = 8,
    precision: PrecisionOpt = Precision.fp32,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Decode a latent cache back into videos, to see what the autoencoder keeps.

    Examples:
        pvdm decode cache --out decoded --num 4
        pvdm decode cache --out decoded --format gif
    """
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    result = api.decode(
        cache,
        out,
        autoencoder=autoencoder,
        format=format.value,
        num=num,
        fps=fps,
        batch_size=batch_size,
        precision=precision.value,
        overwrite=overwrite,
        device=device,
        reporter=reporter,
    )
    reporter.say(
        f"{result.out}: {len(result.files)} videos, {result.frames} frames "
        f"at {result.fps:.4g} frames/s"
    )
    if as_json:
        render.print_json(asdict(result))
