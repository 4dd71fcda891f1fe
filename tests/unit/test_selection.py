"""Which videos of a data set are taken: globs, splits, classes, mirrored copies."""

from pathlib import Path

import pytest

from pvdm_cli.config import RunConfig, Selection
from pvdm_cli.data.catalog import find_videos, split
from pvdm_cli.data.selection import select
from pvdm_cli.errors import ConfigError, DataError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(root: Path, **wanted: object) -> list[str]:
    return [source.name for source in select(root, Selection.model_validate(wanted)).sources]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return touch(tmp_path, "a.avi", "b/c.mp4", "b/d.avi", "broken/e.mp4", "f/1.png", "f/2.png")


def test_globs_take_and_leave_names(mixed: Path) -> None:
    assert names(mixed) == ["a.avi", "b/c.mp4", "b/d.avi", "broken/e.mp4", "f"]
    assert names(mixed, include="*.avi") == ["a.avi", "b/d.avi"]
    assert names(mixed, include=["*.mp4", "f"], exclude=["broken/*"]) == ["b/c.mp4", "f"]
    with pytest.raises(DataError, match=r"--include '\*\.mkv' leaves none of 5 videos \(names are"):
        names(mixed, include="*.mkv")


UCF = [f"v_{c}_g0{g}_c01.avi" for c in ("YoYo", "Archery") for g in (1, 2, 3)]


@pytest.mark.parametrize("where", ["ucf/ucfTrainTestlist", "ucfTrainTestlist", "ucf", "."])
def test_ucf101_is_split_by_its_lists(tmp_path: Path, where: str) -> None:
    root = touch(tmp_path / "ucf", *(f"{n.split('_')[1]}/{n}" for n in UCF))
    lists = tmp_path / where
    lists.mkdir(exist_ok=True)
    for fold in (1, 2, 3):
        test = [n for n in UCF if f"_g0{fold}_" in n]
        for side, videos in (("train", [n for n in UCF if n not in test]), ("test", test)):
            lines = [f"{n.split('_')[1]}/{n}" for n in videos]
            lines = [f"{n} 1" if side == "train" else n for n in lines]
            (lists / f"{side}list0{fold}.txt").write_text("\r\n".join(lines))
    if where == ".":
        (lists / "trainlist01.txt").write_text("YoYo/v_YoYo_g02_c01.avi 2\nYoYo/gone.avi 2\n")
        found = select(root, Selection(split="train"))
        assert [source.name for source in found.sources] == ["YoYo/v_YoYo_g02_c01.avi"]
        assert found.missing == ["YoYo/gone.avi"]
        with pytest.raises(DataError, match=r"1 listed videos are not there: YoYo/gone\.avi"):
            select(root, Selection(split="train"), strict=True)
        return
    with pytest.raises(DataError, match=r"class .* has|two classes have the same number"):
        names(root, split="train")  # both classes are number 1
    for fold in (1, 2, 3):
        for path in lists.glob("trainlist*"):
            path.write_text(path.read_text().replace(" 1", ""))
        train, test = (names(root, split=side, fold=fold) for side in ("train", "test"))
        assert len(train) == 4
        assert sorted(train + test) == names(root)
        assert all(f"_g0{fold}_" in name for name in test)
    found = select(root, Selection(split="test", fold=2), labels="folders")
    assert found.names == ("Archery", "YoYo")
    assert found.of["YoYo/v_YoYo_g02_c01.avi"] == "YoYo"


def test_without_lists_folders_or_a_hash_split(tmp_path: Path) -> None:
    root = touch(tmp_path / "v", *(f"{i}.mp4" for i in range(20)))
    with pytest.raises(DataError, match=r"--split train: it has no split of its own .*--holdout"):
        names(root, split="train")
    with pytest.raises(DataError, match="--holdout is a share for --split train or --split test"):
        select(root, holdout=0.2)
    with pytest.raises(DataError, match=r"fold 2 needs --split .*testlist02\.txt in ucfTrain"):
        names(root, fold=2)
    train, test = split(find_videos(root), 0.2)  # that of data.holdout=0.2 in training
    assert select(root, Selection(split="train"), holdout=0.2).sources == train
    assert select(root, Selection(split="test"), holdout=0.2).sources == test
    sky = touch(tmp_path / "sky", *(f"{s}/v/c/{i}.png" for s in ("train", "test") for i in (1, 2)))
    assert names(sky, split="test") == ["test/v/c"]


def test_a_table_says_side_and_class_and_what_is_not_there_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    table = tmp_path / "t.csv"
    table.write_text(
        "path,label,split\na.mp4,walk,train\nb.mp4,run,test\nc.mp4,,train\nd.mp4,run,test\n"
    )
    found = select(table)
    assert (found.names, found.of) == (("run", "walk"), {"a.mp4": "walk", "b.mp4": "run"})
    assert found.missing == ["d.mp4"]
    with pytest.raises(DataError, match=r"1 listed videos are not there: d\.mp4"):
        select(table, strict=True)
    assert names(table, split="train") == ["a.mp4", "c.mp4"]
    assert select(table, labels=table).names == ("run", "walk")
    table.write_text("path\nx.mp4\n")
    with pytest.raises(DataError, match=r"none of its 1 videos is there: x\.mp4"):
        select(table)


def test_mirrored_copies_are_of_the_same_class(tmp_path: Path) -> None:
    root = touch(tmp_path, "walk/a.mp4", "run/b.mp4")
    found = select(root, labels="folders", flip=True)
    copies = ["run/b.mp4#mirrored", "walk/a.mp4#mirrored"]
    assert [source.name for source in found.sources] == ["run/b.mp4", "walk/a.mp4", *copies]
    assert found.of["walk/a.mp4#mirrored"] == "walk"
    assert [source.mirrored for source in found.sources] == [False, False, True, True]


def test_training_refuses_keys_about_reading_that_would_do_nothing() -> None:
    from pvdm_cli.config import load_config

    for key in ("rate=8", "short=loop", "crop=random", "include=['*.avi']", "split=train"):
        with pytest.raises(ConfigError, match=r"is about reading videos: give --"):
            load_config("small/diffusion", [f"data.{key}"])
    config = load_config("demo/autoencoder", ["data.include=*.avi", "data.rate=8"])
    assert isinstance(config, RunConfig)
    assert config.data.include == ("*.avi",)
    assert config.policy.rate == 8
    with pytest.raises(ConfigError, match=r"data\.rate=8 picks frames by time and clip\.frame_st"):
        load_config("demo/autoencoder", ["data.rate=8", "clip.frame_stride=2"])
