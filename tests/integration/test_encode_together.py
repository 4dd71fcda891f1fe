"""Encoding in several processes: the same cache, whoever has encoded what."""

import json
import shutil
from pathlib import Path

import pytest
from encoding_runs import agree, encode_command, finish, rows_of, same_statistics, start
from tiny import tiny_model

from pvdm_cli.data.catalog import find_videos
from pvdm_cli.encoding import encode_videos
from pvdm_cli.model import load_model, save_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_model(), path)
    return path


def folder_of(sources: "list[Path]", path: Path) -> Path:
    """A folder of links to some videos."""
    path.mkdir()
    for source in sources:
        (path / source.name).symlink_to(source)
    return path


@pytest.mark.slow
def test_two_processes_make_the_cache_that_one_makes_and_one_continues_it(
    model: Path, shared: Path, tmp_path: Path
) -> None:
    skies = [source.path for source in find_videos(shared / "data" / "sky48_128")]
    videos = folder_of(skies[:4], tmp_path / "videos")
    (videos / "bad.mp4").write_bytes(b"no video")
    two = tmp_path / "two"
    options = ["--window-stride", 2, "--workers", 0, "--shard-seconds", 0.2]
    process = start(encode_command(videos, model, two, *options, "--nproc-per-node", 2))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 3, err
    result = json.loads(out)  # said once
    assert result["speed"]["workers"] == 2
    assert err.count("skipped bad.mp4: ") == 1
    assert err.count("clips encoded now") == 1
    assert not list(two.glob(".lock-*"))
    one = tmp_path / "one"
    encode_videos(load_model(model, "cpu"), find_videos(videos), one, window_stride=2)
    agree(rows_of(two), rows_of(one))
    same_statistics([two, one])
    (videos / "bad.mp4").unlink()
    (videos / skies[4].name).symlink_to(skies[4])
    again = finish(start(encode_command(videos, model, two, *options)))
    assert (again["videos"], again["new_clips"]) == (5, 15)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sky48_128", "ucf101", "cctv300_128"])
def test_one_two_and_three_processes_agree_on_data_sets(
    name: str, shared: Path, tmp_path: Path
) -> None:
    """Up to a hundred videos, by the shipped model."""
    sources = [source.path for source in find_videos(shared / "data" / name)]
    videos = folder_of(sources[:100], tmp_path / "videos")
    made = []
    for number in (1, 2, 3):
        made.append(tmp_path / str(number))
        command = encode_command(videos, "demo", made[-1], "--nproc-per-node", number)
        process = start(command)
        _, err = process.communicate(timeout=900)
        assert process.returncode in {0, 3}, err
    expected = rows_of(made[0])
    assert expected
    for path in made[1:]:
        agree(rows_of(path), expected)
    same_statistics(made)
    shutil.rmtree(tmp_path)
