"""Tables of `pvdm bench`: figures beside the published ones and beside the hardware's floor."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import typer

from pvdm_cli.cli import rival_tables
from pvdm_cli.cli.bench_cells import (
    GB,
    NONE,
    Table,
    device,
    floor_cells,
    floor_footer,
    gigabytes,
    machine,
    memory,
    put,
    repeats,
    short,
)

if TYPE_CHECKING:
    from pvdm_cli.benchmark.compare import Compared
    from pvdm_cli.benchmark.figure import Bench, Figure


def show(result: "Bench", *, markdown: bool = False) -> None:
    """Print all tables of a result on stdout."""
    tables: dict[str, Callable[[Bench, list[Figure]], Table]] = {
        "sample": _sampling,
        "train": _training,
        "encode": _coding,
        "decode": _coding,
        "io": _moving,
    }
    for name, part in groupby(result.figures, key=lambda figure: figure.bench):
        figures = list(part)
        if name == "rivals":
            for table in rival_tables.tables(result, figures):
                put(table, markdown=markdown)
            continue
        put(tables[name](result, figures), markdown=markdown)
        if name in ("sample", "train") and any(figure.floor for figure in figures):
            put(_floors(figures), markdown=markdown)
    if result.bench == "all":  # else they are among the footers
        told = {note for figure in result.figures for note in figure.notes}
        for note in result.notes:
            if note not in told:
                typer.echo(f"- {note}" if markdown else note)


def comparison(found: "Compared", names: tuple[str, str]) -> Table:
    """Put two results beside each other."""
    rows = [
        [
            f"{each.row.bench} {each.row.subject}: {each.row.settings}",
            each.row.quantity,
            _number(each.before, each.row.unit),
            _number(each.row.median, each.row.unit),
            f"{each.ratio:.3f}",
            ("worse" if each.worse > 1 else "better") if each.beyond else "same",
        ]
        for each in found.ratios
    ]
    footer = [f"A: {names[0]}", f"B: {names[1]}; same: they differ by less than the spread"]
    footer += [f"differing {each}" for each in found.differing]
    footer += missing(found, names)
    return Table("B by A", ["figure", "of", "A", "B", "B / A", "B is"], rows, footer)


def missing(found: "Compared", names: tuple[str, str]) -> list[str]:
    """Say which rows only one of two results has."""
    sides = zip(names, (found.gone, found.new), strict=True)
    return [f"only in {name}: {row}" for name, rows in sides for row in rows]


def _sampling(result: "Bench", figures: Sequence["Figure"]) -> Table:
    """Published rows, then ours: one per model and settings, a column per length."""
    lengths = list(dict.fromkeys(figure.settings["frames"] for figure in figures))
    rows = []
    for known in result.published:
        costs = [known.cost(count) for count in lengths]
        cells = [f"{short(c.seconds)} / {short(c.gigabytes)}" if c else NONE for c in costs]
        rows.append([known.method, known.steps or NONE, *cells, known.hardware])
    for _, group in groupby(figures, key=_row_of):
        row = list(group)
        rows.append([row[0].subject, _steps(row[0]), *map(_cost, row), device(row[0])])
    footer = [*_published(result), *_ours(figures, result, " no file written.")]
    sizes = dict.fromkeys((f.subject, f.height, f.width, f.weights) for f in figures)
    footer += [f"{name}: {height} x {width}, {w} weights" for name, height, width, w in sizes]
    if any(figure.extrapolated for figure in figures):
        footer.append("~ extrapolated: a few steps of each kind and one decoding, multiplied out")
    heads = [f"{count} frames\ns / GB" for count in lengths]
    title = "Seconds / peak memory to synthesise one video"
    if any(figure.batch != 1 for figure in figures):
        title = "Seconds / peak memory to synthesise videos"
        footer.append("x N: so many videos at a time, and the seconds for all of them")
    return Table(title, ["model", "steps", *heads, "device"], rows, footer)


def _row_of(figure: "Figure") -> tuple[object, ...]:
    """What the figures of one row share."""
    chosen = [value for name, value in figure.settings.items() if name != "frames"]
    searched = figure.search is not None
    return (figure.subject, *chosen, figure.dtype, None if searched else figure.batch)


def _steps(figure: "Figure") -> str:
    """Steps, the sampler where it is not the published one, and how many videos at a time."""
    words = [figure.settings["steps"]]
    if figure.settings["sampler"] != "ddim":
        words.append(figure.settings["sampler"])
    if figure.search is None and figure.batch != 1:
        words.append(f"x {figure.batch}")
    return " ".join(words)


def _cost(figure: "Figure") -> str:
    """Seconds and GB; ~ marks what was multiplied out."""
    if figure.timing is None:
        return figure.state
    mark = "~" if figure.extrapolated else ""
    cost = f"{mark}{short(figure.timing.median)} / {memory(figure)}"
    return cost if figure.search is None else f"{cost} x {_largest(figure)}"


def _training(result: "Bench", figures: Sequence["Figure"]) -> Table:
    """Published rows, then ours."""
    known = dict.fromkeys((row.method, row.train_batch, row.hardware) for row in result.published)
    rows = [[name, str(batch), *[NONE] * 4, card] for name, batch, card in known]
    rows += [
        [
            each.subject,
            _largest(each),
            *_pace(each),
            memory(each),
            gigabytes(each.predicted),
            device(each),
        ]
        for each in figures
    ]
    footer = [*_published(result), *_ours(figures, result, " on noise.")]
    if any(each.predicted for each in figures):
        footer.append("predicted: memory of a step on a GPU, without running it")
    for each in figures:
        size = f"clips of {each.settings['frames']} x {each.height} x {each.width}"
        footer.append("; ".join([f"{each.subject}: {each.settings['stage']}, {size}", *each.notes]))
    heads = ["s /\nstep", "clips /\ns", "peak\nGB", "predicted\nGB"]
    columns = ["preset", "largest\nbatch", *heads, "device"]
    if all(figure.search is None and figure.timing for figure in figures):
        columns[1] = "batch"
    title = "Largest training batch and one step with it"
    return Table(title, columns, rows, footer)


def _coding(result: "Bench", figures: Sequence["Figure"]) -> Table:
    """Encode or decode, with the floor."""
    rows = [
        [each.subject, _largest(each), *_pace(each), memory(each), *floor_cells(each), device(each)]
        for each in figures
    ]
    footer = [*_ours(figures, result, " from memory to memory."), *floor_footer(figures)]
    sizes = dict.fromkeys((f.subject, f.settings["frames"], f.height, f.width) for f in figures)
    footer += [f"{name}: clips of {s} x {height} x {width}" for name, s, height, width in sizes]
    heads = ["s", "clips / s", "peak GB", "floor s", "% of\nfloor"]
    done = "encode" if figures[0].bench == "encode" else "decode"
    title = f"Seconds and peak memory to {done} clips"
    return Table(title, ["model", "batch", *heads, "device"], rows, footer)


def _moving(result: "Bench", figures: Sequence["Figure"]) -> Table:
    """Files and caches."""
    rows = [
        [
            f"{each.settings['moved']}, {each.subject}",
            f"{each.batch} {each.unit}s",
            *_pace(each),
            memory(each),
            *floor_cells(each),
            device(each),
        ]
        for each in figures
    ]
    footer = [*_ours(figures, result, " files in the system's memory.")]
    sources = {f.settings["from"] for f in figures if "from" in f.settings}
    footer += [f"video files: {each}, drawn, one at a time" for each in sources]
    footer.append("floor: a copy of as many bytes. A pair: two consecutive clips, in any order")
    heads = ["moved", "s", "per s", "peak GB", "floor s", "% of\nfloor"]
    return Table("Files and caches", ["data", *heads, "device"], rows, footer)


def _floors(figures: Sequence["Figure"]) -> Table:
    """Beside the least the device needs."""
    rows = [
        [each.subject, _work(each), short(each.timing.median), *floor_cells(each), each.floor.bound]
        for each in figures
        if each.floor and each.timing
    ]
    heads = ["of", "s", "floor s", "% of\nfloor", "bound by"]
    title = "Beside the floor of this device"
    return Table(title, ["model", *heads], rows, floor_footer(figures))


def _work(figure: "Figure") -> str:
    """Say in few words what is done in the time told."""
    if figure.bench == "train":
        return f"step of {figure.batch}"
    batch = f" x {figure.batch}" if figure.search else ""  # else among the steps
    return f"{_steps(figure)}{batch}, {figure.settings['frames']} frames"


def _largest(figure: "Figure") -> str:
    """Show a batch; >= where the search stopped."""
    if figure.state == "out of time":
        return str(figure.batch or NONE)
    return f"{'>= ' if figure.search and figure.search.capped else ''}{figure.batch}"


def _pace(figure: "Figure") -> list[str]:
    """Seconds of a batch, and how many a second."""
    if figure.timing is None:
        nothing_fits = figure.search is not None and figure.batch == 0
        return [NONE if nothing_fits else figure.state, NONE]
    seconds = figure.timing.median
    return [short(seconds), short(figure.batch / seconds)]


def _published(result: "Bench") -> Iterator[str]:
    """Say where the published rows come from."""
    if result.published:
        first = result.published[0]
        yield f"published: {first.source}; 256 x 256 pixels, {first.hardware}"


def _ours(figures: Sequence["Figure"], result: "Bench", how: str) -> Iterator[str]:
    """Say what ours were measured on, how often, and what they had to fit in."""
    first = figures[0]
    timed = [figure for figure in figures if figure.timing]
    search = next((figure.search for figure in figures if figure.search), None)
    words = []
    if search:
        limit = f"{search.limit_bytes / GB:.3g} GB " if search.limit_bytes else ""
        words.append(f"must fit in {limit}({search.limit_from});")
    if timed and timed[0].timing:
        words.append(f"{repeats(timed)}, warm-up of {timed[0].timing.warm_up};{how}")
    words.append(machine(timed[0] if timed else first, result))
    yield f"ours: {' '.join(words)}"
    if any(figure.search and figure.search.capped for figure in figures):
        yield ">= : the search stopped there (--max-batch)"


def _number(value: float, unit: str) -> str:
    """Show a number of a row with its unit."""
    return f"{short(value / GB)} GB" if unit == "bytes" else f"{short(value)} {unit}"
