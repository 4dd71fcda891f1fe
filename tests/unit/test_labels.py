"""Classes of videos: by folder, by the lists of UCF-101, by a table."""

from pathlib import Path

import pytest

from pvdm_cli.data.catalog import Source, find_videos
from pvdm_cli.data.labels import folder_class, label_videos
from pvdm_cli.errors import DataError

UCF = [
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi",
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi",
    "HandstandPushups/v_HandStandPushups_g01_c01.avi",
    "YoYo/v_YoYo_g01_c01.avi",
]


def sources(*names: str) -> list[Source]:
    return [Source(Path("/videos") / name, name) for name in names]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("walk/1.mp4", "walk"),
        ("train/walk/1.mp4", "walk"),
        ("walk/frames", "walk"),  # a folder of frames
        ("1.mp4", None),
        ("v_YoYo_g01_c01.avi", "YoYo"),
        ("v_HandStandPushups_g01_c01.avi", "HandstandPushups"),  # spelt so everywhere else
        ("HandstandPushups/v_HandStandPushups_g01_c01.avi", "HandstandPushups"),
    ],
)
def test_the_class_is_the_folder_or_what_a_flat_ucf101_file_says(
    name: str, found: str | None
) -> None:
    assert folder_class(name) == found


def test_by_folder_all_videos_are_taken_and_classes_are_sorted() -> None:
    found = label_videos(sources("walk/1.mp4", "run/1.mp4", "alone.mp4"), "folders")
    assert [source.name for source in found.sources] == ["walk/1.mp4", "run/1.mp4", "alone.mp4"]
    assert found.names == ("run", "walk")
    assert found.of == {"walk/1.mp4": "walk", "run/1.mp4": "run"}


def test_a_list_takes_the_videos_it_names_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "trainlist01.txt", f"{UCF[3]} 1", f"{UCF[1]} 2", "YoYo/gone.avi 1", "")
    found = label_videos(sources(*UCF), path)
    assert [source.name for source in found.sources] == [UCF[1], UCF[3]]
    assert found.names == ("YoYo", "ApplyEyeMakeup")
    assert found.of == {UCF[1]: "ApplyEyeMakeup", UCF[3]: "YoYo"}
    assert found.missing == ["YoYo/gone.avi"]
    with pytest.raises(DataError, match=r"1 listed videos are not there: YoYo/gone\.avi; leave"):
        label_videos(sources(*UCF), path, strict=True)


@pytest.mark.parametrize("place", ["", "UCF-101/", "flat"])
def test_a_list_without_numbers_fits_wherever_its_videos_lie(tmp_path: Path, place: str) -> None:
    path = write(tmp_path / "testlist01.txt", *UCF[1:])
    names = [name.partition("/")[2] if place == "flat" else place + name for name in UCF]
    found = label_videos(sources(*names), path)
    assert [source.name for source in found.sources] == names[1:]
    assert found.names == ("ApplyEyeMakeup", "HandstandPushups", "YoYo")
    assert found.of[names[2]] == "HandstandPushups"
    assert found.missing == []


def test_a_list_of_classes_says_which_to_take_and_their_order(tmp_path: Path) -> None:
    path = write(tmp_path / "classInd.txt", "2 YoYo", "1 HandstandPushups", "3 ZumbaDance")
    for names in (UCF, [name.partition("/")[2] for name in UCF]):
        found = label_videos(sources(*names), path)
        assert [source.name for source in found.sources] == names[2:]
        assert found.names == ("HandstandPushups", "YoYo", "ZumbaDance")


def test_a_flat_list_with_numbers_has_them_for_names(tmp_path: Path) -> None:
    path = write(tmp_path / "list.txt", "b.mp4 10", "my cat.mp4 9")
    found = label_videos(sources("b.mp4", "my cat.mp4"), path)
    assert found.of == {"b.mp4": "10", "my cat.mp4": "9"}
    assert found.names == ("9", "10")


def test_a_table_may_leave_videos_without_a_class(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv", "label,path,note", 'wave,a.mp4,"x, y"', ",b/c.mp4,", "bow,d.mp4"
    )
    found = label_videos(sources("a.mp4", "b/c.mp4", "d.mp4", "e.mp4"), path)
    assert [source.name for source in found.sources] == ["a.mp4", "b/c.mp4", "d.mp4"]
    assert found.names == ("bow", "wave")
    assert found.of == {"a.mp4": "wave", "d.mp4": "bow"}


@pytest.mark.parametrize(
    ("file", "lines", "said"),
    [
        ("l.txt", ["run/1.mp4 1", "run/2.mp4 2"], "class run has the numbers 1 and 2; if folders"),
        ("l.txt", ["run/1.mp4 1", "walk/1.mp4 1"], "two classes have the same number"),
        ("l.txt", ["1.mp4"], r"1\.mp4 has neither a folder nor a number"),
        ("l.txt", ["swim/9.mp4"], "gives no class to any of 3 videos: does it name those of"),
        ("l.txt", [], "gives no class to any of 3 videos"),
        ("l.txt", ["2.mp4 1"], r"2\.mp4 may be run/2\.mp4 or walk/2\.mp4"),
        (
            "t.csv",
            ["path,class", "run/1.mp4,run"],
            "has the columns path, class; a table needs path and label",
        ),
        ("t.csv", [], "has the columns none"),
        ("t.csv", ["path,label", "1.mp4,a", "run/1.mp4,b"], "is there twice, with different"),
    ],
)
def test_what_cannot_be_meant_is_refused_naming_file_and_line(
    tmp_path: Path, file: str, lines: list[str], said: str
) -> None:
    path = write(tmp_path / file, *lines)
    with pytest.raises(DataError, match=said) as error:
        label_videos(sources("run/1.mp4", "run/2.mp4", "walk/2.mp4"), path)
    assert file in str(error.value)


def test_a_flat_folder_has_no_classes_by_folder() -> None:
    with pytest.raises(DataError, match="none lies in a folder of its class; give a list"):
        label_videos(sources("1.mp4", "2.mp4"), "folders")
    with pytest.raises(DataError, match="--labels folder: neither 'folders' nor a file"):
        label_videos(sources("a/1.mp4"), "folder")


def test_bytes_are_no_list(tmp_path: Path) -> None:
    for name in ("l.txt", "t.csv"):
        (tmp_path / name).write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="not readable as text"):
            label_videos(sources("a/1.mp4"), tmp_path / name)


def test_real_clips_of_ucf101_lying_flat_have_their_class(shared: Path) -> None:
    found = label_videos(find_videos(shared / "data" / "ucf101"), "folders")
    assert set(found.of.values()) == {"SoccerJuggling"}
