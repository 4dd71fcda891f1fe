import hashlib
import json
from pathlib import Path

import pytest

from pvdm_cli.errors import PvdmError
from pvdm_cli.files import atomic_file, atomic_folder, make_folder, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail_after_writing(path: Path) -> None:
    path.write_text("half of the ne")
    raise RuntimeError


def test_a_file_that_fails_midway_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), atomic_file(path) as temporary:
        fail_after_writing(temporary)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_folder_that_fails_midway_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:
        fail_after_writing(folder / "weights")
    assert (path / "weights").read_text() == "old"
    assert names(tmp_path) == ["model"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("old", "new"):
        with atomic_folder(path) as folder:
            (folder / content).write_text(content)
    assert names(path) == ["new"]
    assert names(tmp_path) == ["model"]


def test_missing_parents_are_made(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b" / "c.json", {"k": [1, 2]})
    assert json.loads((tmp_path / "a" / "b" / "c.json").read_text()) == {"k": [1, 2]}


@pytest.mark.parametrize("below", ["out.txt", "deeper/out.txt"])
def test_a_file_in_the_way_of_a_folder_is_one_sentence(tmp_path: Path, below: str) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("I am a file")
    with pytest.raises(PvdmError, match=r"cannot write .*; choose another --out"):
        write_text(blocked / below, "x")
    with pytest.raises(PvdmError, match="cannot write"):
        make_folder(blocked / below)
    with pytest.raises(PvdmError, match="cannot write"), atomic_folder(blocked / below):
        pass


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"abc" * 100_000)
    assert sha256(path) == hashlib.sha256(b"abc" * 100_000).hexdigest()
