"""Classes of videos: from the names of folders, or from a list of videos, of classes, or a table.

The lists are those of UCF-101 (ucfTrainTestlist). A class is known by its name; the number that a
cache gives it is an id.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pvdm_cli.data.catalog import VIDEO_SUFFIXES, Source
from pvdm_cli.data.table import is_table, read_text, read_values, text_of
from pvdm_cli.errors import DataError

FOLDERS = "folders"  # the word for --labels that takes the names of folders
UCF101_FILE = re.compile(r"v_(\w+)_g\d+_c\d+")  # class, group, clip
UCF101_SPELLING = {"HandStandPushups": "HandstandPushups"}  # so in its files, so everywhere else


class Labelled(NamedTuple):
    """Videos and their classes."""

    sources: list[Source]  # those to take, in the order of the catalog
    names: tuple[str, ...]  # classes in the order of their ids in a new cache
    of: Mapping[str, str]  # class by the video's name; a video that is not in it has none
    missing: list[str]  # videos that the list names and that are not there


class Entry(NamedTuple):
    """One line of a list of videos."""

    path: str
    name: str | None  # of the class; None: the video has none
    number: int | None = None  # of the class, where the list has numbers


def label_videos(
    sources: Sequence[Source], labels: str | Path, *, strict: bool = False
) -> Labelled:
    """Find the class of each video.

    Args:
        sources: Videos of the catalog.
        labels: "folders", or a file: a list of videos ("Class/video.avi", with the number of the
            class behind it or without) or a table (.csv or .jsonl with path and label), which also
            say which videos to take; or a list of classes ("1 Class"), which says which classes
            to take, in the order of their ids. Both lists are those of UCF-101.
        strict: Refuse a list that names videos which are not there.

    Raises:
        DataError: If no video gets a class, the file cannot be read, or (strict) a video is missing.
    """
    if str(labels) == FOLDERS:
        found = folder_labels(sources)
    else:
        path = Path(labels)
        if not path.is_file():
            raise DataError(
                f"--labels {labels}: neither {FOLDERS!r} nor a file; give a list of videos or of "
                "classes (.txt as for UCF-101), or a table (.csv with columns path,label)"
            )
        classes = None if is_table(path) else _read_classes(path)
        found = listed(sources, path) if classes is None else _of_classes(sources, classes, path)
    if not found.of:
        reason = (
            "none lies in a folder of its class; give a list or a table"
            if str(labels) == FOLDERS
            else "does it name those of another folder?"
        )
        raise DataError(
            f"--labels {labels} gives no class to any of {len(sources)} videos: {reason}"
        )
    if strict and found.missing:
        raise DataError(f"{say_missing(found.missing)}; leave out --strict to go on without them")
    return found


def say_missing(missing: Sequence[str]) -> str:
    """Name listed videos that are not there, at most three of them."""
    more = ", ..." if len(missing) > 3 else ""
    return f"{len(missing)} listed videos are not there: {', '.join(missing[:3])}{more}"


def folder_class(name: str) -> str | None:
    """Class of a video by its name below the root: its folder, or what a file of UCF-101 says."""
    path = PurePosixPath(name)
    if path.parent.name:
        return path.parent.name
    told = UCF101_FILE.fullmatch(path.stem)
    return UCF101_SPELLING.get(told[1], told[1]) if told else None


def folder_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Classes of all these videos, sorted."""
    return tuple(sorted({found for name in names if (found := folder_class(name)) is not None}))


def folder_labels(sources: Sequence[Source]) -> Labelled:
    """Let each video be of the class of its folder."""
    of = {s.name: found for s in sources if (found := folder_class(s.name)) is not None}
    return Labelled(list(sources), folder_classes(source.name for source in sources), of, [])


def _of_classes(sources: Sequence[Source], classes: tuple[str, ...], path: Path) -> Labelled:
    """Take the videos whose folders are among the classes of a list."""
    of = {s.name: found for s in sources if (found := folder_class(s.name)) in classes}
    return Labelled([s for s in sources if s.name in of], classes, of, [])


