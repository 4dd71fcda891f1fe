"""`pvdm train`: a stage, from a preset."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pvdm_cli.cli import launch, render
from pvdm_cli.cli.launch import NnodesOpt, NprocOpt, RdzvOpt, RestartsOpt
from pvdm_cli.cli.options import (
    DebugOpt,
    DeviceOpt,
    DryRunOpt,
    JsonOpt,
    OutOpt,
    OverridesArg,
    OverwriteOpt,
    PresetArg,
    QuietOpt,
)
from pvdm_cli.cli.signals import heeded

DataOpt = Annotated[
    Path | None, typer.Option("--data", metavar="DIR", help="Videos, for the autoencoder stage.")
]
CacheOpt = Annotated[
    Path | None,
    typer.Option("--cache", metavar="CACHE", help="Latent cache, for the diffusion stage."),
]
AutoencoderOpt = Annotated[
    str | None,
    typer.Option(
        "--autoencoder",
        metavar="MODEL",
        help="The model that made the cache; by default the one that the cache names.",
    ),
]


def train(
    preset: PresetArg,
    overrides: OverridesArg = None,
    data: DataOpt = None,
    cache: CacheOpt = None,
    autoencoder: AutoencoderOpt = None,
    out: OutOpt = Path("run"),
    dry_run: DryRunOpt = False,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    nproc_per_node: NprocOpt = None,
    nnodes: NnodesOpt = "1",
    rdzv_endpoint: RdzvOpt = None,
    max_restarts: RestartsOpt = 3,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Train the autoencoder on videos, or the diffusion model on a latent cache.

    The preset says which stage it is. The same command again continues from the last checkpoint;
    Ctrl-C saves one first.

    Examples:
        pvdm train demo/autoencoder --data videos --out runs/autoencoder
        pvdm encode videos --autoencoder runs/autoencoder --out cache
        pvdm train demo/diffusion --cache cache --out runs/diffusion training.steps=20000
        pvdm train sky/diffusion-l --dry-run
        pvdm train sky/diffusion-l --cache cache --out runs/l --nproc-per-node 8
    """
    if not dry_run:
        launch.hand_over(nproc_per_node, nnodes, rdzv_endpoint, max_restarts)
    from pvdm_cli import api  # torch loads here, not for --help

    if dry_run:
        plan = api.plan(preset, overrides or [])
        if as_json:
            render.print_json(plan.figures)
        else:
            print(plan.yaml, end="")
            render.print_columns(plan.rows(), stderr=True)
        return
    reporter = render.reporter(quiet)
    with _catch_signals(reporter.say) as caught:
        result = api.train(
            preset,
            out,
            data=data,
            cache=cache,
            autoencoder=autoencoder,
            overrides=overrides or [],
            overwrite=overwrite,
            device=device,
            reporter=reporter,
            stop=lambda: bool(caught),
        )
    state = "finished" if result.finished else "stopped; the same command continues"
    reporter.say(f"{result.run}: step {result.step}, {state}")
    if as_json:
        render.print_json(asdict(result))
    if not result.finished:  # the signal may have come to another process
        raise typer.Exit(128 + (caught[0] if caught else signal.SIGTERM))


@contextmanager
def _catch_signals(say: Callable[[str], None]) -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM, so that the step ends and is saved; a second one acts at once."""
    caught: list[int] = []

    def remember(number: int, frame: object) -> None:
        caught.append(number)
        with suppress(RuntimeError):  # it may have come in the middle of another line
            say("finishing this step and saving; once more quits at once")

    with heeded(remember):
        yield caught
