"""Damage to a cache: found, named, refused, and repaired by encoding again."""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cache import EXPECTED, FRAMES, IDENTITY, SOURCES, content, encode, latent

from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_check import find_problems
from pvdm_cli.data.cache_format import (
    Rounding,
    VideoRow,
    read_manifest,
    read_videos,
    to_lines,
    whole_hash,
)
from pvdm_cli.data.cache_writer import CacheWriter, Stamp
from pvdm_cli.errors import DataError


def flip(file: Path, byte: int, bit: int = 0) -> None:
    """Change one bit of a file."""
    damaged = bytearray(file.read_bytes())
    damaged[byte] ^= 1 << bit
    file.write_bytes(damaged)


def shards(path: Path) -> list[Path]:
    return sorted(path.glob("shard-*"))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    encode(tmp_path / "c")
    assert find_problems(tmp_path / "c") == []
    return tmp_path / "c"


def test_any_flipped_bit_of_a_shard_is_named_and_encoding_again_restores_it(cache: Path) -> None:
    before, file = content(cache), shards(cache)[1]
    whole = file.read_bytes()
    z_at = len(whole) - 104 * read_manifest(cache).shards[1].clips  # z lies at the end
    assert 200 < z_at < len(whole)
    for byte in range(0, len(whole), 7):
        file.write_bytes(whole)
        flip(file, byte, byte % 8)
        (problem,) = find_problems(cache)
        assert problem.file == file.name
        assert str(file) in problem.what
        assert "run the same `pvdm encode` again" in problem.what
        with pytest.raises(DataError, match=file.name):  # as training does that reads all of it
            Cache.open(cache, in_memory=True)
        if byte < z_at:  # of header and index: noticed without reading z
            assert find_problems(cache, fast=True) == [problem]
            with pytest.raises(DataError, match=file.name):
                Cache.open(cache)
    encode(cache)
    assert content(cache) == before == EXPECTED
    assert find_problems(cache) == []


@pytest.mark.parametrize("harm", [os.unlink, lambda file: os.truncate(file, 300)])
def test_missing_and_truncated_shards_are_all_named(
    cache: Path, harm: Callable[[Path], None]
) -> None:
    for file in shards(cache):
        harm(file)
    found = find_problems(cache, fast=True)
    assert [problem.file for problem in found] == [file.name for file in shards_named(cache)]
    assert all("run the same `pvdm encode` again to restore it" in each.what for each in found)
    encode(cache)
    assert content(cache) == EXPECTED


def shards_named(path: Path) -> list[Path]:
    return [path / shard.name for shard in read_manifest(path).shards]


def test_a_damaged_shard_stays_until_its_clips_are_there_again(cache: Path) -> None:
    file = shards(cache)[0]
    flip(file, -1)
    with pytest.raises(DataError, match="of other videos"):
        encode(cache, [Stamp("z.mp4", 1, 1)])
    assert file.exists()
    with CacheWriter(cache, IDENTITY) as writer:
        plan = writer.plan(SOURCES)
        assert (plan.damaged, plan.changed, plan.added) == (1, 0, 0)
        assert plan.todo
        assert file.exists()
    encode(cache)
    assert not file.exists()
    assert content(cache) == EXPECTED


def test_every_byte_of_manifest_and_lists_counts(cache: Path) -> None:
    for name in ("manifest.json", "videos.jsonl", "skipped.jsonl"):
        whole = (cache / name).read_bytes()
        for byte in range(0, len(whole), 41):
            (cache / name).write_bytes(whole)
            flip(cache / name, byte)
            if name == "manifest.json" and same_but_hints(whole, (cache / name).read_bytes()):
                continue
            with pytest.raises(DataError) as error:
                Cache.open(cache)
            (problem,) = find_problems(cache, fast=True)
            assert problem.what == str(error.value)
            assert "--overwrite" in problem.what or "reads format" in problem.what
        (cache / name).write_bytes(whole)
    assert find_problems(cache) == []


def same_but_hints(before: bytes, after: bytes) -> bool:
    """Whether two manifests say the same: blanks and hints may differ."""
    try:
        return whole_hash(json.loads(before)) == whole_hash(json.loads(after))
    except ValueError:
        return False


def other(path: Path, **changes: Any) -> Path:
    """Another cache of the same videos: different latents, all else the same."""
    identity = IDENTITY.model_copy(update=changes)
    with CacheWriter(path, identity, shard_bytes=250) as writer:
        for row in writer.plan(SOURCES).todo:
            windows = identity.num_windows(FRAMES[row.path])
            if not windows:
                writer.skip_video(row.video, "only 3 frames")
                continue
            for first in range(0, windows * identity.step, identity.step):
                z = -latent(row.path, first)[None]
                writer.add(np.array([[row.video, first, row.label]]), z)
            writer.end_video(row.video, frames=FRAMES[row.path], fps=30.0 + row.video)
        writer.finish()
    return path


