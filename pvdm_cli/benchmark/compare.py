"""Two results beside each other: ratios, what lies beyond the spread, what has become worse."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pvdm_cli.benchmark.figure import FORMAT, Row
from pvdm_cli.errors import DataError

TOLD = ("processor", "gpus", "threads", "torch", "pvdm")  # what makes figures differ
MANY = 6  # rows named in a sentence


@dataclass(frozen=True)
class Result:
    """What a result file holds."""

    path: str
    rows: list[Row]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Ratio:
    """One number in both results.

    Attributes:
        row: In the second result.
        before: The number in the first.
        ratio: Second by first.
        worse: How many times worse the second is: more time, more memory, a smaller batch.
        beyond: Whether the difference is larger than half of both spreads together.
    """

    row: Row
    before: float
    ratio: float
    worse: float
    beyond: bool


@dataclass(frozen=True)
class Compared:
    """Two results compared.

    Attributes:
        ratios: Of the rows in both.
        gone: Names of rows that only the first has.
        new: Names of rows that only the second has.
        differing: What differs in the machines, as "torch: 2.9 and 2.10".
    """

    ratios: list[Ratio]
    gone: list[str]
    new: list[str]
    differing: list[str]

    def failed(self, above: float) -> list[Ratio]:
        """Rows that are more than so many times worse."""
        return [each for each in self.ratios if each.worse > above]

    def complaint(self, above: float) -> str | None:
        """Say in one sentence what has become worse; None if nothing has."""
        failed = sorted(self.failed(above), key=lambda each: -each.worse)
        if not failed:
            return None
        named = [f"{each.row.name} {each.worse:.2f} times" for each in failed[:MANY]]
        more = f" and {len(failed) - MANY} more" if len(failed) > MANY else ""
        return f"worse than the baseline by more than {above:g}: {'; '.join(named)}{more}"


def read_result(path: Path) -> Result:
    """Read what `--json` or `--out` wrote.

    Raises:
        DataError: If it is not there or is no result of a benchmark.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}; give a file written by --out") from None
    except ValueError:
        values = None
    if not isinstance(values, dict) or "rows" not in values:
        raise DataError(f"{path} is no result of `pvdm bench`: give a file written by --out")
    if values.get("format") != FORMAT:
        raise DataError(
            f"{path} has format {values.get('format')}, this is {FORMAT}: measure again"
        )
    try:
        rows = [Row(**row) for row in values["rows"]]
        return Result(str(path), rows, dict(values["environment"]))
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): measure again") from None


def compare_results(first: Result, second: Result) -> Compared:
    """Compare row by row."""
    before, after = ({row.key: row for row in each.rows} for each in (first, second))
    return Compared(
        ratios=[_ratio(before[key], row) for key, row in after.items() if key in before],
        gone=[row.name for key, row in before.items() if key not in after],
        new=[row.name for key, row in after.items() if key not in before],
        differing=[
            f"{name}: {first.environment.get(name)} and {second.environment.get(name)}"
            for name in TOLD
            if first.environment.get(name) != second.environment.get(name)
        ],
    )


def _ratio(before: Row, after: Row) -> Ratio:
    """Divide; where nothing was, anything is infinitely much."""
    ratio = _divided(after.median, before.median)
    smaller = after.quantity == "largest batch"
    worse = _divided(before.median, after.median) if smaller else ratio
    apart = abs(after.median - before.median)
    return Ratio(after, before.median, ratio, worse, apart > (before.spread + after.spread) / 2)


def _divided(a: float, b: float) -> float:
    """Divide where that means something."""
    if b:
        return a / b
    return float("inf") if a else 1.0


def to_csv(rows: Sequence[Row]) -> str:
    """Write rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*Row.__dataclass_fields__], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()
