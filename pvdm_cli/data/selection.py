"""Which videos of a data set are taken: by globs, by a split; with the classes they have."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from pvdm_cli.config import Selection
from pvdm_cli.data.catalog import Source, find_videos, split
from pvdm_cli.data.labels import Labelled, label_videos, listed, say_missing
from pvdm_cli.data.table import Row, is_table, read_table
from pvdm_cli.errors import DataError

ALL = Selection()
LISTS = "ucfTrainTestlist"  # the folder of UCF-101's lists


def select(
    root: Path | str,
    wanted: Selection = ALL,
    *,
    holdout: float | None = None,
    labels: str | Path | None = None,
    strict: bool = False,
    flip: bool = False,
) -> Labelled:
    """Find the videos of a data set that are wanted, and their classes.

    Args:
        root: What `find_videos` takes.
        wanted: Globs and the side of the split.
        holdout: Share of videos that is the test side, by a hash of their names, instead of the
            data set's own split.
        labels: What `label_videos` takes; None: a table's labels, if root is one with labels.
        strict: Refuse a table or list that names videos which are not there.
        flip: Add a mirrored copy of each video.

    Returns:
        The videos; without classes where there are none, and what is named but not there.

    Raises:
        DataError: If no video is left, or something does not go together.
    """
    root = Path(root)
    rows = read_table(root) if is_table(root) else []
    sources = find_videos(root)
    there = [source for source in sources if source.path.exists()]
    missing = [source.name for source in sources if not source.path.exists()]
    if not there:
        raise DataError(f"{root}: none of its {len(sources)} videos is there: {missing[0]}, ...")
    chosen = _matching(there, wanted, root)
    chosen, lost = _on_side(chosen, rows, wanted, holdout, root)
    if not chosen:
        raise DataError(f"{root}: --split {wanted.split} leaves none of {len(there)} videos")
    missing += lost
    found = Labelled(chosen, (), {}, missing)
    if labels is not None:
        found = label_videos(chosen, labels, strict=strict)
        found = found._replace(missing=missing + found.missing)
    elif any(row.label for row in rows):
        of = {row.source.name: row.label for row in rows if row.label}
        of = {source.name: of[source.name] for source in chosen if source.name in of}
        found = found._replace(names=tuple(sorted(set(of.values()))), of=of)
    if strict and found.missing:
        raise DataError(f"{say_missing(found.missing)}; leave out --strict to go on without them")
    return _with_mirrored(found) if flip else found


def _matching(sources: Sequence[Source], wanted: Selection, root: Path) -> list[Source]:
    """Take the videos whose names match."""

    def matches(source: Source, globs: Sequence[str]) -> bool:
        names = {source.name, source.name.partition("#")[0]}
        return any(fnmatchcase(name, glob) for name in names for glob in globs)

    chosen = [
        source
        for source in sources
        if (not wanted.include or matches(source, wanted.include))
        and not matches(source, wanted.exclude)
    ]
    if not chosen:
        given = [f"--include '{glob}'" for glob in wanted.include]
        given += [f"--exclude '{glob}'" for glob in wanted.exclude]
        raise DataError(
            f"{root}: {' '.join(given)} leaves none of {len(sources)} videos (names are such as "
            f"{sources[0].name})"
        )
    return chosen


def _on_side(
    sources: list[Source], rows: list[Row], wanted: Selection, holdout: float | None, root: Path
) -> tuple[list[Source], list[str]]:
    """Take the videos on the wanted side of the split, and name listed ones that are not there."""
    side = wanted.split
    own = {row.source.name: row.split for row in rows if row.split}
    lists = None if own or holdout is not None else _lists(root, wanted)
    if wanted.fold != 1 and (side == "all" or lists is None):
        raise DataError(
            f"{root}: fold {wanted.fold} needs --split train or test, and UCF-101's lists "
            f"trainlist0{wanted.fold}.txt and testlist0{wanted.fold}.txt in {LISTS}/"
        )
    if side == "all":
        if holdout is not None:
            raise DataError("--holdout is a share for --split train or --split test: say which")
        return sources, []
    if holdout is not None:
        train, held_out = split(sources, holdout)
        return (train if side == "train" else held_out), []
    if own:
        return [source for source in sources if own.get(source.name) == side], []
    if lists is not None:
        found = listed(sources, lists)
        return found.sources, found.missing
    if {"train", "test"} <= {source.name.partition("/")[0] for source in sources}:
        return [source for source in sources if source.name.startswith(f"{side}/")], []
    raise DataError(
        f"{root}: --split {side}: it has no split of its own (UCF-101's {side}list0{wanted.fold}"
        f".txt in {LISTS}/, a column split, or folders train and test); --holdout 0.1 makes one by "
        "a hash of the names"
    )


def _lists(root: Path, wanted: Selection) -> Path | None:
    """Find the list of UCF-101 for a side and a fold, in the data set or beside it."""
    root = root.resolve()
    name = f"{'test' if wanted.split == 'test' else 'train'}list0{wanted.fold}.txt"
    places = (root / LISTS, root.parent / LISTS, root, root.parent)
    return next((place / name for place in places if (place / name).is_file()), None)


def _with_mirrored(found: Labelled) -> Labelled:
    """Add a mirrored copy of each video, of the same class."""
    copies = [source.mirror() for source in found.sources]
    of = {
        copy.name: found.of[source.name]
        for source, copy in zip(found.sources, copies, strict=True)
        if source.name in found.of
    }
    return found._replace(sources=[*found.sources, *copies], of={**found.of, **of})
