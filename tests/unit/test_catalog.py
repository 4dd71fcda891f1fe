from pathlib import Path

import pytest

from pvdm_cli.data.catalog import Source, find_videos, split
from pvdm_cli.errors import DataError


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root: Path) -> list[str]:
    return [source.name for source in find_videos(root)]


def sources(count: int) -> list[Source]:
    return [Source(Path(f"/videos/{i}.mp4"), f"{i}.mp4") for i in range(count)]


def test_videos_are_found_below_the_root_sorted_by_name(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.mp4", "b/10.AVI", "a.webm", "b/c/d.gif", "readme.txt", "b/notes.md")
    assert names(tmp_path) == ["a.webm", "b/10.AVI", "b/2.mp4", "b/c/d.gif"]
    assert find_videos(tmp_path)[1].path == tmp_path / "b" / "10.AVI"


def test_a_folder_of_images_is_one_video(tmp_path: Path) -> None:
    touch(tmp_path, "walk/1.png", "walk/2.png", "run/1.jpg", "run/2.jpg", "c.mp4")
    assert names(tmp_path) == ["c.mp4", "run", "walk"]
    assert names(tmp_path / "walk") == ["walk"]
    assert find_videos(tmp_path / "walk")[0].path == tmp_path / "walk"


def test_pictures_beside_videos_and_lone_pictures_are_no_videos(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "cover.png", "sheet.png", "docs/logo.png")
    assert names(tmp_path) == ["a.mp4"]


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", ".b.mp4.17.partial", "._a.mp4", ".cache/c.mp4")
    assert names(tmp_path) == ["a.mp4"]


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "far/x.mp4")
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "near" / "loop").symlink_to(tmp_path / "near")
    assert names(tmp_path / "near") == ["link/x.mp4"]


def test_the_root_may_be_one_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    assert find_videos(tmp_path / "a.mp4") == [Source(tmp_path / "a.mp4", "a.mp4")]


def test_missing_and_empty_roots_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such file or folder"):
        find_videos(tmp_path / "nowhere")
    touch(tmp_path, "notes.txt")
    with pytest.raises(DataError, match=rf"{tmp_path}: no videos found \(looked for"):
        find_videos(tmp_path)


def test_a_split_is_about_the_share_and_loses_nothing() -> None:
    train, held_out = split(sources(2000), 0.1)
    assert 150 < len(held_out) < 250
    assert sorted(train + held_out) == sorted(sources(2000))


def test_videos_stay_on_their_side_when_others_are_added() -> None:
    _, few = split(sources(200), 0.2)
    _, many = split(sources(400), 0.2)
    assert set(few) == set(many) & set(sources(200))


def test_a_split_does_not_depend_on_where_the_folder_is() -> None:
    moved = [Source(Path("/elsewhere") / s.name, s.name) for s in sources(50)]
    assert [s.name for s in split(moved, 0.3)[1]] == [s.name for s in split(sources(50), 0.3)[1]]


@pytest.mark.parametrize("holdout", [1e-9, 0.05, 0.999999])
@pytest.mark.parametrize("count", [2, 3, 10])
def test_neither_side_of_a_split_is_empty(count: int, holdout: float) -> None:
    train, held_out = split(sources(count), holdout)
    assert train
    assert held_out
    assert len(train) + len(held_out) == count


def test_nothing_is_held_out_of_one_video_or_without_a_share() -> None:
    assert split(sources(1), 0.5) == (sources(1), [])
    assert split(sources(9), 0) == (sources(9), [])
