import hashlib
import json
from pathlib import Path

import pytest

from pvdm_cli import files
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import (
    atomic_file,
    atomic_folder,
    make_folder,
    only_writer,
    remove_folder,
    sha256,
    tidy,
    write_json,
    write_text,
)


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


class Killed(BaseException):
    """Stands for SIGKILL: nothing runs after it."""


@pytest.mark.parametrize(("renames", "content"), [(0, "old"), (1, "old"), (2, "new")])
def test_a_folder_survives_a_kill_between_any_two_renames_of_its_replacement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, renames: int, content: str
) -> None:
    path = tmp_path / "model"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("old")
    done = 0
    rename, remove = Path.replace, files.shutil.rmtree

    def limited(source: Path, target: Path) -> Path:
        nonlocal done
        if done == renames:
            raise Killed
        done += 1
        return rename(source, target)

    def blocked(target: Path, **options: bool) -> None:
        if done == renames and target.exists():
            raise Killed

    monkeypatch.setattr(Path, "replace", limited)
    monkeypatch.setattr(files.shutil, "rmtree", blocked)
    with pytest.raises(Killed), atomic_folder(path) as folder:
        (folder / "weights").write_text("new")
    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(files.shutil, "rmtree", remove)
    assert len(names(tmp_path)) == 2
    tidy(tmp_path)
    assert names(tmp_path) == ["model"]
    assert (path / "weights").read_text() == content


def test_tidying_removes_leftovers_of_any_process_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.json.12.partial", ".b.mp4.7.partial", "c.json", ".lock", ".d.partial"):
        (tmp_path / name).write_text("x")
    write_text(tmp_path / ".e.99.partial" / "deep" / "file", "x")
    tidy(tmp_path)
    assert names(tmp_path) == [".d.partial", ".lock", "c.json"]
    tidy(tmp_path / "absent")


def test_a_folder_whose_removal_is_cut_short_is_gone_and_cleared_away_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_text(tmp_path / "step" / "file", "x")
    monkeypatch.setattr(files.shutil, "rmtree", lambda *args, **options: None)
    remove_folder(tmp_path / "step")
    monkeypatch.undo()
    assert "step" not in names(tmp_path)
    tidy(tmp_path)
    assert names(tmp_path) == []
    with pytest.raises(PvdmError, match="cannot write"):
        remove_folder(tmp_path / "step")


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    with (
        only_writer(tmp_path, "training in"),
        pytest.raises(PvdmError, match=r"another process is training in .*: wait"),
        only_writer(tmp_path, "training in"),
    ):
        pass
    with only_writer(tmp_path, "training in"):
        pass
    with pytest.raises(PvdmError, match="cannot write"), only_writer(tmp_path / "absent", ""):
        pass
