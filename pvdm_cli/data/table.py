"""Tables of videos (.csv with a header, .jsonl) and plain lists of them (.txt).

Columns: path (relative to the table), and optionally start and end (seconds) or start_frame and
end_frame, label, split (train, test). An end is the first moment or frame that is left out.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from pvdm_cli.data.source import Source, sources_of
from pvdm_cli.errors import DataError, did_you_mean
from pvdm_cli.video.arrays import Part
from pvdm_cli.video.timing import WHOLE, Cut

TABLE_SUFFIXES = frozenset({".csv", ".jsonl"})
COLUMNS = ("path", "start", "end", "start_frame", "end_frame", "label", "split")
SPLITS = ("train", "test")
OF_ARRAY = re.compile(r"(.+\.np[yz])#(.+)", re.IGNORECASE)  # one video of an array

Values = Mapping[str, Any]


class Row(NamedTuple):
    """One line of a table."""

    source: Source
    label: str | None
    split: str | None


def is_table(path: Path) -> bool:
    """Tell tables by their names."""
    return path.suffix.lower() in TABLE_SUFFIXES


def read_table(path: Path) -> list[Row]:
    """Read a table of videos. A file may be there several times, with other stretches of it.

    Raises:
        DataError: Naming the file and the line of the first mistake.
    """
    found: dict[str, int] = {}
    rows = []
    for line, values in read_values(path):
        where = f"{path}, line {line}"
        for row in _rows(path.parent, values, where):
            name = row.source.name
            if name in found:
                raise DataError(f"{where}: {name} is in line {found[name]} already")
            found[name] = line
            rows.append(row)
    if not rows:
        raise DataError(f"{path}: names no videos; each line below the header is to name one")
    return rows


def read_values(path: Path, columns: tuple[str, ...] = ("path",)) -> Iterator[tuple[int, Values]]:
    """Read the lines of a table, each with its number.

    Args:
        path: A .csv or .jsonl file.
        columns: What the header of a .csv file must have.

    Raises:
        DataError: If it cannot be read, or lacks a column.
    """
    return _csv(path, columns) if path.suffix.lower() == ".csv" else _jsonl(path)


def read_list(path: Path) -> list[Source]:
    """Read a list of one path a line, relative to itself; # begins a comment.

    Raises:
        DataError: If it cannot be read, or no line names what is there.
    """
    lines = [line.strip() for line in read_text(path).splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if not names:
        raise DataError(f"{path}: names no videos; it is to hold one path a line")
    found = [Source(path.parent / name, _safe(name)) for name in names]
    if not any(source.path.exists() for source in found):
        raise DataError(f"{path}: none of its {len(names)} lines is a path that exists: {names[0]}")
    return found


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: If it is not one.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable as text ({error})") from error


def text_of(values: Values, column: str, where: str) -> str | None:
    """The text in a column, None where it is empty or absent; a number counts as text.

    Raises:
        DataError: If it is something else.
    """
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if not isinstance(value, str | int):
        raise DataError(f"{where}: {column} is {json.dumps(value)}, not text")
    return str(value).strip()


def _csv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Values]]:
    """Read the lines of a table with a header."""
    reader = csv.DictReader(StringIO(read_text(path), newline=""))
    header = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = header
    lacking = [name for name in columns if name not in header]
    if lacking:
        raise DataError(
            f"{path}: has the columns {', '.join(header) or 'none'}; a table needs "
            f"{' and '.join(columns)}{did_you_mean(lacking[0], header)}"
        )
    try:
        for values in reader:
            if None in values:
                raise DataError(f"{path}, line {reader.line_num}: has more cells than the header")
            yield reader.line_num, values
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable ({error})") from error


def _jsonl(path: Path) -> Iterator[tuple[int, Values]]:
    """Read lines that are JSON objects."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not readable as JSON ({error})") from None
        if not isinstance(values, dict):
            raise DataError(f"{path}, line {number}: is not a JSON object such as {{...}}")
        yield number, values


def _rows(folder: Path, values: Values, where: str) -> list[Row]:
    """Read one line: a video, or those of an array of several."""
    path = text_of(values, "path", where)
    if path is None:
        raise DataError(f"{where}: has no path")
    path = path.replace("\\", "/")
    label, split = text_of(values, "label", where), text_of(values, "split", where)
    if split is not None and split not in SPLITS:
        raise DataError(f"{where}: split is {split}, not train or test")
    cut = _cut(values, where)
    array = OF_ARRAY.fullmatch(path)
    if array is None:
        found = sources_of(folder / path, _safe(path))
    else:
        part = _part(array[2])
        found = [Source(folder / array[1], f"{_safe(array[1])}{part}", part)]
    ending = "" if cut == WHOLE else f"#{cut}"
    return [Row(each._replace(name=each.name + ending, cut=cut), label, split) for each in found]


def _part(name: str) -> Part:
    """Read which video of an array is meant: key, number, or key#number."""
    key, _, number = name.rpartition("#")
    return Part(key or None, int(number)) if number.isdecimal() else Part(name)


def _cut(values: Values, where: str) -> Cut:
    """Read which stretch is meant."""
    seconds = [_number(values, name, where) for name in ("start", "end")]
    frames = [_number(values, name, where) for name in ("start_frame", "end_frame")]
    if frames == [None, None]:
        start, end = seconds
    elif seconds == [None, None]:
        start, end = frames
        if any(value is not None and value % 1 for value in frames):
            raise DataError(f"{where}: start_frame and end_frame are whole numbers")
    else:
        raise DataError(f"{where}: gives seconds (start, end) and frames; one of them is enough")
    if end is not None and end <= (start or 0):
        raise DataError(f"{where}: ends at {end:g}, which is not after {start or 0:g}")
    if not start and end is None:
        return WHOLE
    return Cut(start or 0, end, in_frames=frames != [None, None])


def _number(values: Values, column: str, where: str) -> float | None:
    """The number in a column, None where it is empty or absent."""
    value = values.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise DataError(f"{where}: {column} is {value!r}, not a number from 0 on")
    return number


def _safe(path: str) -> str:
    """Name a file by a path that stays below any folder: no root, no steps up."""
    kept = [part for part in PurePosixPath(path).parts if part not in {"/", ".", ".."}]
    return "/".join(kept)
