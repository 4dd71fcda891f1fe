"""What one wants to know first: how far a run is, how good, how fast; several runs side by side."""

from collections.abc import Sequence
from datetime import UTC, datetime

from pvdm_cli.report.chart import Curve
from pvdm_cli.report.curves import best_of, swatch
from pvdm_cli.report.markup import Child, Markup, table, tag
from pvdm_cli.report.records import Record
from pvdm_cli.report.scales import duration, figure, percent
from pvdm_cli.report.series import Series, highest, lowest

Fact = tuple[str, str, str]  # name, value, what else there is to say


def header(records: Sequence[Record], now: float) -> Markup:
    """Name the runs; of a single one tell its state in a line."""
    if len(records) > 1:
        names = ", ".join(record.name for record in records)
        return tag("header", tag("h1", f"{len(records)} runs"), tag("p", names))
    (record,) = records
    line = " · ".join(part for part in (record.stage, clip(record), state(record)) if part)
    return tag("header", tag("h1", record.name), tag("p", line), tag("p", age(record, now)))


def clip(record: Record) -> str:
    """Size of the clips."""
    found = [record.settings.get(f"clip.{key}") for key in ("frames", "height", "width")]
    if None in found:
        return ""
    frames, height, width = found
    return f"{frames} frames of {height} × {width}"


def state(record: Record) -> str:
    """How far a run is."""
    if not record.steps:
        return f"step {record.step:,}"
    if record.step >= record.steps:
        return f"finished, {record.step:,} steps"
    done = percent(record.step / record.steps)
    return f"step {record.step:,} of {record.steps:,} ({done})"


def age(record: Record, now: float) -> str:
    """When the run last wrote metrics, and how long before the page was made."""
    if record.written is None:
        return "No metrics yet."
    before = duration(round(max(0.0, now - record.written)))
    return f"Metrics last written {moment(record.written)}, {before} before this page."


def moment(seconds: float) -> str:
    """Write a time."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def judged(record: Record) -> tuple[str, str]:
    """The figure a run is judged by, and which direction is better."""
    if record.settings.get("training.judge") == "rfvd":
        return "val_rfvd", "lower"
    if record.settings.get("training.judge") == "fvd":
        return next((name for name in record.metrics if name.startswith("fvd_of_")), "fvd"), "lower"
    return ("val_loss", "lower") if record.stage == "diffusion" else ("val_psnr", "higher")


def summary(records: Sequence[Record]) -> Markup:
    """Show the main facts: as tiles of one run, as a table of several."""
    if len(records) == 1:
        return tag("dl", [_tile(fact) for fact in facts(records[0])], class_="tiles")
    told = [facts(record) for record in records]
    names = list(dict.fromkeys(name for each in told for name, _, _ in each))
    head: list[Child] = [
        "",
        *(swatch(Curve(record.name, [], number)) for number, record in enumerate(records)),
    ]
    rows: list[list[Child]] = [
        ["stage", *(record.stage for record in records)],
        ["state", *(state(record) for record in records)],
    ]
    for name in names:
        cells = [next((fact for fact in each if fact[0] == name), None) for each in told]
        rows.append([name, *(_cell(cell) for cell in cells)])
    return table(head, rows, caption="Runs side by side", class_="runs")


def _tile(fact: Fact) -> Markup:
    """Make a tile."""
    name, value, more = fact
    return tag(
        "div", tag("dt", name), tag("dd", value), tag("dd", more, class_="more") if more else None
    )


def _cell(fact: Fact | None) -> Child:
    """Make a cell of the table."""
    if fact is None:
        return "–"
    return [fact[1], tag("div", fact[2], class_="more") if fact[2] else None]


def facts(record: Record) -> list[Fact]:
    """The main figures of a run that are there."""
    found = [_best(record), _last(record), _time(record), _speed(record), _memory(record)]
    if record.checkpoints:
        newest = f"newest at step {record.checkpoints[-1]:,}"
        found.append(("checkpoints", str(len(record.checkpoints)), newest))
    return [fact for fact in found if fact is not None]


def _best(record: Record) -> Fact | None:
    """The best validation."""
    name, better = judged(record)
    best = best_of(record.metrics.get(name, []), better)
    if best is None:
        return None
    unit = " dB" if name == "val_psnr" else ""
    kept = f"; kept: {record.best}" if record.best else ""
    return f"best {name}", figure(best.value) + unit, f"at step {best.step:,}{kept}"


def _last(record: Record) -> Fact | None:
    """The last loss."""
    series = record.metrics.get("loss")
    if not series:
        return None
    low = lowest(series)
    return "loss", figure(series[-1].value), f"lowest {figure(low.value)} at step {low.step:,}"


def _time(record: Record) -> Fact | None:
    """Time spent, and what is left at the last rate."""
    rates = record.metrics.get("steps_per_second", [])
    if not record.seconds:
        return None
    more = "in training steps"
    if record.steps and record.step < record.steps and rates[-1].value > 0:
        more += f"; {duration((record.steps - record.step) / rates[-1].value)} to go"
    return "training time", duration(record.seconds), more


def _speed(record: Record) -> Fact | None:
    """Mean speed."""
    clips = record.metrics.get("clips_per_second")
    if not record.seconds or not clips:
        return None
    steps = record.metrics["steps_per_second"][-1].step / record.seconds
    return "clips per second", figure(_mean(clips)), f"{figure(steps)} steps per second"


def _mean(series: Series) -> float:
    """Mean over steps of a rate: steps by time, not a mean of rates."""
    befores = [0, *(point.step for point in series)]
    spans = [point.step - before for before, point in zip(befores, series, strict=False)]
    pairs = [(span, point.value) for span, point in zip(spans, series, strict=True)]
    time = sum(span / value for span, value in pairs if value > 0)
    return sum(span for span, value in pairs if value > 0) / time if time else 0.0


def _memory(record: Record) -> Fact | None:
    """Peak memory."""
    series = record.metrics.get("peak_memory_gb")
    if not series:
        return None
    use = record.metrics.get("flop_utilisation")
    more = f"{percent(use[-1].value)} of the device's rate" if use else ""
    return "peak memory", f"{figure(highest(series).value)} GiB", more


def notes(records: Sequence[Record]) -> Markup | None:
    """Say what could not be read."""
    found = [
        [tag("b", f"{record.name}: ") if len(records) > 1 else None, note]
        for record in records
        for note in record.notes
    ]
    if not found:
        return None
    return tag("ul", [tag("li", note) for note in found], class_="notes")
