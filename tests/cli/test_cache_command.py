"""`pvdm cache`: what it says of sound and of damaged caches, and that encoding again repairs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_model

from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import read_manifest
from pvdm_cli.model import save_model
from pvdm_cli.video import read
from pvdm_cli.video.write import write_video

Call = Callable[..., Any]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and three videos: noise, each darker than the one before."""
    path = tmp_path_factory.mktemp("place")
    save_model(tiny_model(with_denoiser=False), path / "model")
    (path / "videos").mkdir()
    for number in range(3):
        random = np.random.default_rng(number)
        frames = random.integers(250 // (1 + number), size=(9, 16, 24, 3), dtype=np.uint8)
        write_video(path / "videos" / f"{number}.mp4", frames, fps=8)
    return path


@pytest.fixture
def made(pvdm: Call, place: Path, tmp_path: Path) -> list[object]:
    """The words that make a cache at tmp_path/cache, which is there."""
    words = ["encode", place / "videos", "--autoencoder", place / "model", "-q"]
    words += ["--out", tmp_path / "cache", "--device", "cpu"]
    assert pvdm(*words).code == 0
    return words


def test_a_sound_cache_is_said_to_be_one(pvdm: Call, made: list[object], tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    whole = read_manifest(cache).sha256
    found = pvdm("cache", "verify", cache)
    assert found.code == 0
    assert found.out.startswith(f"{cache} is sound (every byte): 6 clips in 1 shards")
    assert found.out.endswith(f"sha256 {whole}\n")
    assert "(sizes, headers and index)" in pvdm("cache", "verify", cache, "--fast").out
    told = json.loads(pvdm("cache", "verify", cache, "--json").out)
    assert (told["sound"], told["problems"], told["sha256"]) == (True, [], whole)


def test_a_flipped_bit_is_named_and_the_same_command_repairs_it(
    pvdm: Call, made: list[object], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    before = Cache.open(cache).read(range(6))
    file = next(cache.glob("shard-*"))
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    found = pvdm("cache", "verify", cache)
    assert found.code == 1
    problem, command = found.out.splitlines()
    assert problem.startswith(f"{file} is damaged: ")
    assert problem.endswith("run the same `pvdm encode` again to restore it")
    assert command == f"it was made by: pvdm {' '.join(map(str, made))}"
    told = json.loads(pvdm("cache", "verify", cache, "--json").out)
    assert (told["sound"], told["problems"]) == (False, [{"file": file.name, "what": problem}])
    again = pvdm(*[word for word in made if word != "-q"])
    assert again.code == 0
    assert "damaged or missing shards: 1; their clips are encoded anew\n" in again.err
    assert pvdm("cache", "verify", cache).code == 0
    torch.testing.assert_close(Cache.open(cache).read(range(6)), before, atol=1e-3, rtol=1e-3)


def test_samples_agree_with_their_sources_and_other_clips_do_not(
    pvdm: Call, refusal: Refusal, made: list[object], place: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    found = pvdm("cache", "verify", cache, "--sample", 3, "--device", "cpu", "-q")
    assert (found.code, found.err) == (0, "")
    assert "0.mp4 from 0" in found.out
    assert "2.mp4 from 4" in found.out
    videos = tmp_path / "videos"
    shutil.copytree(place / "videos", videos)
    shutil.copy(videos / "0.mp4", videos / "2.mp4")  # not what was encoded
    words = ["cache", "verify", cache, "--sample", 9, "--data", videos, "--device", "cpu"]
    told = pvdm(*words, "-q", "--json")
    assert told.code == 1
    result = json.loads(told.out)
    wrong = [(one["video"], one["first"]) for one in result["samples"] if not one["agrees"]]
    assert wrong == [("2.mp4", 0), ("2.mp4", 4)]
    assert [problem["file"] for problem in result["problems"]] == [
        "shard-000-00000.safetensors"
    ] * 2
    assert "2.mp4 from frame 4 on decodes to" in result["problems"][1]["what"]
    (videos / "2.mp4").unlink()
    said = refusal(*words, "-q")
    assert "2.mp4 is not among the videos" in said
    assert "--data" in said
    assert "--data" in refusal(*words[:-3], tmp_path / "nowhere", "-q")


def test_info_tells_the_same_by_both_names(
    pvdm: Call, refusal: Refusal, made: list[object], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    told = pvdm("cache", "info", cache, "--json")
    assert told.out == pvdm("info", cache, "--json").out
    facts = json.loads(told.out)
    assert (facts["clips"], facts["shards"]) == (6, 1)
    assert facts["sha256"] == read_manifest(cache).sha256
    assert 0 < facts["fp16_loss"]["rms"] <= facts["fp16_loss"]["max"] < 2**-11
    assert "is not a latent cache" in refusal("cache", "info", tmp_path)
    assert "no cache at" in refusal("cache", "verify", tmp_path / "nowhere")


def test_previews_show_the_original_beside_the_decoded(
    pvdm: Call, refusal: Refusal, made: list[object], place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    words = ["cache", "preview", tmp_path / "cache", 2, "--out", out, "--device", "cpu"]
    told = json.loads(pvdm(*words, "--json", "-q").out)
    assert told["files"] == [f"{out}/000000-0-0.mp4", f"{out}/000005-2-4.mp4"]
    frames = read.read(out / "000005-2-4.mp4")
    assert frames.shape == (4, 16, 48, 3)
    original = read.read(place / "videos" / "2.mp4", start=4, count=4)
    left, right = (half.astype(float) for half in np.split(frames, 2, axis=2))
    assert abs(left - original).mean() < 10 < abs(right - original).mean()
    assert "is there already" in refusal(*words, "-q")
    assert pvdm(*words, "-q", "--overwrite").code == 0
