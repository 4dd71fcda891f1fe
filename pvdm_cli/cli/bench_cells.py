"""Cells and lines that the tables of `pvdm bench` share."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import typer

from pvdm_cli.cli import render

if TYPE_CHECKING:
    from pvdm_cli.benchmark.figure import Bench, Figure

GB = 2**30
NONE = "-"


class Table(NamedTuple):
    """A table and what it rests on; all columns but the first and the last are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    footer: Sequence[str]


def put(table: Table, *, markdown: bool = False) -> None:
    """Print a table of 80 columns or the same as Markdown, and what it rests on."""
    title, columns, rows, footer = table
    if markdown:
        typer.echo(f"**{title}**\n")
        heads = [_on_one_line(column) for column in columns]
        for cells in (heads, ["---"] + ["---:"] * (len(columns) - 2) + ["---"], *rows):
            typer.echo("| " + " | ".join(cells) + " |")
        typer.echo("\n" + "\n".join(f"- {line}" for line in footer) + "\n")
        return
    rows = _cut(rows, columns, render.console(stderr=False).width)
    render.print_table(columns, rows, title=title, right=columns[1:-1])
    for line in footer:
        typer.echo(textwrap.fill(line, width=79, subsequent_indent="  "))


def _on_one_line(head: str) -> str:
    """Join the lines of a column's head: "16 frames: s / GB", but "% of floor"."""
    above, broken, below = head.partition("\n")
    glue = " " if above.split()[-1:] in (["of"], ["/"], ["times"]) else ": "
    return f"{above}{glue}{below}" if broken else head


def _cut(rows: Sequence[Sequence[str]], columns: Sequence[str], width: int) -> list[list[str]]:
    """Cut long names in the first column from the left, so that the table fits the terminal."""
    heads = [max(column.split("\n"), key=len) for column in columns]
    others = list(zip(heads, *rows, strict=True))[1:]
    most = max(8, width - sum(max(map(len, column)) + 2 for column in others) - 2)
    return [
        [name if len(name) <= most else "…" + name[1 - most :], *cells] for name, *cells in rows
    ]


def floor_cells(figure: "Figure") -> list[str]:
    """Seconds of the floor, and how much of it is reached."""
    if figure.floor is None or figure.share is None:
        return [NONE, NONE]
    return [short(figure.floor.seconds), short(100 * figure.share, least=1)]


def floor_footer(figures: Sequence["Figure"]) -> list[str]:
    """Say what the floor is."""
    known = dict.fromkeys(
        (f.dtype, f.floor.flops_per_second, f.floor.bytes_per_second) for f in figures if f.floor
    )
    rates = [
        f"{dtype} {flops / 1e12:.3g} TFLOP/s, {size / 1e9:.3g} GB/s" for dtype, flops, size in known
    ]
    if not rates:
        return []
    return [
        f"floor: operations, or bytes of weights, inputs and outputs, at rates measured on a large "
        f"matrix product and a large copy ({'; '.join(rates)}). % of floor: floor s / s"
    ]


def device(figure: "Figure") -> str:
    """Name device and precision in a table's cell."""
    return f"{figure.device.removeprefix('NVIDIA ').removeprefix('GeForce ')} {figure.dtype}"


def repeats(figures: Sequence["Figure"]) -> str:
    """Say how often was measured and how far the times lie apart."""
    timings = [figure.timing for figure in figures if figure.timing]
    counts = sorted({timing.repeats for timing in timings})
    times = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts == [1]:
        return "measured once"
    spread = max(timing.spread / timing.median for timing in timings)
    return f"median of {times}, spread up to {spread:.0%}"


def machine(figure: "Figure", result: "Bench") -> str:
    """Say on what, and what GB means there."""
    threads = f"{figure.threads} thread{'s' if figure.threads > 1 else ''}"
    cpu = f"{result.environment['processor']}, {threads}"
    device = cpu if figure.device == "cpu" else figure.device
    counted = figure.peak.counted if figure.peak else "resident"
    above = "resident above the bare process" if counted == "resident" else counted
    return f"{device}, torch {figure.torch}. GB: 2^30 bytes {above}, weights included"


def memory(figure: "Figure") -> str:
    """Show the peak in GB, where known."""
    return gigabytes(figure.peak.bytes if figure.peak else None)


def gigabytes(size: int | None) -> str:
    """Show bytes in GB, where known."""
    return NONE if size is None else short(size / GB, least=2)


def short(value: float, least: int = 3) -> str:
    """Show a figure in about five characters; below 1 with `least` decimals or two figures."""
    if value >= 1000:
        return f"{value:,.0f}"
    if 0 < value < 0.01:
        return f"{value:.2g}"
    return f"{value:.{least}f}" if value < 1 else f"{value:.3g}"
