"""`pvdm bench`: time, memory and largest batch, beside the paper's table 5."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, QuietOpt, SeedOpt
from pvdm_cli.errors import PvdmError

if TYPE_CHECKING:
    from pvdm_cli.benchmark.sample import SampleBench, SampleFigure
    from pvdm_cli.benchmark.train import TrainBench, TrainFigure

FORMAT = 1
GB = 2**30
NONE = "-"

RepeatsOpt = Annotated[
    int | None,
    typer.Option(
        "--repeats", min=1, help="Times each is measured: 3, or fewer once 20 s are spent."
    ),
]
MarkdownOpt = Annotated[
    bool, typer.Option("--markdown", help="Print the table as Markdown on stdout.")
]


def sample(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL|PRESET",
            help="Models, and diffusion presets (built at full size with random weights).",
        ),
    ] = None,
    steps: Annotated[
        str, typer.Option(metavar="N/M[,N/M]", help="Steps of the first / each following clip.")
    ] = "100/20",
    frames: Annotated[
        str, typer.Option(metavar="S[,S]", help="Lengths of the video, a column each.")
    ] = "16,128",
    repeats: RepeatsOpt = None,
    extrapolate: Annotated[
        bool,
        typer.Option(
            "--extrapolate",
            help="Measure a few steps and one decoding and multiply out; marked ~ in the table.",
        ),
    ] = False,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    markdown: MarkdownOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure the time and peak memory of one video, beside the published figures.

    Each figure comes from a process of its own. Without a name it measures the demo model.

    Examples:
        pvdm bench sample
        pvdm bench sample sky/diffusion-s --extrapolate --device cpu
        pvdm bench sample sky/diffusion-l --steps 200/200,400/400 --device cuda --json
        pvdm bench sample runs/sky --frames 16,64,128 --repeats 5 --markdown
    """
    _one_form(as_json, markdown)
    lengths = _numbers("--frames", frames)
    from pvdm_cli import api  # torch loads here, not for --help

    result = api.bench_sample(
        models or ["demo"],
        steps=steps,
        frames=lengths,
        repeats=repeats,
        extrapolate=extrapolate,
        seed=seed,
        device=device,
        reporter=render.reporter(quiet),
    )
    if as_json:
        render.print_json({"bench": "sample", "format": FORMAT, **asdict(result)})
        return
    show_sample_table(result, markdown=markdown)


def show_sample_table(result: "SampleBench", *, markdown: bool = False) -> None:
    """Print the table of `bench sample` on stdout."""
    lengths = list(dict.fromkeys(figure.frames for figure in result.figures))
    _print(
        "Seconds / peak memory to synthesise one video",
        ["model", "steps", *(f"{count} frames\ns / GB" for count in lengths), "device"],
        _sample_rows(result, lengths),
        _sample_footer(result),
        markdown=markdown,
    )


