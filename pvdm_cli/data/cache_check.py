"""Looking for damage in a cache: which file, what is wrong with it, and what repairs it."""

from pathlib import Path
from typing import NamedTuple

from pvdm_cli.data.cache import Cache, require_complete
from pvdm_cli.data.cache_format import MANIFEST, VIDEOS, read_manifest, require_lists
from pvdm_cli.data.cache_shard import read_layout, require_hash
from pvdm_cli.errors import DataError
from pvdm_cli.progress import SILENT, Reporter


class Problem(NamedTuple):
    """One damaged file."""

    file: str  # its name inside the cache
    what: str  # a sentence: where, what, and the remedy


def find_problems(path: Path, *, fast: bool = False, reporter: Reporter = SILENT) -> list[Problem]:
    """Check a cache: its manifest, its lists, every shard, and that no clip is missing.

    Args:
        path: The cache folder.
        fast: Only what opening a cache checks (sizes, headers, indices); otherwise every byte.
        reporter: Told about progress.

    Returns:
        All problems found, none for a sound cache.

    Raises:
        DataError: If there is no cache.
    """
    if not (path / MANIFEST).exists():
        read_manifest(path)  # says so
    try:
        manifest = require_complete(path, read_manifest(path))
    except DataError as error:
        return [Problem(MANIFEST, str(error))]
    problems = []
    try:
        require_lists(path, manifest)
    except DataError as error:
        problems.append(Problem(MANIFEST, str(error)))
    reporter.start("checking", total=manifest.bytes, unit="B")
    for shard in manifest.shards:
        file = path / shard.name
        try:
            read_layout(file, shard, manifest.shape)
            if not fast:
                require_hash(file, shard)
        except DataError as error:
            problems.append(Problem(shard.name, str(error)))
        reporter.advance(shard.bytes)
    reporter.done()
    if not problems:
        try:
            Cache.open(path)
        except DataError as error:  # a hole
            problems.append(Problem(VIDEOS, str(error)))
    return problems
