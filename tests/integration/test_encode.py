"""Real videos into a cache and back, by the library and by a process that is killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from pvdm_cli import api, decoding
from pvdm_cli.cli.app import app
from pvdm_cli.config import AutoencoderConfig, ClipConfig, ModelConfig
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import VideoRow
from pvdm_cli.data.catalog import Source, find_videos
from pvdm_cli.data.feed import Clip, Ended, Failed, Here, Job, clips_of, feed
from pvdm_cli.encoder import encode_clips, encode_measured
from pvdm_cli.encoding import encode_videos, identity_of, stamp
from pvdm_cli.errors import ConfigError, DataError, ModelError, PvdmError, VideoError
from pvdm_cli.latents import flatten
from pvdm_cli.model import Model, save_model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.progress import Silent
from pvdm_cli.video import pixels, read
from pvdm_cli.video.write import write_video

SIZES = ModelConfig(
    clip=ClipConfig(frames=16, height=32, width=48),
    autoencoder=AutoencoderConfig(
        patch=16, width=16, depth=1, num_heads=1, head_dim=8, projection_depth=1, projection_mlp=8
    ),
)


def model_of(seed: int) -> Model:
    """An untrained autoencoder, the same for the same seed."""
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        autoencoder = Autoencoder(SIZES).requires_grad_(False).eval()
    return Model(config=SIZES, autoencoder=autoencoder)


@pytest.fixture(scope="module")
def model() -> Model:
    return model_of(0)


@pytest.fixture(scope="module")
def model_folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "ae"
    save_model(model, path)
    return path


@pytest.fixture(scope="module")
def skies(shared: Path) -> list[Source]:
    """Four clips of 32 frames."""
    return find_videos(shared / "data" / "sky48_128")[:4]


@pytest.fixture(scope="module")
def sky_cache(model: Model, skies: list[Source], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sky") / "cache"
    encode_videos(model, skies, path, batch_size=3)
    return path


class Heard(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def pvdm(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    """Start the real command."""
    command = [sys.executable, "-m", "pvdm_cli.cli.app", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{**pipes, **options})


def test_each_row_is_the_latent_of_its_window(
    model: Model, skies: list[Source], sky_cache: Path
) -> None:
    cache = Cache.open(sky_cache)
    assert cache.index.tolist() == [[video, first, -1] for video in range(4) for first in (0, 16)]
    frames = read.read(skies[2].path, read.Geometry.of(SIZES.clip), start=16, count=16)
    expected = torch.from_numpy(encode_clips(model, frames[None]))
    torch.testing.assert_close(cache.read([5]), expected, atol=1e-3, rtol=1e-3)
    assert cache.manifest.fps == pytest.approx(read.probe(skies[0].path).fps)
    assert cache.manifest.fingerprint == model.fingerprint


def test_overlapping_windows_agree_with_touching_ones(
    model: Model, skies: list[Source], sky_cache: Path, tmp_path: Path
) -> None:
    encode_videos(model, skies[:2], tmp_path / "c", window_stride=5)
    cache, touching = Cache.open(tmp_path / "c"), Cache.open(sky_cache)
    assert cache.index[cache.index[:, 0] == 0, 1].tolist() == [0, 5, 10, 15]
    torch.testing.assert_close(cache.read([0, 4]), touching.read([0, 2]), atol=1e-3, rtol=1e-3)
    assert len(cache.pairs().first) == 0
    assert touching.pairs().first.tolist() == [0, 2, 4, 6]


def test_batches_hold_clips_of_different_videos(
    model: Model, skies: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    real = encode_measured
    monkeypatch.setattr(
        "pvdm_cli.encoder.encode_measured",
        lambda model, frames, precision: sizes.append(len(frames)) or real(model, frames),
    )
    encode_videos(model, skies, tmp_path / "c", batch_size=3)
    assert sizes == [3, 3, 2]


def test_a_failing_network_does_not_leave_threads_waiting(
    model: Model, skies: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("pvdm_cli.encoder.encode_measured", full)
    with pytest.raises(ZeroDivisionError):
        encode_videos(model, skies, tmp_path / "c", batch_size=1)


def test_windows_farther_apart_than_a_clip_skip_the_frames_between(skies: list[Source]) -> None:
    clip = ClipConfig(frames=4, frame_stride=2, height=32, width=48)
    identity = identity_of(model_of(0)).model_copy(update={"clip": clip, "window_stride": 6})
    events = list(clips_of(Job(7, skies[0].path), identity))
    assert [event.first for event in events[:-1]] == [0, 12, 24]
    assert isinstance(events[-1], Ended)
    assert events[-1].frames == 16
    frames = read.read(skies[0].path, read.Geometry.of(clip), start=12, stride=2, count=4)
    assert isinstance(events[1], Clip)
    np.testing.assert_array_equal(events[1].frames, frames)


def test_several_decoding_threads_give_the_same_clips(skies: list[Source]) -> None:
    identity = identity_of(model_of(0))
    jobs = [Job(video, source.path) for video, source in enumerate(skies)]
    found = list(feed(jobs, [Here(identity) for _ in range(3)], ahead=2))
    clips = sorted((e.video, e.first) for e in found if isinstance(e, Clip))
    assert clips == [(video, first) for video in range(4) for first in (0, 16)]
    assert sorted(e.video for e in found if isinstance(e, Ended)) == [0, 1, 2, 3]


@pytest.mark.slow
def test_every_odd_file_is_encoded_or_named_with_its_reason(
    model_folder: Path, shared: Path, tmp_path: Path
) -> None:
    odd = shared / "data" / "odd"
    out = tmp_path / "cache"
    options = ["--autoencoder", str(model_folder), "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, ["encode", str(odd), "--out", str(out), *options])
    assert done.exit_code == 3, done.output
    result = json.loads(done.stdout)
    skipped = {entry["path"]: entry["reason"] for entry in result["skipped"]}
    assert {"empty.mp4", "text.avi", "corrupted.mp4"} <= skipped.keys()
    assert "empty" in skipped["empty.mp4"]
    lines = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    assert {line["path"]: line["reason"] for line in lines} == skipped
    assert all(f"skipped {name}: {reason}\n" in done.stderr for name, reason in skipped.items())
    cache = Cache.open(out)
    names = {row.video: row.path for row in cache.videos}
    encoded = {names[video] for video in cache.index[:, 0].tolist()}
    assert encoded | skipped.keys() == {source.name for source in find_videos(odd)}
    assert len(encoded) == result["videos"] >= 15
    assert {"tree.avi", "video_90.mov"} <= encoded | skipped.keys()


def test_short_videos_are_skipped_saying_what_is_needed(
    model: Model, skies: list[Source], tmp_path: Path
) -> None:
    identity = identity_of(model).model_copy(
        update={"clip": SIZES.clip.model_copy(update={"frames": 33})}
    )
    assert list(clips_of(Job(0, skies[0].path), identity)) == [
        Failed(0, "only 32 frames, a clip needs 33")
    ]


def test_strict_stops_at_the_first_bad_video(
    model: Model, skies: list[Source], tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    sources = [Source(tmp_path / "bad.mp4", "bad.mp4"), *skies]
    with pytest.raises(VideoError, match=r"bad\.mp4"):
        encode_videos(model, sources, tmp_path / "c", strict=True)
    heard = Heard()
    result = encode_videos(model, sources, tmp_path / "c", reporter=heard)
    assert [entry.path for entry in result.skipped] == ["bad.mp4"]
    assert "bad.mp4" in heard.lines[0]
    with pytest.raises(DataError, match="none of the 1 videos could be encoded"):
        encode_videos(model, sources[:1], tmp_path / "d")


def test_a_decode_error_refuses_the_whole_video_or_keeps_what_precedes_it(
    model: Model, skies: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = read.stream

    def breaks(path: read.Readable, *args: Any, **options: Any) -> Any:
        for number, frame in enumerate(real(path, *args, **options)):
            if read.file_of(path) == skies[1].path and number == 20:
                raise VideoError(f"{skies[1].path}: broken at frame 20")
            yield frame

    monkeypatch.setattr("pvdm_cli.video.read.stream", breaks)
    result = encode_videos(model, skies[:3], tmp_path / "c", shard_bytes=1)
    assert [entry.path for entry in result.skipped] == [skies[1].name]
    assert Cache.open(tmp_path / "c").index[:, 0].tolist() == [0, 0, 2, 2]
    result = encode_videos(model, skies[:3], tmp_path / "d", keep_partial=True)
    assert not result.skipped
    assert Cache.open(tmp_path / "d").index[:, 0].tolist() == [0, 0, 1, 2, 2]
    assert "broken at frame 20" in (Cache.open(tmp_path / "d").videos[1].note or "")


def test_nothing_is_done_twice(
    model: Model, skies: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encode_videos(model, skies[:2], tmp_path / "c")
    assert (first.clips, first.new_clips) == (4, 4)
    monkeypatch.setattr("pvdm_cli.encoder.encode_measured", None)  # not called again
    again = encode_videos(model, skies[:2], tmp_path / "c")
    assert (again.clips, again.new_clips) == (4, 0)
    monkeypatch.undo()
    more = encode_videos(model, skies, tmp_path / "c")
    assert (more.clips, more.new_clips) == (8, 4)


def test_the_manifest_tells_what_fp16_costs_the_latents(
    model: Model, skies: list[Source], sky_cache: Path
) -> None:
    loss = Cache.open(sky_cache).manifest.fp16_loss
    assert loss is not None
    frames = [read.read(source.path, read.Geometry.of(SIZES.clip), count=16) for source in skies]
    x = pixels.to_float(torch.from_numpy(np.stack(frames)))
    z = flatten(model.autoencoder.encode(x))
    error = z.half().float() - z
    assert loss.rms == pytest.approx(float(error.square().mean().sqrt()), rel=0.1)
    assert 0 < float(error.abs().max()) <= loss.max * 1.01 < 2**-11  # z lies in (-1, 1)
    assert 1e-5 < loss.relative < 2**-11


def test_hashes_know_a_video_that_was_moved_and_folders_of_frames(
    model: Model, skies: list[Source], tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for source in skies[:2]:
        shutil.copy(source.path, folder / source.name)
    frames = read.read(skies[2].path, read.Geometry.of(SIZES.clip))
    write_video(folder / "stills", frames, 8)
    first = encode_videos(model, find_videos(folder), tmp_path / "c", by_hash=True)
    assert (first.clips, first.new_clips) == (6, 6)
    (folder / "below").mkdir()
    (folder / skies[0].name).rename(folder / "below" / "other.mp4")
    (folder / "stills").rename(folder / "images")
    os.utime(folder / skies[1].name)
    heard = Heard()
    again = encode_videos(model, find_videos(folder), tmp_path / "c", by_hash=True, reporter=heard)
    assert (again.clips, again.new_clips) == (6, 0)
    assert "2 videos are known under another name: not encoded again" in heard.lines
    images = find_videos(folder)[1]
    assert images.name == "images"
    before = stamp(images, by_hash=True).sha256
    frame = next((folder / "images").iterdir())
    frame.write_bytes(frame.read_bytes() + b"x")
    assert stamp(images, by_hash=True).sha256 != before
    changed = encode_videos(model, find_videos(folder), tmp_path / "c", by_hash=True)
    assert (changed.clips, changed.new_clips) == (6, 2)


def test_another_autoencoder_is_refused_by_encode_and_by_decode(
    model: Model, skies: list[Source], sky_cache: Path, tmp_path: Path
) -> None:
    other = model_of(1)
    named = f"{model.fingerprint[:16]}.*{other.fingerprint[:16]}"
    with pytest.raises(DataError, match=named):
        encode_videos(other, skies, sky_cache)
    with pytest.raises(DataError, match=named):
        decoding.decode_cache(other, Cache.open(sky_cache), tmp_path)


@pytest.mark.slow
def test_a_killed_process_is_continued_by_the_same_command(
    model_folder: Path, skies: list[Source], sky_cache: Path, tmp_path: Path
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "cache"
    folder.mkdir()
    for source in skies:
        (folder / source.name).symlink_to(source.path)
    command = ["encode", folder, "--autoencoder", model_folder, "--out", out, "-q"]
    options = ["--batch-size", 1, "--shard-seconds", 0, "--window-stride", 1, "--device", "cpu"]
    process = pvdm(*command, *options)
    try:
        deadline = time.monotonic() + 60
        while (
            len(list(out.glob("shard-*"))) < 3
            and process.poll() is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    saved = len(list(out.glob("shard-*")))
    assert saved >= 3
    with pytest.raises(DataError, match="unfinished"):
        Cache.open(out)
    process = pvdm(*command, *options, "--json")
    stdout, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (0, "")
    result = json.loads(stdout)
    assert result["clips"] == 4 * 17
    assert result["new_clips"] <= 4 * 17 - saved  # what was saved is not encoded again
    whole, whole_path = Cache.open(out), tmp_path / "whole"
    encode_videos(_loaded(model_folder), find_videos(folder), whole_path, window_stride=1)
    uninterrupted = Cache.open(whole_path)
    assert torch.equal(whole.index, uninterrupted.index)
    rows = range(len(whole))
    torch.testing.assert_close(whole.read(rows), uninterrupted.read(rows), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(whole.manifest.mean, uninterrupted.manifest.mean, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_killed_process_keeps_classes_and_another_list_changes_them_without_encoding(
    model_folder: Path, skies: list[Source], tmp_path: Path
) -> None:
    for source, name in zip(skies, ("dawn", "noon", "dawn", "dusk"), strict=True):
        (tmp_path / "videos" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / name / source.name).symlink_to(source.path)
    out, table = tmp_path / "cache", tmp_path / "table.csv"
    command = ["encode", tmp_path / "videos", "--autoencoder", model_folder, "--out", out, "-q"]
    options = ["--batch-size", 1, "--shard-seconds", 0, "--device", "cpu", "--labels"]
    process = pvdm(*command, *options, "folders")
    deadline = time.monotonic() + 60
    while not list(out.glob("shard-*")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.communicate()
    process = pvdm(*command, *options, "folders", "--json")
    result = json.loads(process.communicate(timeout=60)[0])
    assert (process.returncode, result["classes"]) == (0, ["dawn", "dusk", "noon"])
    cache = Cache.open(out)
    folders = [Path(row.path).parent.name for row in cache.videos]
    labels = [result["classes"].index(name) for name in folders for _ in range(2)]
    assert cache.index[:, 2].tolist() == labels

    names = [row.path for row in cache.videos]
    lines = ["path,label", f"{names[0]},night", f"{names[1]},noon", f"{names[2]},", "lost.mp4,noon"]
    table.write_text("\n".join(lines))
    process = pvdm(*command, *options, table, "--json")
    stdout, _ = process.communicate(timeout=60)
    result = json.loads(stdout)
    assert (process.returncode, result["missing"]) == (3, ["lost.mp4"])
    assert (result["new_clips"], result["clips"]) == (0, 6)
    assert result["classes"] == ["dawn", "dusk", "noon", "night"]
    assert Cache.open(out).index[:, 2].tolist() == [3, 3, 2, 2, -1, -1]
    told = json.loads(CliRunner().invoke(app, ["info", str(out), "--json"]).stdout)
    assert told["classes"] == {"dawn": 0, "dusk": 0, "noon": 1, "night": 1, "(none)": 1}


def _loaded(path: Path) -> Model:
    from pvdm_cli.model import load_model

    return load_model(path, device="cpu")


@pytest.mark.parametrize(("stride", "frames"), [(16, 32), (5, 31), (20, 16)])
def test_a_cache_decodes_to_videos_as_long_as_what_was_encoded(
    model: Model, skies: list[Source], tmp_path: Path, stride: int, frames: int
) -> None:
    encode_videos(model, skies[:2], tmp_path / "c", window_stride=stride)
    result = decoding.decode_cache(model, Cache.open(tmp_path / "c"), tmp_path / "out", num=1)
    info = read.probe(tmp_path / "out" / skies[0].name)
    assert result.files == [info.path]
    assert (result.frames, info.height, info.width) == (frames, 32, 48)
    assert len(read.read(info.path)) == frames
    assert info.fps == pytest.approx(read.probe(skies[0].path).fps)


def test_decoded_frames_are_those_of_the_cached_latents(
    model: Model, sky_cache: Path, tmp_path: Path
) -> None:
    cache = Cache.open(sky_cache)
    decoding.decode_cache(model, cache, tmp_path, format="npz", num=2, batch_size=3)
    with np.load(tmp_path / "sky_01.npz") as written:
        frames = written["frames"]
    expected = decoding.decode_clips(model, cache.read([2, 3]))
    np.testing.assert_allclose(frames, np.concatenate(expected), atol=1)
    with pytest.raises(DataError, match=r"sky_00\.npz is there already"):
        decoding.decode_cache(model, cache, tmp_path, format="npz")
    again = decoding.decode_cache(model, cache, tmp_path, format="npz", overwrite=True)
    assert len(again.files) == 4


def test_videos_of_one_stem_keep_their_suffixes(tmp_path: Path) -> None:
    rows = [VideoRow(k, name, 0, 0) for k, name in enumerate(["a/x.avi", "a/x.mp4", "y.gif"])]
    assert decoding._targets(rows, tmp_path, "mp4") == [
        tmp_path / "a" / "x.avi.mp4",
        tmp_path / "a" / "x.mp4.mp4",
        tmp_path / "y.mp4",
    ]


@pytest.mark.parametrize(
    ("firsts", "chosen"),
    [
        ([0, 4, 8], [(0, 0), (1, 0), (2, 0)]),
        ([0, 2, 4, 6], [(0, 0), (2, 0), (3, 2)]),
        ([0, 3, 6], [(0, 0), (1, 1), (2, 1)]),
        ([0, 1, 2, 3], [(0, 0), (3, 1)]),
        ([0, 7], [(0, 0), (1, 0)]),
    ],
)
def test_clips_of_4_frames_are_chosen_to_show_each_frame_once(
    firsts: list[int], chosen: list[tuple[int, int]]
) -> None:
    assert decoding.cover(firsts, 4) == chosen


def test_the_commands_round_trip_and_refuse_in_one_sentence(
    model_folder: Path, skies: list[Source], tmp_path: Path
) -> None:
    run = CliRunner().invoke
    cache, out = str(tmp_path / "cache"), str(tmp_path / "out")
    made = run(
        app,
        [
            "encode",
            str(skies[0].path),
            "--out",
            cache,
            "--autoencoder",
            str(model_folder),
            "--json",
        ],
    )
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["clips"] == 2
    assert "1 videos, 2 clips" in made.stderr
    back = run(app, ["decode", cache, "--out", out, "--format", "gif", "--json", "-q"])
    assert back.exit_code == 0, back.output
    assert json.loads(back.stdout)["files"] == [f"{out}/sky_00.gif"]
    for arguments, said in [
        (["encode", str(tmp_path / "none"), "--out", cache], "no such file or folder"),
        (["encode", out, "--out", out, "--autoencoder", str(model_folder)], "nor a cache"),
        (["decode", out, "--out", cache], "not a latent cache"),
    ]:
        failed = run(app, arguments)
        assert isinstance(failed.exception, PvdmError), arguments
        assert said in str(failed.exception)


def test_a_model_that_has_moved_is_asked_for(
    model: Model, skies: list[Source], tmp_path: Path
) -> None:
    encode_videos(model, skies[:1], tmp_path / "c", hints=("moved/away", "videos"))
    with pytest.raises(ModelError, match=r"moved/away.*--autoencoder"):
        api.decode(tmp_path / "c", tmp_path / "out")
    encode_videos(model, skies[:1], tmp_path / "d")
    with pytest.raises(DataError, match="give --autoencoder"):
        api.decode(tmp_path / "d", tmp_path / "out")


def test_impossible_settings_are_refused(model: Model, skies: list[Source], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="window_stride=0"):
        encode_videos(model, skies, tmp_path / "c", window_stride=0)
    with pytest.raises(ConfigError, match="precision='fp8'"):
        encode_videos(model, skies, tmp_path / "c", precision="fp8")
    assert not (tmp_path / "c").exists()