@pytest.mark.parametrize("changes", [{}, {"fingerprint": "b" * 64}, {"precision": "bf16"}])
def test_the_manifest_of_another_cache_is_noticed_without_reading_latents(
    cache: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    shutil.copy(other(tmp_path / "d", **changes) / "manifest.json", cache)
    assert (tmp_path / "d" / "videos.jsonl").read_text() == (cache / "videos.jsonl").read_text()
    with pytest.raises(DataError, match="is another cache's"):
        Cache.open(cache)
    found = find_problems(cache, fast=True)
    assert [problem.file for problem in found] == [file.name for file in shards(cache)]


def test_the_manifest_of_other_videos_is_noticed_by_the_lists(cache: Path, tmp_path: Path) -> None:
    encode(tmp_path / "d", [SOURCES[0]._replace(mtime=6), *SOURCES[1:]])
    shutil.copy(tmp_path / "d" / "manifest.json", cache)
    with pytest.raises(DataError, match=r"manifest.json does not belong to videos.jsonl"):
        Cache.open(cache)
    with pytest.raises(DataError, match=r"manifest.json does not belong to videos.jsonl"):
        encode(cache)
    assert find_problems(cache, fast=True)[0].file == "manifest.json"


def test_an_unfinished_cache_is_a_problem_and_none_at_all_an_error(tmp_path: Path) -> None:
    with CacheWriter(tmp_path / "c", IDENTITY) as writer:
        writer.plan(SOURCES)
    (problem,) = find_problems(tmp_path / "c")
    assert "is unfinished: run the same `pvdm encode` again" in problem.what
    with pytest.raises(DataError, match="no cache at"):
        find_problems(tmp_path / "none")


def test_the_hash_of_the_whole_follows_content_and_not_hints(cache: Path, tmp_path: Path) -> None:
    whole = read_manifest(cache).sha256
    assert whole is not None
    encode(tmp_path / "same", command=["pvdm", "encode"], source="elsewhere", autoencoder="x")
    assert read_manifest(tmp_path / "same").sha256 == whole
    encode(tmp_path / "fewer", SOURCES[:2])
    assert read_manifest(tmp_path / "fewer").sha256 != whole
    assert read_manifest(other(tmp_path / "d")).sha256 != whole
    values = json.loads((cache / "manifest.json").read_text())
    (cache / "manifest.json").write_text(json.dumps(values | {"source": "moved/here"}))
    assert find_problems(cache) == []  # a hint may be corrected by hand


def test_a_cache_without_hashes_is_read_and_gets_them_by_encoding_again(cache: Path) -> None:
    values = json.loads((cache / "manifest.json").read_text())
    for shard in values["shards"]:
        for key in ("latents", "index", "rounding"):
            del shard[key]
    for key in ("sha256", "lists", "command", "fp16_loss"):
        del values[key]
    (cache / "manifest.json").write_text(json.dumps(values))
    assert content(cache) == EXPECTED
    encode(cache)
    assert read_manifest(cache).sha256
    assert content(cache) == EXPECTED


# What fp16 costs --------------------------------------------------------------------------


def measured(path: Path, sources: list[Stamp]) -> None:
    """Encode with fp32 latents at hand, one video a time as after many kills."""
    for count in range(1, len(sources) + 1):
        with CacheWriter(path, IDENTITY, shard_seconds=0) as writer:
            for row in writer.plan(sources[:count]).todo:
                exact = z32(row.path)
                z = exact.astype(np.float16)
                error = np.abs(z - exact)
                index = [[row.video, k * IDENTITY.step, -1] for k in range(len(z))]
                rounding = Rounding(float(error.max()), float((error**2).sum()))
                writer.add(np.array(index), z, rounding)
                writer.end_video(row.video, frames=FRAMES[row.path], fps=30.0)
            writer.finish()


def z32(name: str) -> np.ndarray[Any, Any]:
    """Latents of all clips of a video, as float64."""
    count = IDENTITY.num_windows(FRAMES[name])
    return np.random.default_rng(len(name) + count).uniform(-1, 1, (count, 2, 26))


def test_the_loss_of_fp16_is_that_of_all_clips_however_often_it_was_continued(
    tmp_path: Path,
) -> None:
    sources = [source for source in SOURCES if source.path != "b/d.mp4"]
    measured(tmp_path / "c", sources)
    exact = np.concatenate([z32(source.path) for source in sources])
    error = exact.astype(np.float16) - exact
    loss = read_manifest(tmp_path / "c").fp16_loss
    assert loss is not None
    assert loss.max == pytest.approx(np.abs(error).max())
    assert loss.rms == pytest.approx(np.sqrt((error**2).mean()))
    relative = np.linalg.norm(error) / np.linalg.norm(exact.astype(np.float16))
    assert loss.relative == pytest.approx(relative, rel=1e-3)
    assert read_manifest(tmp_path / "c").shards[0].clips == 7  # merged three times


# Known by content -------------------------------------------------------------------------


def hashed(**paths: str) -> list[Stamp]:
    """Sources with hashes: name=content; each call at another time."""
    names = {"a": "a.mp4", "c": "b/c.mp4", "e": "e.mp4", "moved": "moved.mp4"}
    return [Stamp(names[name], 1, next(CLOCK), text) for name, text in paths.items()]


CLOCK = iter(range(10**6))


def test_by_hash_touched_and_moved_videos_keep_their_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    encode(path, hashed(a="A", c="C", e="E"))
    kept = Cache.open(path).read(range(7))
    with monkeypatch.context() as patch:
        patch.setattr("test_cache.latent", None)  # not called again
        encode(path, hashed(a="A", c="C", e="E"))
        encode(path, touched := hashed(a="A", c="C", moved="E"))
        encode(path, [stamp._replace(sha256=None) for stamp in touched])  # and without --hash
    assert torch.equal(Cache.open(path).read(range(7)), kept)
    assert [(row.path, row.sha256) for row in read_videos(path)] == [
        ("a.mp4", "A"),
        ("b/c.mp4", "C"),
        ("moved.mp4", "E"),
    ]
    assert find_problems(path) == []


def test_by_hash_changes_moves_and_removals_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "c"
    encode(path, hashed(a="A", c="C", e="E"))
    with CacheWriter(path, IDENTITY) as writer:
        plan = writer.plan(hashed(a="E", e="new", moved="A"))  # c is gone
    assert (plan.moved, plan.changed, plan.removed, plan.added) == (2, 1, 1, 0)
    assert [row.path for row in plan.todo] == ["e.mp4"]


def test_of_two_videos_with_one_content_the_second_is_encoded_too(tmp_path: Path) -> None:
    path = tmp_path / "c"
    encode(path, hashed(a="A", e="E"))
    with CacheWriter(path, IDENTITY) as writer:
        plan = writer.plan(hashed(a="A", e="E", moved="A"))
    assert (plan.moved, plan.added, [row.path for row in plan.todo]) == (0, 1, ["moved.mp4"])


def test_a_cache_made_without_hashes_learns_them_without_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode(tmp_path / "c")
    monkeypatch.setattr("test_cache.latent", None)  # not called again
    encode(tmp_path / "c", [source._replace(sha256=source.path) for source in SOURCES])
    found = read_videos(tmp_path / "c")
    assert [row.sha256 for row in found] == [row.path for row in found]


def test_lists_hold_any_name(tmp_path: Path) -> None:
    rows = [VideoRow(k, name, 1, 1) for k, name in enumerate(["a\u2028b", "c\x85d", "e\nf"])]
    (tmp_path / "videos.jsonl").write_text(to_lines(rows), encoding="utf-8")
    assert read_videos(tmp_path) == rows


# Reading ----------------------------------------------------------------------------------


def read_in_worker(cache: Cache, rows: list[int]) -> bytes:
    """Read rows often, for one answer."""
    for _ in range(20):
        cache.read(rows)
    return cache.read(rows).numpy().tobytes()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # torch has threads
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_worker_processes_read_the_same_rows_at_the_same_time(cache: Path, start: str) -> None:
    opened = Cache.open(cache)
    rows = [5, 0, 6, 3, 3]
    expected = opened.read(rows).numpy().tobytes()  # the files are open when workers start
    with multiprocessing.get_context(start).Pool(2) as pool:
        answers = [pool.apply_async(read_in_worker, (opened, rows)) for _ in range(4)]
        assert read_in_worker(opened, rows) == expected
        assert all(answer.get(60) == expected for answer in answers)


def test_latents_in_memory_lie_on_the_device_asked_for(cache: Path) -> None:
    rows = torch.tensor([4, 0, 2])
    on_disk = Cache.open(cache).read(rows)
    held = Cache.open(cache, in_memory=True, device=torch.device("cpu"))
    assert torch.equal(held.read(rows), on_disk)
    assert held.read([1]).device.type == "cpu"
    unreal = Cache.open(cache, in_memory=True, device="meta")  # no data, but a device
    assert unreal.read(rows).device.type == "meta"
