"""`pvdm info` tells what a path is, from descriptions alone."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from pvdm_cli.config import load_config

Call = Callable[..., Any]
Refusal = Callable[..., str]


def make_model(path: Path) -> Path:
    """Write a model folder with two small tensors."""
    path.mkdir(parents=True)
    file = path / "autoencoder.safetensors"
    save_file({"a": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.float16)}, file)
    card = {
        "format": 1,
        "config": {"clip": {"frames": 8, "height": 64, "width": 48}},
        "fps": 12.5,
        "provenance": {"steps": 1234},
        "files": {file.name: {"bytes": file.stat().st_size, "sha256": ""}},
    }
    (path / "model.json").write_text(json.dumps(card))
    return path


def told(pvdm: Call, path: object) -> dict[str, Any]:
    result = pvdm("info", path, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert isinstance(found, dict)
    return found


def test_a_model_is_told_with_its_sizes_and_parameters(pvdm: Call, tmp_path: Path) -> None:
    found = told(pvdm, make_model(tmp_path / "model"))
    assert found["kind"] == "model"
    assert found["clip"] == "8 frames of 64x48, stride 1"
    assert found["latent"].startswith("[4, 160] = 4 x (8x6 + 8x6 + 8x8)")
    assert found["networks"] == {
        "autoencoder": {
            "parameters": 22,
            "dtype": "F16",
            "bytes": (tmp_path / "model" / "autoencoder.safetensors").stat().st_size,
        }
    }
    assert found["provenance"] == {"steps": 1234}


def test_the_lines_for_people_hold_the_same_facts(pvdm: Call, tmp_path: Path) -> None:
    out = pvdm("info", make_model(tmp_path / "model")).out
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["kind"] == "model"
    assert rows["provenance.steps"] == "1,234"
    assert rows["networks.autoencoder.parameters"] == "22"


def test_a_truncated_weight_file_is_one_sentence(refusal: Refusal, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    file = model / "autoencoder.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert "truncated or changed" in refusal("info", model)
    file.unlink()
    assert "missing, though model.json lists it" in refusal("info", model)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}', '{"config": 3, "files": {}}'])
def test_a_damaged_model_json_is_one_sentence(refusal: Refusal, tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    assert "model.json: damaged" in refusal("info", tmp_path)


def test_weights_that_are_no_safetensors_are_one_sentence(refusal: Refusal, tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    file = model / "autoencoder.safetensors"
    file.write_bytes(b"\xff" * file.stat().st_size)
    assert "not a safetensors file" in refusal("info", model)


def test_a_run_is_told_with_its_stage_checkpoints_and_last_figures(
    pvdm: Call, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").write_text("stage: autoencoder\ntraining: {steps: 30}\n")
    (tmp_path / "metrics.jsonl").write_text('{"step": 10}\n{"step": 20, "loss": 0.5}\n{"step"')
    for step in (10, 20):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (tmp_path / "latest").write_text("step-00000020\n")
    found = told(pvdm, tmp_path)
    assert found["kind"] == "run"
    assert found["stage"] == "autoencoder"
    assert found["checkpoints"] == [10, 20]
    assert found["latest"] == "step-00000020"
    assert found["last_metrics"] == {"step": 20, "loss": 0.5}


def test_a_preset_is_told_by_name_and_by_path(pvdm: Call, tmp_path: Path) -> None:
    pvdm("presets", "cp", "sky/diffusion-l", tmp_path / "mine.yaml")
    by_path, by_name = told(pvdm, tmp_path / "mine.yaml"), told(pvdm, "sky/diffusion-l")
    assert by_name["kind"] == by_path["kind"] == "preset"
    assert by_name["steps"] == by_path["steps"] == load_config("sky/diffusion-l").training.steps


def test_a_damaged_cache_is_one_sentence(refusal: Refusal, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json" in refusal("info", tmp_path)


def test_a_video_is_told_with_its_size(pvdm: Call, shared: Path) -> None:
    video = min((shared / "data" / "ucf101").rglob("*.avi"))
    found = told(pvdm, video)
    assert found["kind"] == "video"
    assert (found["height"], found["width"]) == (240, 320)


def test_a_folder_of_videos_is_told_with_their_number(pvdm: Call, shared: Path) -> None:
    found = told(pvdm, shared / "data" / "sky48_128")
    assert found["kind"] == "videos"
    assert found["videos"] == 48


def test_what_is_not_there_is_one_sentence(refusal: Refusal, tmp_path: Path) -> None:
    assert "no such file or folder" in refusal("info", tmp_path / "nothing")
    assert "did you mean 'sky/diffusion-l'?" in refusal("info", "sky/diffusion-ll")


def test_a_folder_or_file_that_is_nothing_we_know_is_one_sentence(
    refusal: Refusal, tmp_path: Path
) -> None:
    assert "no videos found" in refusal("info", tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    assert "notes.txt" in refusal("info", tmp_path / "notes.txt")
