"""Tables and lists of videos: what they say, and mistakes named with file and line."""

import json
from pathlib import Path

import numpy as np
import pytest

from pvdm_cli.data.catalog import find_videos, split
from pvdm_cli.data.source import Source, footage
from pvdm_cli.data.table import read_table
from pvdm_cli.errors import DataError
from pvdm_cli.video.arrays import Part
from pvdm_cli.video.timing import WHOLE, Cut


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_names_files_and_stretches_of_them(tmp_path: Path) -> None:
    table = write(
        tmp_path / "clips.csv",
        "path,start,end,start_frame,end_frame,label,split,remark",
        "a.mp4,12.5,20,,,walk,train,fine",
        "a.mp4,,,300,480,run,test,",
        "sub/b.mp4,,,,,,,",
        "a.mp4,3,,,,,,",
    )
    rows = read_table(table)
    assert [row.source.name for row in rows] == [
        "a.mp4#12.5-20s", "a.mp4#300-480", "sub/b.mp4", "a.mp4#3-s",
    ]  # fmt: skip
    assert [row.source.cut for row in rows] == [
        Cut(12.5, 20), Cut(300, 480, in_frames=True), WHOLE, Cut(3),
    ]  # fmt: skip
    assert rows[2].source.path == tmp_path / "sub" / "b.mp4"
    assert [(row.label, row.split) for row in rows][:3] == [
        ("walk", "train"), ("run", "test"), (None, None),
    ]  # fmt: skip
    assert find_videos(table) == [row.source for row in rows]


def test_json_lines_say_the_same(tmp_path: Path) -> None:
    lines = [{"path": "a.mp4", "start": 1, "end": 2.5, "label": 7}, {"path": "b.mp4"}]
    table = write(tmp_path / "clips.jsonl", json.dumps(lines[0]), "", json.dumps(lines[1]))
    first, second = read_table(table)
    assert (first.source.name, first.label) == ("a.mp4#1-2.5s", "7")
    assert second == (Source(tmp_path / "b.mp4", "b.mp4"), None, None)


def test_arrays_in_tables_and_lists_are_all_their_videos_or_a_named_one(tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((2, 4, 8, 8), np.uint8))
    table = write(tmp_path / "t.csv", "path,end_frame", "s.npy,3", "s.npy#1,", "m.npz#key#2,")
    names = ["s.npy#00000#0-3", "s.npy#00001#0-3", "s.npy#00001", "m.npz#key#00002"]
    assert [row.source.name for row in read_table(table)] == names
    assert read_table(table)[3].source.part == Part("key", 2)
    found = find_videos(write(tmp_path / "l.txt", "# mine", "s.npy", "../x/a.mp4"))  # one is gone
    assert [source.name for source in found] == ["s.npy#00000", "s.npy#00001", "x/a.mp4"]


def test_names_stay_below_any_folder(tmp_path: Path) -> None:
    table = write(tmp_path / "t.csv", "path", "/far/a.mp4", "../b.mp4", "./c#1.mp4", "d\\e.mp4")
    rows = read_table(table)
    assert [row.source.name for row in rows] == ["far/a.mp4", "b.mp4", "c#1.mp4", "d/e.mp4"]
    assert rows[0].source.path == Path("/far/a.mp4")


@pytest.mark.parametrize(
    ("file", "lines", "said"),
    [
        ("t.csv", ["file,label", "a.mp4,x"], r"has the columns file, label; a table needs path"),
        ("t.csv", ["Path", "a.mp4"], "has the columns Path; .*did you mean 'Path'"),
        ("t.csv", ["path"], "names no videos; each line below the header"),
        ("t.csv", ["path,start", "a.mp4,soon"], "line 2: start is 'soon', not a number from 0 on"),
        ("t.csv", ["path,start", "a.mp4,-1"], "line 2: start is '-1', not a number"),
        ("t.csv", ["path,start", "a.mp4,nan"], "line 2: start is 'nan', not a number"),
        ("t.csv", ["path,start,end", "a.mp4,3,3"], "line 2: ends at 3, which is not after 3"),
        ("t.csv", ["path,end", "a.mp4,0"], "line 2: ends at 0, which is not after 0"),
        ("t.csv", ["path,start,end_frame", "a.mp4,3,90"], "line 2: gives seconds .* and frames"),
        ("t.csv", ["path,start_frame", "a.mp4,1.5"], "line 2: start_frame and end_frame are whole"),
        ("t.csv", ["path,label", ",x"], "line 2: has no path"),
        ("t.csv", ["path", "b.mp4", "a.mp4,1,2"], "line 3: has more cells than the header"),
        ("t.csv", ["path", "a.mp4", "b.mp4", "a.mp4"], "line 4: a.mp4 is in line 2 already"),
        ("t.csv", ["path", "../a.mp4", "a.mp4"], "line 3: a.mp4 is in line 2 already"),
        ("t.csv", ["path,split", "a.mp4,val"], "line 2: split is val, not train or test"),
        ("t.jsonl", ['{"path": "a.mp4"}', "{"], "line 2: not readable as JSON"),
        ("t.jsonl", ["[1]"], "line 1: is not a JSON object"),
        ("t.jsonl", ['{"label": "x"}'], "line 1: has no path"),
        ("t.jsonl", ['{"path": ["a"]}'], 'line 1: path is \\["a"\\], not text'),
        ("t.jsonl", ['{"path": "a", "end": true}'], "line 1: end is True, not a number"),
        ("t.txt", ["# nothing"], "names no videos; it is to hold one path a line"),
        ("t.txt", ["hello", "there"], "none of its 2 lines is a path that exists: hello"),
    ],
)
def test_mistakes_are_named_with_file_and_line(
    tmp_path: Path, file: str, lines: list[str], said: str
) -> None:
    path = write(tmp_path / file, *lines)
    with pytest.raises(DataError, match=said) as caught:
        find_videos(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_a_table_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"path\n\xff\xfe\x00")
    with pytest.raises(DataError, match="not readable as text"):
        find_videos(tmp_path / "t.csv")


def test_stretches_and_mirrored_copies_stay_on_the_side_of_their_file() -> None:
    names = [f"{i}.mp4{rest}" for i in range(30) for rest in ("#0-5s", "#5-9.5s", "#10-20")]
    sources = [Source(Path(name), name) for name in names]
    sources += [source.mirror() for source in sources]
    train, held_out = split(sources, 0.3)
    assert len(train) + len(held_out) == len(sources)
    assert len(held_out) % 6 == 0
    assert not {footage(s.name) for s in train} & {footage(s.name) for s in held_out}
    whole, _ = split([Source(Path(f"{i}.mp4"), f"{i}.mp4") for i in range(30)], 0.3)
    assert {footage(s.name) for s in train} == {s.name for s in whole}


def test_videos_of_one_array_are_split_among_each_other() -> None:
    sources = [Source(Path("s.npy"), f"s.npy{Part(number=i)}") for i in range(50)]
    train, held_out = split(sources, 0.2)
    assert train
    assert held_out
