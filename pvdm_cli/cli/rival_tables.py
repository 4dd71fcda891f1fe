"""Tables of `pvdm bench rivals`: what was run, what a clip costs, what is only published."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pvdm_cli.cli.bench_cells import (
    GB,
    NONE,
    Table,
    floor_cells,
    floor_footer,
    machine,
    memory,
    repeats,
    short,
)

if TYPE_CHECKING:
    from pvdm_cli.benchmark.figure import Bench, Figure
    from pvdm_cli.benchmark.paper import Published
    from pvdm_cli.benchmark.published import PublishedRow

# In a word, for the narrow column; the lines below the table say it in a sentence.
NOT_RUN = {
    "counted, not run": "counted",
    "out of memory": "too large",
    "out of time": "no time",
    "not installed": "missing",
}


def tables(result: "Bench", figures: Sequence["Figure"]) -> Iterator[Table]:
    """Give all tables, of the figures of rivals in a result."""
    yield _run(result, figures)
    yield _counted(figures)
    yield _published(result)


def _run(result: "Bench", figures: Sequence["Figure"]) -> Table:
    """Give time and memory of what was run, ours first."""
    rows = [[*_who(each), *_times(each, figures[0]), *_state(each)] for each in figures]
    heads = ["s / step", "s / clip", "times\nours", "peak\nGB", "% of\nfloor"]
    ran = [figure for figure in figures if figure.step]
    footer = []
    if ran:
        steps = sorted({each.step.repeats for each in ran if each.step})
        often = " to ".join(str(count) for count in dict.fromkeys([steps[0], steps[-1]]))
        footer += [
            f"s / clip: from {often} timed steps each (median), times the steps, and one decoding",
            f"{repeats(ran)}; {machine(ran[0], result)}",
            *_processor(ran),
            *floor_footer(ran),
        ]
    footer += [note for figure in figures for note in figure.notes]
    columns = ["system", "px", "steps", *heads, "run on"]
    return Table("Seconds and peak memory of one clip of 16 frames", columns, rows, footer)


def _who(figure: "Figure") -> list[str]:
    """Name a system, its frames' size and its steps."""
    return [figure.subject, str(figure.height), f"{figure.settings['steps']:,}"]


def _times(figure: "Figure", ours: "Figure") -> list[str]:
    """Seconds of a step and of a clip, and how many times ours that is."""
    if figure.timing is None or figure.step is None:
        return [NONE, NONE, NONE]
    times = short(figure.timing.median / ours.timing.median, least=2) if ours.timing else NONE
    return [short(figure.step.median), short(figure.timing.median, least=2), times]


def _state(figure: "Figure") -> list[str]:
    """Peak, share of the floor, and where it ran or why it did not."""
    if figure.timing is None:
        return [NONE, NONE, NOT_RUN.get(figure.state, figure.state)]
    where = "cpu" if figure.device == "cpu" else "gpu"
    return [memory(figure), floor_cells(figure)[1], f"{where} {figure.dtype}"]


def _processor(figures: list["Figure"]) -> list[str]:
    """Tell seconds of the processor, which hardly depend on what else the machine does."""
    spent = [
        (each.subject, each.settings["steps"] * each.step.processor)
        for each in figures
        if each.device == "cpu" and each.step and each.step.processor
    ]
    if not spent:
        return []
    first = spent[0][1]
    told = [f"{name} {short(seconds)} ({short(seconds / first)} x)" for name, seconds in spent]
    return [f"processor seconds of all steps, threads added up: {', '.join(told)}"]


def _counted(figures: Sequence["Figure"]) -> Table:
    """Give operations and weights of everything."""
    figures = [figure for figure in figures if figure.counted]
    ours = figures[0].counted if figures else None
    rows = []
    for each in figures:
        cost = each.counted
        assert cost is not None
        assert ours is not None
        rows.append(
            [
                *_who(each),
                short(cost.parameters / 1e6),
                short(cost.weight_bytes / GB, least=2),
                short(cost.step_flops / 1e9),
                short(cost.flops / 1e12),
                short(cost.flops / ours.flops, least=2),
                "run" if each.timing else "counted",
            ]
        )
    footer = [
        "operations by torch's counter, a multiply-add is two; a clip: all steps and one decoding",
        "steps: network calls of a clip; 100 from text are 50 steps, with the text and without",
        "weights: of the network and its autoencoder; encoders of text are not counted",
    ]
    footer.append("counted: not run, so its time is not known")
    folded = [
        f"{f.subject}: {f.settings['frames']} frames" for f in figures if f.settings["frames"] != 16
    ]
    footer += ["; ".join(folded)] if folded else []
    heads = ["param.\nM", "weights\nGB", "GFLOP /\nstep", "TFLOP /\nclip", "times\nours"]
    return Table("What a clip costs, counted", ["system", "px", "steps", *heads, ""], rows, footer)


def _published(result: "Bench") -> Table:
    """Give the paper's figures, also of systems that cannot be run."""
    rows = [[each.method, *_cost(each.cost), *_scores(each)] for each in result.systems]
    first = result.published[0]
    reasons: dict[str, list[str]] = {}
    for each in result.systems:
        if each.why_not_run:
            reasons.setdefault(each.why_not_run, []).append(each.method)
    footer = [
        f"{first.source}: s / GB of one video and the largest training batch of 16 frames, on one "
        f"{first.hardware}, 256 x 256",
        "FVD of 16 frames, UCF-101 / SkyTimelapse (table 1); IS: inception score on UCF-101 (table "
        "2), * trained on its test videos too",
        *[f"not run, {why}: {', '.join(names)}" for why, names in reasons.items()],
    ]
    heads = ["train\nbatch", "16 frames\ns / GB", "128 frames\ns / GB", "FVD", "IS"]
    return Table("Published, on other hardware", ["system", "steps", *heads], rows, footer)


def _cost(row: "PublishedRow | None") -> list[str]:
    """Steps, largest training batch, seconds and GB at both lengths."""
    if row is None:
        return [NONE] * 4
    costs = [row.frames16, row.frames128]
    cells = [f"{short(c.seconds)} / {short(c.gigabytes)}" if c else NONE for c in costs]
    return [row.steps or NONE, str(row.train_batch), *cells]


def _scores(system: "Published") -> list[str]:
    """FVD on both data sets and inception score."""
    fvd, found = system.fvd, system.inception
    cells = [f"{fvd.ucf101[0]:g} / {fvd.sky[0]:g}" if fvd else NONE]
    return [*cells, f"{found.mean:g}{'*' if found.on_all else ''}" if found else NONE]