def train(
    presets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PRESET|KEY=VALUE",
            help="Presets of either stage, and changes to all of them.",
        ),
    ] = None,
    memory_limit: Annotated[
        str | None,
        typer.Option(
            metavar="GB",
            help="Memory to fit in, like 24 or 24GiB (2^30 bytes each); else the card, or 80 % of "
            "the free main memory. On the CPU: resident memory above that of the bare process.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(min=1, help="Where the search stops: 64, on CUDA 1024, unless given."),
    ] = None,
    repeats: RepeatsOpt = None,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    markdown: MarkdownOpt = False,
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
    """
    _one_form(as_json, markdown)
    words = presets or []
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    from pvdm_cli import api  # torch loads here, not for --help
    from pvdm_cli.benchmark.maximum import parse_memory
    from pvdm_cli.benchmark.train import DEFAULT_PRESETS

    result = api.bench_train(
        [word for word in words if word not in overrides] or DEFAULT_PRESETS,
        overrides=overrides,
        memory_limit=parse_memory(memory_limit) if memory_limit is not None else None,
        max_batch=max_batch,
        repeats=repeats,
        device=device,
        reporter=render.reporter(quiet),
    )
    if as_json:
        render.print_json({"bench": "train", "format": FORMAT, **asdict(result)})
        return
    _print(
        "Largest training batch and one step with it",
        ["preset", "largest\nbatch", "s / step", "clips / s", "peak GB", "device"],
        _train_rows(result),
        _train_footer(result),
        markdown=markdown,
    )


def _one_form(as_json: bool, markdown: bool) -> None:
    """Refuse two forms at once."""
    if as_json and markdown:
        raise PvdmError("--json and --markdown exclude each other: choose one")


def _numbers(option: str, text: str) -> list[int]:
    """Read "16,128"."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise PvdmError(f"{option} {text!r}: expected whole numbers from 1 up, like 16,128")
    return found


def _sample_rows(result: "SampleBench", lengths: Sequence[int]) -> list[list[str]]:
    """Published rows, then ours: one per model and steps, a column per length."""
    rows = []
    for known in result.published:
        costs = [known.cost(count) for count in lengths]
        cells = [f"{_short(c.seconds)} / {_short(c.gigabytes)}" if c else NONE for c in costs]
        rows.append([known.method, known.steps or NONE, *cells, known.hardware])
    by_row = groupby(result.figures, key=lambda figure: (figure.model, figure.steps))
    for (model, steps), group in by_row:
        figures = list(group)
        rows.append([model, steps, *(_cost(figure) for figure in figures), _device(figures[0])])
    return rows


def _cost(figure: "SampleFigure") -> str:
    """Seconds and GB of one video; ~ marks what was multiplied out."""
    if figure.timing is None:
        return figure.state
    mark = "~" if figure.extrapolated else ""
    memory = _memory(figure.peak.bytes if figure.peak else None)
    return f"{mark}{_short(figure.timing.median)} / {memory}"


def _sample_footer(result: "SampleBench") -> list[str]:
    """What a reader of the table must know."""
    lines = [_published(result)]
    timed = [figure for figure in result.figures if figure.timing]
    if timed:
        first = timed[0]
        assert first.timing is not None
        lines.append(
            f"ours: {_repeats(timed)}, warm-up of {first.timing.warm_up}; no file written. "
            + _machine(first, result.environment)
        )
    subjects = dict.fromkeys((f.model, f.height, f.width, f.weights) for f in result.figures)
    lines += [f"{name}: {height} x {width}, {w} weights" for name, height, width, w in subjects]
    if any(figure.extrapolated for figure in result.figures):
        lines.append("~ extrapolated: a few steps of each kind and one decoding, multiplied out")
    return lines


def _train_rows(result: "TrainBench") -> list[list[str]]:
    """Published rows, then ours."""
    known = dict.fromkeys((row.method, row.train_batch, row.hardware) for row in result.published)
    rows = [[name, str(batch), NONE, NONE, NONE, card] for name, batch, card in known]
    for figure in result.figures:
        batch = f">= {figure.largest_batch}" if figure.capped else str(figure.largest_batch)
        cells = [NONE, NONE]
        if figure.timing:
            seconds = figure.timing.median
            cells = [_short(seconds), _short(figure.largest_batch / seconds)]
        memory = _memory(figure.peak.bytes if figure.peak else None)
        rows.append([figure.preset, batch, *cells, memory, _device(figure)])
    return rows


def _train_footer(result: "TrainBench") -> list[str]:
    """What a reader of the table must know."""
    lines = [_published(result)]
    if result.figures:
        first = result.figures[0]
        limit = f"{first.limit_bytes / GB:.3g} GB " if first.limit_bytes else ""
        timed = [figure for figure in result.figures if figure.timing]
        lines.append(
            f"ours: must fit in {limit}({first.limit_from}); "
            + (f"{_repeats(timed)} on noise. " if timed else "")
            + _machine(first, result.environment)
        )
    for figure in result.figures:
        size = f"clips of {figure.frames} x {figure.height} x {figure.width}"
        lines.append("; ".join([f"{figure.preset}: {figure.stage}, {size}", *figure.notes]))
    if any(figure.capped for figure in result.figures):
        lines.append(">= : the search stopped there (--max-batch)")
    return lines


def _published(result: "SampleBench | TrainBench") -> str:
    """Say where the published rows come from."""
    first = result.published[0]
    return f"published: {first.source}; 256 x 256 pixels, {first.hardware}"


def _device(figure: "SampleFigure | TrainFigure") -> str:
    """Name device and precision in a table's cell."""
    return f"{figure.device.removeprefix('NVIDIA ').removeprefix('GeForce ')} {figure.dtype}"


def _repeats(figures: "Sequence[SampleFigure | TrainFigure]") -> str:
    """Say how often was measured and how far the times lie apart."""
    timings = [figure.timing for figure in figures if figure.timing]
    counts = sorted({timing.repeats for timing in timings})
    times = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts == [1]:
        return "measured once"
    spread = max(timing.spread / timing.median for timing in timings)
    return f"median of {times}, spread up to {spread:.0%}"


def _machine(figure: "SampleFigure | TrainFigure", environment: dict[str, Any]) -> str:
    """Say on what, and what GB means there."""
    threads = f"{figure.threads} thread{'s' if figure.threads > 1 else ''}"
    cpu = f"{environment['processor']}, {threads}"
    device = cpu if figure.device == "cpu" else figure.device
    counted = figure.peak.counted if figure.peak else "resident"
    above = "resident above the bare process" if counted == "resident" else counted
    return f"{device}, torch {figure.torch}. GB: 2^30 bytes {above}, weights included"


def _memory(size: int | None) -> str:
    """Show bytes in GB, where known."""
    return NONE if size is None else _short(size / GB, least=2)


def _short(value: float, least: int = 3) -> str:
    """Show a figure in about five characters; below 1 with `least` decimals."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{least}f}" if value < 1 else f"{value:.3g}"


def _cut(rows: Sequence[Sequence[str]], columns: Sequence[str], width: int) -> list[list[str]]:
    """Cut long names in the first column from the left, so that the table fits the terminal."""
    heads = [max(column.split("\n"), key=len) for column in columns]
    others = list(zip(heads, *rows, strict=True))[1:]
    most = max(8, width - sum(max(map(len, column)) + 2 for column in others) - 2)
    return [
        [name if len(name) <= most else "…" + name[1 - most :], *cells] for name, *cells in rows
    ]


def _print(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    footer: Sequence[str],
    *,
    markdown: bool,
) -> None:
    """Print a table of 80 columns or the same as Markdown, and what it rests on."""
    if markdown:
        heads = [column.replace("\n", ": ", 1) for column in columns]
        for cells in (heads, ["---"] + ["---:"] * (len(columns) - 2) + ["---"], *rows):
            typer.echo("| " + " | ".join(cells) + " |")
        typer.echo("\n" + "\n".join(f"- {line}" for line in footer))
        return
    rows = _cut(rows, columns, render.console(stderr=False).width)
    render.print_table(columns, rows, title=title, right=columns[1:-1])
    for line in footer:
        typer.echo(textwrap.fill(line, width=79, subsequent_indent="  "))
