"""`pvdm bench`: time, memory and largest batch, beside the paper's table 5 and the floor."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.bench_options import (
    BaselineOpt,
    BatchesOpt,
    CsvOpt,
    ExtrapolateOpt,
    FailAboveOpt,
    FileOpt,
    FramesOpt,
    MarkdownOpt,
    MaxBatchOpt,
    MemoryOpt,
    ModelsArg,
    PlotOpt,
    PrecisionsOpt,
    RepeatsOpt,
    StepsOpt,
    SystemsOpt,
)
from pvdm_cli.cli.bench_output import Output, read_memory, show_comparison
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, QuietOpt, SeedOpt
from pvdm_cli.errors import PvdmError


def sample(
    models: ModelsArg = None,
    steps: StepsOpt = "100/20",
    frames: FramesOpt = "16,128",
    sampler: Annotated[
        str, typer.Option(metavar="NAME[,NAME]", help="Samplers as `pvdm sample` has them.")
    ] = "ddim",
    precision: PrecisionsOpt = "fp32",
    batch_size: BatchesOpt = "1",
    memory_limit: MemoryOpt = None,
    max_batch: MaxBatchOpt = None,
    repeats: RepeatsOpt = None,
    extrapolate: ExtrapolateOpt = False,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    csv: CsvOpt = False,
    markdown: MarkdownOpt = False,
    out: FileOpt = None,
    plot: PlotOpt = None,
    baseline: BaselineOpt = None,
    fail_above: FailAboveOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure the time and peak memory of videos, beside the published figures.

    Each figure comes from a process of its own. Without a name it measures the demo model.

    Examples:
        pvdm bench sample
        pvdm bench sample sky/diffusion-s --extrapolate --device cpu
        pvdm bench sample sky/diffusion-l --steps 200/200,400/400 --device cuda --json
        pvdm bench sample runs/sky --sampler ddim,dpm++ --batch-size 1,4,max --markdown
        pvdm bench sample --out now.json --baseline before.json --fail-above 1.05
    """
    output = Output(as_json, csv, markdown, out, plot, baseline, fail_above)
    lengths = _numbers("--frames", frames)
    from pvdm_cli import api  # torch loads here, not for --help
    from pvdm_cli.benchmark.run import parse_batches, parse_precisions

    batches, precisions = parse_batches(batch_size), parse_precisions(precision)
    samplers: list[Any] = sampler.split(",")  # whether they are known is checked with the steps
    limit = read_memory(memory_limit)
    output.measure(
        lambda: api.bench_sample(
            models or ["demo"],
            steps=steps,
            frames=lengths,
            samplers=samplers,
            precisions=precisions,
            batches=batches,
            memory_limit=limit,
            max_batch=max_batch,
            repeats=repeats,
            extrapolate=extrapolate,
            seed=seed,
            device=device,
            reporter=render.reporter(quiet),
        )
    )


def train(
    presets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PRESET|KEY=VALUE",
            help="Presets of either stage, and changes to all of them.",
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(metavar="NAME[,NAME]", help="fp32, bf16, fp16 in place of the preset's."),
    ] = None,
    batch_size: BatchesOpt = "max",
    memory_limit: MemoryOpt = None,
    max_batch: MaxBatchOpt = None,
    repeats: RepeatsOpt = None,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    csv: CsvOpt = False,
    markdown: MarkdownOpt = False,
    out: FileOpt = None,
    plot: PlotOpt = None,
    baseline: BaselineOpt = None,
    fail_above: FailAboveOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Find the largest training batch that fits in memory, and the seconds per step with it.

    Whole training steps on noise, each batch size tried in a process of its own. Without a preset
    it measures both stages of the demo model.

    Examples:
        pvdm bench train
        pvdm bench train demo/autoencoder --memory-limit 2
        pvdm bench train sky/diffusion-s sky/diffusion-l --memory-limit 24GiB --device cuda
        pvdm bench train sky/diffusion-s training.precision=bf16 --json
        pvdm bench train demo/diffusion --batch-size 1,2,4 --plot memory.svg
    """
    output = Output(as_json, csv, markdown, out, plot, baseline, fail_above)
    words = presets or []
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    from pvdm_cli import api  # torch loads here, not for --help
    from pvdm_cli.benchmark.run import parse_batches, parse_precisions
    from pvdm_cli.benchmark.train import DEFAULT_PRESETS

    batches, limit = parse_batches(batch_size), read_memory(memory_limit)
    precisions = parse_precisions(precision) if precision is not None else []
    output.measure(
        lambda: api.bench_train(
            [word for word in words if word not in overrides] or DEFAULT_PRESETS,
            overrides=overrides,
            precisions=precisions,
            batches=batches,
            memory_limit=limit,
            max_batch=max_batch,
            repeats=repeats,
            device=device,
            reporter=render.reporter(quiet),
        )
    )


def all_(
    models: ModelsArg = None,
    steps: StepsOpt = "100/20",
    frames: FramesOpt = "16,128",
    extrapolate: ExtrapolateOpt = False,
    systems: SystemsOpt = "all",
    minutes: Annotated[
        float,
        typer.Option(min=0.1, help="For all of it; figures not done by then are left out."),
    ] = 10.0,
    memory_limit: MemoryOpt = None,
    max_batch: Annotated[
        int, typer.Option(min=1, help="Where the search for the training batch stops.")
    ] = 4,
    repeats: RepeatsOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    csv: CsvOpt = False,
    markdown: MarkdownOpt = False,
    out: FileOpt = None,
    plot: PlotOpt = None,
    baseline: BaselineOpt = None,
    fail_above: FailAboveOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure sampling, training, encoding, decoding, files and other systems, one after the other.

    Training is measured for presets; for the demo model for both of its own. Of other systems, which
    come with `pip install 'pvdm[rivals]'`, a few steps are timed and multiplied out.

    Examples:
        pvdm bench all
        pvdm bench all demo sky/diffusion-s --extrapolate --minutes 15 --out all.json
        pvdm bench all --baseline all.json --fail-above 1.1 --plot all.svg
    """
    output = Output(as_json, csv, markdown, out, plot, baseline, fail_above)
    lengths = _numbers("--frames", frames)
    from pvdm_cli import api  # torch loads here, not for --help

    limit = read_memory(memory_limit)
    output.measure(
        lambda: api.bench_all(
            models or ["demo"],
            steps=steps,
            frames=lengths,
            extrapolate=extrapolate,
            systems=systems,
            minutes=minutes,
            memory_limit=limit,
            max_batch=max_batch,
            repeats=repeats,
            seed=seed,
            device=device,
            reporter=render.reporter(quiet),
        )
    )


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="A result written by --out.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Another one.")],
    as_json: JsonOpt = False,
    markdown: MarkdownOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Put two results beside each other: how many times as long, as large, beyond the spread.

    Examples:
        pvdm bench compare before.json after.json
        pvdm bench compare before.json after.json --markdown
    """
    show_comparison(a, b, as_json=as_json, markdown=markdown)


def _numbers(option: str, text: str) -> list[int]:
    """Read "16,128"."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise PvdmError(f"{option} {text!r}: expected whole numbers from 1 up, like 16,128")
    return found
