"""`pvdm push`: a model to the Hugging Face hub."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.options import (
    CheckpointOpt,
    DebugOpt,
    DeviceOpt,
    DryRunOpt,
    JsonOpt,
    ModelArg,
    QuietOpt,
)

RepoArg = Annotated[
    str,
    typer.Argument(metavar="OWNER/NAME", help="What it is called on the hub; made if not there."),
]
SampleOpt = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="VIDEO",
        help="Show this video, several by several --sample; by default the newest of the run, "
        "or a short one drawn now.",
    ),
]


def push(
    model: ModelArg,
    repo: RepoArg,
    checkpoint: CheckpointOpt = None,
    sample: SampleOpt = None,
    no_sample: Annotated[
        bool, typer.Option("--no-sample", help="Draw none where the run has none.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the weights, as the hub calls it, e.g. mit."),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Let nobody else see what is made now.")
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(metavar="BRANCH", help="Publish on this branch, made if it is not there."),
    ] = None,
    message: Annotated[str | None, typer.Option("--message", "-m", help="Of the commit.")] = None,
    dry_run: DryRunOpt = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="DIR", help="Also write what is published here."),
    ] = None,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Publish a model on the Hugging Face hub, with a card and a sample.

    The card says what the model is, what it learnt from, by which command, and how well it does, as
    far as the model and its run tell; look at it first with --dry-run --out DIR. Of paths only
    names are published, and nothing that only continuing the training needs.

    Examples:
        pvdm push runs/diffusion me/sky --dry-run --out published
        pvdm push runs/diffusion me/sky --checkpoint best --license mit
        pvdm push model me/sky --sample night.mp4 --private
    """
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    result = api.push(
        model,
        repo,
        checkpoint=checkpoint,
        samples=sample or (),
        draw=not no_sample,
        license=license,
        private=private,
        revision=revision,
        message=message,
        dry_run=dry_run,
        out=out,
        device=device,
        reporter=reporter,
    )
    for name, size in result.files.items():
        reporter.say(f"{size / 1e6:10.2f} MB  {name}")
    whole = f"{len(result.files)} files, {sum(result.files.values()) / 1e6:.2f} MB"
    if result.folder:
        reporter.say(f"written to {result.folder}: {whole}")
    if result.url is None:
        reporter.say(f"nothing was uploaded; without --dry-run {repo} gets {whole}")
    else:
        at = f"{repo}@{revision}" if revision else repo
        reporter.say(f"published {whole}; anybody who may see it can `pvdm sample {at}`")
    if as_json:
        render.print_json(asdict(result))
    elif result.url:
        print(result.url)
