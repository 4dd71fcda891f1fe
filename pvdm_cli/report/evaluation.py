"""Evaluation results and drift, read liberally: whatever is a number is shown."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from statistics import stdev
from typing import Any, NamedTuple

from pvdm_cli.report.chart import Curve, Look, draw
from pvdm_cli.report.curves import swatch
from pvdm_cli.report.drift import TITLES
from pvdm_cli.report.markup import Child, Markup, table, tag
from pvdm_cli.report.records import Facts, Record, flat
from pvdm_cli.report.scales import figure
from pvdm_cli.report.series import Point, Series

SCALES = ("step", "frame", "frames", "clip", "clips", "second", "seconds")  # what drift runs over


class Score(NamedTuple):
    """One result: a value, and everything that is said of how it was measured."""

    name: str
    value: float
    spread: float | None
    time: str
    conditions: Facts
    differs: list[str]


def scores(line: Facts) -> list[Score]:
    """Take the results of one line of a `metric-*.jsonl`."""
    name = str(line.get("metric") or line.get("name") or line.get("file") or "score")
    details = line["score"] if isinstance(line.get("score"), dict) else {}
    results = line.get("results")
    if not isinstance(results, dict):
        value = next((line[k] for k in ("value", "score", name) if _number(line.get(k))), None)
        results = {name: value}
    told = {"metric", "name", "file", "results", "value", "time", "differs"}
    conditions = flat({key: value for key, value in line.items() if key not in told})
    differs = line.get("differs") or details.get("differs") or []
    return [
        Score(
            str(key),
            float(value),
            _spread(line, details),
            _moment(str(line.get("time") or "")),
            {key: value for key, value in conditions.items() if value not in (None, [], {})},
            [str(each) for each in (differs if isinstance(differs, list) else [differs])],
        )
        for key, value in results.items()
        if _number(value)
    ]


def _moment(text: str) -> str:
    """Shorten a time of ISO 8601; leave anything else."""
    try:
        return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return text


def _number(value: Any) -> bool:
    """Whether a JSON value is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _spread(line: Facts, details: Facts) -> float | None:
    """How sure a result is: its standard deviation, by itself or from repeated measurements."""
    for told in (line, details):
        for name in ("std", "spread", "stdev"):
            if _number(told.get(name)):
                return float(told[name])
        for name in ("bootstrap", "repeats"):
            values = told.get(name)
            if isinstance(values, list) and len(values) > 1 and all(map(_number, values)):
                return stdev(values)
    return None


def results(records: Sequence[Record]) -> Markup | None:
    """Make the table of all results, newest last."""
    rows: list[list[Child]] = []
    for record in records:
        for line in record.evaluations:
            for score in scores(line):
                spread = f" ± {figure(score.spread)}" if score.spread is not None else ""
                run = [record.name] if len(records) > 1 else []
                cells = [f"{figure(score.value)}{spread}", score.time, _conditions(score)]
                rows.append([score.name, *run, *cells])
    if not rows:
        return None
    run = ["run"] if len(records) > 1 else []
    head = ["metric", *run, "value", "measured", "how"]
    return table(head, rows, caption="Evaluation results", class_="results")


def _conditions(score: Score) -> Markup:
    """Fold away how a value was measured; what makes it incomparable stays in sight."""
    notes = [tag("p", f"Not comparable with published figures: {why}") for why in score.differs]
    rows = [[key, shown(value)] for key, value in score.conditions.items()]
    if not rows:
        return tag("div", notes)
    inner = table(["key", "value"], rows, caption=f"{score.name}: protocol", class_="facts")
    return tag("div", notes, tag("details", tag("summary", "protocol"), inner))


def shown(value: Any) -> str:
    """Write a JSON value the way YAML would."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return f"[{', '.join(map(shown, value))}]"
    return str(value)


def drift(records: Sequence[Record]) -> list[Markup]:
    """Draw every list of numbers in `drift.json`, and list its single values."""
    curves: dict[tuple[str, str], list[Curve]] = {}
    rows: list[list[Child]] = []
    for number, record in enumerate(records):
        alone = len(records) == 1
        for name, along, series in drift_series(record.drift):
            label = name.rpartition(".")[2] if alone else record.name
            curves.setdefault((name, along), []).append(
                Curve(label, series, 0 if alone else number)
            )
        single = flat(record.drift) if isinstance(record.drift, dict) else {}
        rows += [
            [key, *([] if alone else [record.name]), shown(value)]
            for key, value in single.items()
            if not isinstance(value, list) and value is not None
        ]
    cards = [
        tag(
            "figure",
            tag("figcaption", tag("b", TITLES.get(name, name))),
            draw(found, Look(TITLES.get(name, name), along=along), f"drift-{k}"),
            [tag("p", swatch(curve), class_="legend") for curve in found],
        )
        for k, ((name, along), found) in enumerate(curves.items())
    ]
    parts = [tag("div", cards, class_="cards")] if cards else []
    if rows:
        head = ["key", *(["run"] if len(records) > 1 else []), "value"]
        parts.append(table(head, rows, caption="Drift", class_="facts"))
    return parts


def drift_series(value: Any, name: str = "drift") -> Iterator[tuple[str, str, Series]]:
    """Yield each list of numbers below a JSON value: its name, what it runs over, its points."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from drift_series(below, str(key) if name == "drift" else f"{name}.{key}")
    elif isinstance(value, list) and len(value) > 1:
        if all(isinstance(row, Mapping) for row in value):
            yield from _columns(value, name)
        elif all(map(_number, value)):
            yield name, "number", [Point(i, float(each)) for i, each in enumerate(value, start=1)]


def _columns(rows: list[Any], name: str) -> Iterator[tuple[str, str, Series]]:
    """Yield the columns of a list of rows, over the one that says where."""
    over = next((key for key in SCALES if all(_number(row.get(key)) for row in rows)), None)
    steps = [int(row[over]) if over else i for i, row in enumerate(rows, start=1)]
    for key in dict.fromkeys(key for row in rows for key in row):
        pairs = zip(steps, rows, strict=True)
        series = [Point(step, float(row[key])) for step, row in pairs if _number(row.get(key))]
        others = {type(row[key]) for row in rows if row.get(key) is not None}
        if key != over and len(series) > 1 and others <= {int, float}:  # the first may have none
            yield f"{name}.{key}", over or "number", series