def listed(sources: Sequence[Source], path: Path) -> Labelled:
    """Take the videos that a list or a table names.

    Raises:
        DataError: If it cannot be read, or names a video or a class in two ways.
    """
    entries = list(_read_table(path) if is_table(path) else _read_list(path))
    by_file: defaultdict[str, list[Source]] = defaultdict(list)
    for each in sources:
        by_file[PurePosixPath(each.name).name].append(each)
    taken: set[str] = set()
    of: dict[str, str] = {}
    missing: list[str] = []
    for entry in entries:
        source = _find(entry.path, by_file[PurePosixPath(entry.path).name], path)
        if source is None:
            missing.append(entry.path)
            continue
        if source.name in taken and of.get(source.name) != entry.name:
            raise DataError(f"{path}: {entry.path} is there twice, with different classes")
        taken.add(source.name)
        if entry.name is not None:
            of[source.name] = entry.name
    return Labelled([s for s in sources if s.name in taken], _in_order(entries, path), of, missing)


def _find(listed: str, candidates: Iterable[Source], path: Path) -> Source | None:
    """Find the video that a list names, which may begin at a folder above or below the root."""
    wanted = f"/{listed}"
    found = [
        source
        for source in candidates
        if f"/{source.name}".endswith(wanted) or wanted.endswith(f"/{source.name}")
    ]
    if len(found) > 1:
        raise DataError(
            f"{path}: {listed} may be {found[0].name} or {found[1].name}; write the whole path "
            "below the folder of videos"
        )
    return found[0] if found else None


def _in_order(entries: Sequence[Entry], path: Path) -> tuple[str, ...]:
    """Sort classes by their numbers, or by name where there are none.

    Raises:
        DataError: If a class has two numbers, or a number two classes.
    """
    numbers: dict[str, int | None] = {}
    for entry in entries:
        if entry.name is not None and numbers.setdefault(entry.name, entry.number) != entry.number:
            raise DataError(
                f"{path}: class {entry.name} has the numbers {numbers[entry.name]} and "
                f"{entry.number}; if folders are no classes, give a table (.csv with columns "
                "path,label)"
            )
    given = [number for number in numbers.values() if number is not None]
    if len(set(given)) < len(given):
        raise DataError(f"{path}: two classes have the same number; number each class once")
    return tuple(sorted(numbers, key=lambda name: (numbers[name] or 0, name)))


def _read_classes(path: Path) -> tuple[str, ...] | None:
    """Read a list of classes ("1 ApplyEyeMakeup"), by number; None if it is one of videos."""
    found: dict[int, str] = {}
    for line in _lines(path):
        told = re.fullmatch(r"(\d+)\s+(\S.*)", line)
        if told is None or PurePosixPath(told[2]).suffix.lower() in VIDEO_SUFFIXES:
            return None
        found[int(told[1])] = told[2]
    return tuple(found[number] for number in sorted(found))


def _read_list(path: Path) -> Iterator[Entry]:
    """Read a list of videos: "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi 1", number or not."""
    for line in _lines(path):
        told = re.fullmatch(r"(.+?)(?:\s+(\d+))?", line)
        assert told is not None
        video, number = told[1].replace("\\", "/"), told[2]
        name = folder_class(video) or number
        if name is None:
            raise DataError(
                f"{path}: {video} has neither a folder nor a number to tell its class; give a "
                "table (.csv with columns path,label)"
            )
        yield Entry(video, name, None if number is None else int(number))


def _read_table(path: Path) -> Iterator[Entry]:
    """Read a table with the columns path and label; an empty label means no class."""
    for line, values in read_values(path, ("path", "label")):
        where = f"{path}, line {line}"
        if video := text_of(values, "path", where):
            yield Entry(video.replace("\\", "/"), text_of(values, "label", where))


def _lines(path: Path) -> list[str]:
    """Read the lines of a file that are not empty."""
    return [line.strip() for line in read_text(path).splitlines() if line.strip()]
