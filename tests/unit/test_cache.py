"""The latent cache: format, continuing after a kill at any instant, reading, pairs, refusals."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import torch

from pvdm_cli import files
from pvdm_cli.config import ClipConfig
from pvdm_cli.data import cache_shard
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import Identity, read_manifest
from pvdm_cli.data.cache_writer import CacheWriter, Stamp, discard_cache
from pvdm_cli.errors import DataError, PvdmError

# s=4 frames, h=2 x w=3 patches, 2 channels; a clip every 2 frames of the 3-strided source.
IDENTITY = Identity(
    fingerprint="a" * 64,
    clip=ClipConfig(frames=4, frame_stride=3, height=16, width=24),
    patch=8,
    channels=2,
    window_stride=2,
)
FRAMES = {"a.mp4": 9, "b/c.mp4": 4, "b/d.mp4": 3, "e.mp4": 8}  # 3, 1, 0 and 3 clips
SOURCES = [Stamp(name, 100 + k, 5) for k, name in enumerate(FRAMES)]


def latent(name: str, first: int) -> np.ndarray[Any, Any]:
    """The clip that the stand-in for an autoencoder makes of a window."""
    seed = [sum(map(ord, name)), first]
    return np.random.default_rng(seed).uniform(-1, 1, (2, 26)).astype(np.float16)


def encode(
    path: Path,
    sources: list[Stamp] = SOURCES,
    classes: Mapping[str, str] | None = None,
    **options: Any,
) -> None:
    """Do what the encoder does, clip by clip: only what is missing."""
    with CacheWriter(path, IDENTITY, **{"shard_bytes": 250, **options}) as writer:
        names = None if classes is None else sorted(set(classes.values()))
        plan = writer.plan(sources, names, classes)
        if not plan.todo and writer.complete:
            return
        for row in plan.todo:
            frames = FRAMES[row.path]
            if frames < 4:
                writer.skip_video(row.video, "only 3 frames")
                continue
            for k in range(IDENTITY.num_windows(frames)):
                if k * IDENTITY.step not in writer.present(row.video):
                    index = np.array([[row.video, k * IDENTITY.step, row.label]])
                    writer.add(index, latent(row.path, k * IDENTITY.step)[None])
            writer.end_video(row.video, frames=frames, fps=30.0 + row.video)
        writer.finish()


def classes_in(path: Path) -> dict[str, set[str | None]]:
    """Classes of the rows of each video."""
    cache = Cache.open(path)
    names = {row.video: row.path for row in cache.videos}
    found: dict[str, set[str | None]] = {}
    for video, _, label in cache.index.tolist():
        name = None if label < 0 else cache.manifest.labels[label]
        found.setdefault(names[video], set()).add(name)
    return found


def content(path: Path) -> dict[tuple[str, int], bytes]:
    """All clips of a cache by (video path, first frame)."""
    cache = Cache.open(path)
    names = {row.video: row.path for row in cache.videos}
    z = cache.read(range(len(cache)))
    return {
        (names[video], first): z[k].numpy().tobytes()
        for k, (video, first, _) in enumerate(cache.index.tolist())
    }


EXPECTED = {
    (name, 6 * k): latent(name, 6 * k).tobytes()
    for name, frames in FRAMES.items()
    for k in range(max(0, (frames - 4) // 2 + 1))
}


def test_a_cache_gives_back_what_was_written_by_both_ways_of_reading(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    assert content(tmp_path / "c") == EXPECTED
    on_disk, in_memory = Cache.open(tmp_path / "c"), Cache.open(tmp_path / "c", in_memory=True)
    rows = torch.tensor([5, 0, 0, 3])
    assert torch.equal(on_disk.read(rows), in_memory.read(rows))
    assert on_disk.read([2]).shape == (1, 2, 26)
    assert on_disk.read([2], dtype=torch.float32).dtype == torch.float32
    assert len(on_disk) == 7
    assert on_disk.shape == (2, 4, 2, 3)


def test_the_files_are_as_the_contract_says(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    assert manifest["format"] == 1
    assert manifest["fps"] == pytest.approx(31 / 3)  # median of 30, 31, 33 over frame stride 3
    assert (manifest["videos"], manifest["clips"], manifest["skipped"]) == (3, 7, 1)
    for shard in manifest["shards"]:
        file = tmp_path / "c" / shard["name"]
        assert files.sha256(file) == shard["sha256"]
        with safetensors.safe_open(file, "numpy") as tensors:
            assert tensors.get_tensor("z").shape == (shard["clips"], 2, 26)
            assert tensors.get_tensor("z").dtype == np.float16
            assert tensors.get_tensor("index").dtype == np.int64
    lines = (tmp_path / "c" / "videos.jsonl").read_text().splitlines()
    assert [json.loads(line)["frames"] for line in lines] == [9, 4, None, 8]
    skipped = json.loads((tmp_path / "c" / "skipped.jsonl").read_text())
    assert skipped == {"video": 2, "path": "b/d.mp4", "reason": "only 3 frames"}
    visible = {item.name for item in (tmp_path / "c").iterdir() if item.name[0] != "."}
    shards = {shard["name"] for shard in manifest["shards"]}
    assert visible == {"manifest.json", "videos.jsonl", "skipped.jsonl"} | shards


def test_mean_and_std_are_those_of_all_clips_by_plane_and_channel(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    cache = Cache.open(tmp_path / "c")
    planes = cache.read(range(len(cache)), dtype=torch.float64).split([6, 12, 8], dim=2)
    mean = torch.stack([plane.mean(dim=(0, 2)) for plane in planes])
    std = torch.stack([plane.std(dim=(0, 2), correction=0) for plane in planes])
    torch.testing.assert_close(torch.tensor(cache.manifest.mean, dtype=torch.float64), mean)
    torch.testing.assert_close(torch.tensor(cache.manifest.std, dtype=torch.float64), std)


def test_pairs_are_clips_that_touch_and_the_rest_is_alone(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    cache = Cache.open(tmp_path / "c")
    pairs = cache.pairs()
    # a: 0 6 12, b/c: 0, e: 0 6 12; a clip of 4 frames at stride 3 spans 12 source frames.
    assert cache.index[pairs.first].tolist() == [[0, 0, -1], [3, 0, -1]]
    assert cache.index[pairs.next].tolist() == [[0, 12, -1], [3, 12, -1]]
    assert cache.index[pairs.alone, 1].tolist() == [0, 6, 0, 0, 6]
    assert cache.rows_of(3) == range(4, 7)
    shared = cache.pairs(overlap=2)
    assert cache.index[shared.first, 1].tolist() == [0, 6, 0, 6]
    assert cache.index[shared.next, 1].tolist() == [6, 12, 6, 12]
    assert len(cache.pairs(overlap=1).first) == 0


def test_small_shards_are_merged_at_the_end_and_time_closes_one(tmp_path: Path) -> None:
    encode(tmp_path / "small", shard_bytes=1)  # no shard is small, one for each clip
    encode(tmp_path / "late", shard_bytes=1 << 20, shard_seconds=0.0)  # one for each clip, merged
    assert len(read_manifest(tmp_path / "small").shards) == 7
    assert len(read_manifest(tmp_path / "late").shards) == 1
    assert content(tmp_path / "small") == content(tmp_path / "late") == EXPECTED


class Killed(BaseException):
    """The process is gone."""


class Grave:
    """Kills at the n-th file operation; writes are torn and nothing works afterwards."""

    def __init__(self, patch: pytest.MonkeyPatch, after: int) -> None:
        self.left = after
        for module, name in [
            (os, "fsync"),
            (os, "replace"),
            (os, "unlink"),
            (os, "mkdir"),
            (os, "write"),
            (Path, "write_text"),
            (safetensors.numpy, "save_file"),
        ]:
            patch.setattr(module, name, self.mortal(getattr(module, name), name))

    def mortal(self, operation: Callable[..., Any], name: str) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and name == "write":
                operation(args[0], args[1][: len(args[1]) // 2])
            if self.left == 0 and name == "write_text":
                operation(args[0], args[1][: len(args[1]) // 2], **kwargs)
            if self.left == 0 and name == "save_file":
                args[1].write_bytes(b"torn")
            if self.left <= 0:
                raise Killed
            return operation(*args, **kwargs)

        return run


def killed_runs(
    path: Path, classes: Mapping[str, str] | None = None, start: Path | None = None
) -> Iterator[int]:
    """Encode again and again, afresh or into a copy, killed one file operation later each time."""
    for after in range(1, 1000):
        shutil.rmtree(path, ignore_errors=True)
        if start is not None:
            shutil.copytree(start, path)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "sync", lambda path: os.fsync(-1))  # one operation, no disk
            patch.setattr(os, "fsync", lambda handle: None)
            grave = Grave(patch, after)
            try:
                encode(path, classes=classes)
            except Killed:
                pass
            else:
                assert grave.left > 0
                return
        yield after


def test_killed_between_any_two_file_operations_the_same_command_completes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    path = tmp_path / "c"
    kills = 0
    for after in killed_runs(path):
        kills = after
        if path.exists() and (path / "manifest.json").exists():
            if read_manifest(path).complete:
                assert content(path) == EXPECTED
            else:
                with pytest.raises(DataError, match="unfinished"):
                    Cache.open(path)
        encode(path)
        assert content(path) == EXPECTED, f"killed at operation {after}"
        assert not list(path.glob("journal-*")), f"killed at operation {after}"
        assert not list(path.glob(".*.partial")), f"killed at operation {after}"
        listed = {shard.name for shard in read_manifest(path).shards}
        assert {file.name for file in path.glob("shard-*")} == listed
    assert kills > 60


CLASSES = {"a.mp4": "walk", "b/c.mp4": "run", "b/d.mp4": "run", "e.mp4": "walk"}


def test_rows_have_the_class_of_their_video_and_survive_the_merging_of_shards(
    tmp_path: Path,
) -> None:
    encode(tmp_path / "many", classes=CLASSES, shard_bytes=1)
    encode(tmp_path / "one", classes=CLASSES, shard_bytes=1 << 20, shard_seconds=0.0)
    for name in ("many", "one"):
        manifest = read_manifest(tmp_path / name)
        assert manifest.labels == ("run", "walk")
        assert len(manifest.shards) == (7 if name == "many" else 1)
        assert content(tmp_path / name) == EXPECTED
        assert Cache.open(tmp_path / name).index[:, 2].tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert [row.label for row in Cache.open(tmp_path / "one").videos] == [1, 0, 0, 1]


def test_classes_keep_their_ids_when_videos_and_classes_are_added(tmp_path: Path) -> None:
    path = tmp_path / "c"
    encode(path, SOURCES[:2], {"a.mp4": "walk", "b/c.mp4": "run"})
    more = {**CLASSES, "e.mp4": "jump"}
    encode(path, classes=more)
    assert read_manifest(path).labels == ("run", "walk", "jump")
    assert classes_in(path) == {"a.mp4": {"walk"}, "b/c.mp4": {"run"}, "e.mp4": {"jump"}}
    encode(path, SOURCES[1:], {"b/c.mp4": "run", "b/d.mp4": "run", "e.mp4": "jump"})
    assert read_manifest(path).labels == ("run", "walk", "jump")  # also without a video
    assert content(path) == {key: z for key, z in EXPECTED.items() if key[0] != "a.mp4"}


def test_a_cache_without_classes_gets_them_without_encoding_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    encode(path, shard_bytes=1)
    monkeypatch.setattr("test_cache.latent", None)  # not called again
    with CacheWriter(path, IDENTITY) as writer:
        plan = writer.plan(SOURCES, ["walk"], {"a.mp4": "walk"})
        assert (plan.todo, plan.relabelled) == ([], 1)
    for classes in ({"a.mp4": "walk", "e.mp4": "run"}, CLASSES, {"a.mp4": "run"}):
        encode(path, classes=classes)
        found = {name: {classes.get(name)} for name in FRAMES if name != "b/d.mp4"}
        assert classes_in(path) == found
        assert content(path) == EXPECTED


def test_classes_are_never_dropped_in_passing(tmp_path: Path) -> None:
    encode(tmp_path / "c", classes=CLASSES)
    with pytest.raises(DataError, match=r"has classes \(such as run\): say by --labels"):
        encode(tmp_path / "c")
    assert read_manifest(tmp_path / "c").complete
    assert classes_in(tmp_path / "c")["a.mp4"] == {"walk"}


@pytest.mark.parametrize("before", [None, "none", "other"])
def test_killed_at_any_file_operation_a_labelled_cache_is_completed_with_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    start = None if before is None else tmp_path / "start"
    if start is not None:
        other = {"a.mp4": "sit", "e.mp4": "walk"} if before == "other" else None
        encode(start, classes=other)
    expected = {name: {CLASSES[name]} for name in FRAMES if name != "b/d.mp4"}
    path = tmp_path / "c"
    for after in killed_runs(path, CLASSES, start):
        encode(path, classes=CLASSES)
        assert content(path) == EXPECTED, f"killed at operation {after}"
        assert classes_in(path) == expected, f"killed at operation {after}"
        names = ("run", "walk") if before != "other" else ("sit", "walk", "run")
        assert read_manifest(path).labels == names


def test_a_kill_loses_no_more_than_the_open_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with CacheWriter(tmp_path / "c", IDENTITY, shard_bytes=250) as writer:
        writer.plan(SOURCES)
        for first in (0, 6, 12):  # two clips of 104 bytes do not fill a shard, three do
            writer.add(np.array([[0, first, -1]]), latent("a.mp4", first)[None])
        writer.add(np.array([[1, 0, -1]]), latent("b/c.mp4", 0)[None])
        monkeypatch.setattr(writer, "flush", lambda: None)  # dies here
    with CacheWriter(tmp_path / "c", IDENTITY) as writer:
        writer.plan(SOURCES)
        assert writer.present(0) == {0, 6, 12}
        assert writer.present(1) == set()


def test_an_interruption_that_can_be_caught_loses_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with CacheWriter(tmp_path / "c", IDENTITY) as writer:
            writer.plan(SOURCES)
            writer.add(np.array([[0, 0, -1]]), latent("a.mp4", 0)[None])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with CacheWriter(tmp_path / "c", IDENTITY) as writer:
        assert writer.present(0) == {0}


def test_added_changed_and_removed_videos_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    encode(path)
    before = {file.name for file in path.glob("shard-*")}
    encode(path)
    assert {file.name for file in path.glob("shard-*")} == before  # nothing to do, nothing done
    changed = [SOURCES[0]._replace(mtime=6), *SOURCES[2:], Stamp("new.mp4", 1, 1)]
    FRAMES["new.mp4"] = 6
    try:
        with CacheWriter(path, IDENTITY) as writer:
            plan = writer.plan(changed)
        assert (plan.added, plan.changed, plan.removed) == (1, 1, 1)
        assert [row.path for row in plan.todo] == ["a.mp4", "new.mp4"]
        encode(path, changed)
    finally:
        del FRAMES["new.mp4"]
    found = content(path)
    assert {name for name, _ in found} == {"a.mp4", "e.mp4", "new.mp4"}
    assert sorted(Cache.open(path).index[:, 0].unique().tolist()) == [3, 4, 5]


def test_another_autoencoder_is_refused_naming_both(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    other = IDENTITY.model_copy(update={"fingerprint": "b" * 64})
    with (
        pytest.raises(DataError, match=f"{'a' * 16}.*{'b' * 16}"),
        CacheWriter(tmp_path / "c", other),
    ):
        pass
    clip = IDENTITY.clip.model_copy(update={"frames": 8})
    with (
        pytest.raises(DataError, match=r"clip\.frames=4 \(now 8\)"),
        CacheWriter(tmp_path / "c", IDENTITY.model_copy(update={"clip": clip})),
    ):
        pass


def test_other_videos_a_foreign_folder_and_a_second_writer_are_refused(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    with pytest.raises(DataError, match="of other videos"):
        encode(tmp_path / "c", [Stamp("z.mp4", 1, 1)])
    for action in (encode, discard_cache):
        held = files.only_writer(tmp_path / "c", "encoding into")
        with held, pytest.raises(PvdmError, match="another process is encoding into"):
            action(tmp_path / "c")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="neither empty nor a cache"):
        encode(tmp_path / "mine")
    with pytest.raises(DataError, match="not a cache"):
        discard_cache(tmp_path / "mine")
    discard_cache(tmp_path / "c")
    assert not (tmp_path / "c").exists()


def damaged(path: Path, change: Callable[[Path, dict[str, Any]], None]) -> Path:
    """A cache with one thing wrong that no hash tells, as in those made without hashes."""
    encode(path)
    manifest = json.loads((path / "manifest.json").read_text())
    change(path, manifest)
    manifest |= {"sha256": None, "lists": None}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def shorten(path: Path, manifest: dict[str, Any]) -> None:
    os.truncate(path / manifest["shards"][0]["name"], 300)


def drop_shard(path: Path, manifest: dict[str, Any]) -> None:
    (path / manifest["shards"][1]["name"]).unlink()


def drop_rows(path: Path, manifest: dict[str, Any]) -> None:
    manifest["shards"].pop()


def drop_excuse(path: Path, manifest: dict[str, Any]) -> None:
    (path / "skipped.jsonl").write_text("")


def drop_names(path: Path, manifest: dict[str, Any]) -> None:
    encode(path, classes=CLASSES)
    manifest |= json.loads((path / "manifest.json").read_text())
    manifest["labels"].pop()


def later_format(path: Path, manifest: dict[str, Any]) -> None:
    manifest["format"] = 2


def no_numbers(path: Path, manifest: dict[str, Any]) -> None:
    manifest["window_stride"] = "often"


def swap_tensors(path: Path, manifest: dict[str, Any]) -> None:
    manifest["channels"] = 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (shorten, "300 bytes instead of"),
        (drop_shard, "is missing"),
        (drop_rows, "has a hole: e.mp4"),
        (drop_excuse, r"has a hole: b/d\.mp4"),
        (drop_names, "the index does not agree"),
        (later_format, "cache format 2, but this version reads format 1"),
        (no_numbers, "window_stride"),
        (swap_tensors, "instead of"),
    ],
)
def test_a_damaged_cache_is_refused_with_one_sentence(
    tmp_path: Path, change: Callable[[Path, dict[str, Any]], None], said: str
) -> None:
    path = damaged(tmp_path / "c", change)
    with pytest.raises(DataError, match=said) as error:
        Cache.open(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [shorten, drop_shard])
def test_encoding_again_restores_a_damaged_shard(
    tmp_path: Path, change: Callable[[Path, dict[str, Any]], None]
) -> None:
    path = damaged(tmp_path / "c", change)
    encode(path)
    assert content(path) == EXPECTED


def test_what_is_not_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cache at"):
        Cache.open(tmp_path / "none")
    with pytest.raises(DataError, match="not a latent cache"):
        Cache.open(tmp_path)


def test_a_shard_that_shrinks_while_open_is_named(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    cache = Cache.open(tmp_path / "c")
    shorten(tmp_path / "c", cache.manifest.model_dump())
    with pytest.raises(DataError, match="is truncated"):
        cache.read(range(len(cache)))


def test_a_reader_works_in_another_process(tmp_path: Path) -> None:
    encode(tmp_path / "c")
    cache = Cache.open(tmp_path / "c")
    whole = cache.read(range(7))
    copy = pickle.loads(pickle.dumps(cache))  # what a spawned worker gets
    assert torch.equal(copy.read(range(7)), whole)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # what a forked worker does, sharing the open files
        for _ in range(50):
            cache.read(range(7))
        os.write(writing, b"1" if torch.equal(cache.read(range(7)), whole) else b"0")
        os._exit(0)
    for _ in range(50):
        assert torch.equal(cache.read(range(7)), whole)
    assert os.read(reading, 1) == b"1"
    os.waitpid(child, 0)
    os.close(reading)
    os.close(writing)


def test_statistics_do_not_depend_on_how_clips_fell_into_shards() -> None:
    z = np.random.default_rng(0).uniform(-1, 1, (700, 2, 26)).astype(np.float16)
    whole = cache_shard._plane_sums(z, IDENTITY.shape)
    parts = [cache_shard._plane_sums(part, IDENTITY.shape) for part in (z[:11], z[11:])]
    for k in range(2):
        np.testing.assert_allclose(whole[k], parts[0][k] + parts[1][k], rtol=1e-12)
