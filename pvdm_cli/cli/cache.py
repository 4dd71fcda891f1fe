"""`pvdm cache`: what a latent cache is, whether it is whole, how its clips look decoded."""

from dataclasses import asdict
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.info import show
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, OutOpt, OverwriteOpt, QuietOpt

if TYPE_CHECKING:
    from pvdm_cli.inspection import Verification

CacheArg = Annotated[Path, typer.Argument(metavar="CACHE", help="A folder made by pvdm encode.")]
DataOpt = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="The source videos; by default where they were."),
]
MakerOpt = Annotated[
    str | None,
    typer.Option("--autoencoder", metavar="MODEL", help="By default the one that the cache names."),
]


def info(cache: CacheArg, as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """Tell what a latent cache holds and what fp16 has cost it, as `pvdm info` does.

    Examples:
        pvdm cache info cache
        pvdm cache info cache --json
    """
    from pvdm_cli.describe import describe_cache  # reads JSON only: torch is never loaded

    show(describe_cache(cache), as_json)


def verify(
    cache: CacheArg,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Sizes, headers, indices and lists only: what opening a cache checks."
        ),
    ] = False,
    sample: Annotated[
        int,
        typer.Option(
            "--sample",
            min=0,
            metavar="N",
            help="Also decode N clips and compare with their source, encoded anew.",
        ),
    ] = 0,
    data: DataOpt = None,
    autoencoder: MakerOpt = None,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Check a latent cache: every byte of it, that no clip is missing, and that all belongs together.

    Each problem is one line with the file and the remedy, and the exit code is then 1. Nothing is
    changed: the same `pvdm encode` again encodes the clips of damaged shards anew.

    Examples:
        pvdm cache verify cache
        pvdm cache verify cache --fast --json
        pvdm cache verify cache --sample 8 --data videos
    """
    from pvdm_cli import api  # torch loads here, not for --help

    found = api.cache_verify(
        cache,
        fast=fast,
        sample=sample,
        data=data,
        autoencoder=autoencoder,
        device=device,
        reporter=render.reporter(quiet),
    )
    if as_json:
        samples = [{**one._asdict(), "agrees": one.agrees} for one in found.samples]
        problems = [problem._asdict() for problem in found.problems]
        whole = {"sound": found.sound, **asdict(found)}
        render.print_json({**whole, "problems": problems, "samples": samples})
    else:
        _show(found)
    if not found.sound:
        raise typer.Exit(1)


def _show(found: "Verification") -> None:
    """Print what was found: one line for each problem, or that there is none."""
    for problem in found.problems:
        typer.echo(problem.what)
    if found.samples:
        render.print_table(
            ("clip", "cached dB", "anew dB", "latents differ by"),
            [
                (
                    f"{one.video} from {one.first}",
                    f"{one.psnr:.2f}",
                    f"{one.psnr_anew:.2f}",
                    f"{one.difference:.2%}",
                )
                for one in found.samples
            ],
            right=("cached dB", "anew dB", "latents differ by"),
        )
    if found.problems and found.command:
        typer.echo(f"it was made by: {join(found.command)}")
    if found.sound:
        checked = "sizes, headers and index" if found.fast else "every byte"
        whole = f", sha256 {found.sha256}" if found.sha256 else ""
        typer.echo(
            f"{found.cache} is sound ({checked}): {found.clips} clips in {found.shards} shards, "
            f"{found.bytes / 1e6:.1f} MB{whole}"
        )


def preview(
    cache: CacheArg,
    num: Annotated[
        int, typer.Argument(min=1, metavar="[N]", help="How many clips, spread over the cache.")
    ] = 4,
    out: OutOpt = Path("preview"),
    data: DataOpt = None,
    autoencoder: MakerOpt = None,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Write clips of a latent cache as mp4: the original to the left, decoded to the right.

    Examples:
        pvdm cache preview cache
        pvdm cache preview cache 8 --out beside --data videos
    """
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    result = api.cache_preview(
        cache,
        num,
        out,
        data=data,
        autoencoder=autoencoder,
        overwrite=overwrite,
        device=device,
        reporter=reporter,
    )
    mean = sum(result.psnr) / len(result.psnr)
    reporter.say(f"{result.out}: {len(result.files)} clips, {mean:.2f} dB on average")
    if as_json:
        render.print_json(asdict(result))
