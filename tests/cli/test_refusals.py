"""What users get wrong most: each is one sentence, and exit code 1."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pvdm_cli import weights
from pvdm_cli.config import ModelConfig, parse_config
from pvdm_cli.model import Model, save_model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.video.write import write_video

Refusal = Callable[..., str]

TINY = {
    "clip": {"frames": 4, "height": 16, "width": 24},
    "autoencoder": {
        "patch": 8,
        "width": 16,
        "depth": 1,
        "num_heads": 2,
        "head_dim": 8,
        "projection_depth": 1,
        "projection_heads": 1,
        "projection_mlp": 16,
    },
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tiny autoencoder and no denoiser."""
    config = parse_config(ModelConfig, TINY, where="tiny")
    path = tmp_path_factory.mktemp("refusals") / "model"
    save_model(Model(config, Autoencoder(config).eval()), path)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one video of nine frames."""
    path = tmp_path_factory.mktemp("refusals") / "videos"
    path.mkdir()
    frames = torch.randint(0, 255, (9, 16, 24, 3), dtype=torch.uint8).numpy()
    write_video(path / "a.mp4", frames, fps=8)
    return path


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A path that cannot be written: it lies below a file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


def test_encode_names_a_path_that_is_not_there(
    refusal: Refusal, model: Path, tmp_path: Path
) -> None:
    nowhere, out = tmp_path / "nowhere", tmp_path / "cache"
    assert str(nowhere) in refusal("encode", nowhere, "--autoencoder", model, "--out", out)


def test_encode_says_that_a_folder_holds_no_videos(
    refusal: Refusal, model: Path, tmp_path: Path
) -> None:
    said = refusal("encode", tmp_path, "--autoencoder", model, "--out", tmp_path / "cache")
    assert "no videos found" in said


def test_encode_says_that_a_place_cannot_be_written(
    refusal: Refusal, model: Path, videos: Path, blocked: Path
) -> None:
    said = refusal("encode", videos, "--autoencoder", model, "--out", blocked, "-q")
    assert "cannot write" in said


def test_encode_names_a_model_that_is_not_there(
    refusal: Refusal, videos: Path, tmp_path: Path
) -> None:
    nowhere = tmp_path / "nowhere"
    said = refusal("encode", videos, "--autoencoder", nowhere, "--out", tmp_path / "cache")
    assert f"{nowhere}: no such folder" in said


def test_decode_names_a_folder_that_is_no_cache(refusal: Refusal, tmp_path: Path) -> None:
    said = refusal("decode", tmp_path, "--out", tmp_path / "out")
    assert "not a latent cache" in said


def test_sample_says_that_an_autoencoder_alone_cannot_sample(
    refusal: Refusal, model: Path, tmp_path: Path
) -> None:
    assert "holds an autoencoder only" in refusal("sample", model, "--out", tmp_path / "out")


def test_sample_refuses_a_device_that_does_not_exist(
    refusal: Refusal, model: Path, tmp_path: Path
) -> None:
    said = refusal("sample", model, "--device", "tpu", "--out", tmp_path / "out")
    assert "unknown device 'tpu'" in said


@pytest.mark.parametrize("steps", ["many", "0/3", "10/"])
def test_sample_refuses_impossible_steps(
    refusal: Refusal, model: Path, tmp_path: Path, steps: str
) -> None:
    assert "steps" in refusal("sample", model, "--steps", steps, "--out", tmp_path / "out")


@pytest.mark.parametrize("command", ["sample", "encode"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "missing, though model.json lists it"),
        ("truncated", "truncated or changed"),
        ("changed", "differs from its sha256"),
        ("no card", "neither a model folder"),
        ("half a card", "not JSON"),
        ("newer card", "format 99"),
        ("other sizes", "has shape"),
    ],
)
def test_a_damaged_model_is_named_with_what_is_wrong(
    refusal: Refusal,
    model: Path,
    videos: Path,
    tmp_path: Path,
    command: str,
    damage: str,
    said: str,
) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    weights, card = broken / "autoencoder.safetensors", broken / "model.json"
    content, text = weights.read_bytes(), card.read_text()
    match damage:
        case "missing":
            weights.unlink()
        case "truncated":
            weights.write_bytes(content[:-100])
        case "changed":
            weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "no card":
            card.unlink()
        case "half a card":
            card.write_text(text[:100])
        case "newer card":
            card.write_text(json.dumps({**json.loads(text), "format": 99}))
        case "other sizes":
            card.write_text(text.replace('"projection_mlp": 16', '"projection_mlp": 24'))
    words = {
        "sample": ["sample", broken, "--out", tmp_path / "out"],
        "encode": ["encode", videos, "--autoencoder", broken, "--out", tmp_path / "out"],
    }
    assert said in refusal(*words[command])


TRAIN = ("train", "ucf101/autoencoder", "training.precision=fp32")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("loss.lpips=0", "training.step=3"), "did you mean 'steps'?"),
        (("loss.lpips=0", "clip.height=100"), "clip.height=100 is not a multiple of"),
        (("loss.lpips=0", "training.steps"), "not of the form key=value"),
    ],
)
def test_train_names_the_key_at_fault(
    refusal: Refusal, videos: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    assert said in refusal(*TRAIN, "--data", videos, "--out", tmp_path / "run", *words)


def test_train_names_frames_that_the_u_net_cannot_halve(
    refusal: Refusal, videos: Path, tmp_path: Path
) -> None:
    said = refusal(
        *("train", "ucf101/diffusion-s", "--cache", videos, "--out", tmp_path / "run"),
        "clip.frames=12",
    )
    assert "clip.frames is 12, which is not a multiple of 8" in said


def test_train_answers_an_unknown_preset_with_the_nearest(
    refusal: Refusal, videos: Path, tmp_path: Path
) -> None:
    said = refusal("train", "ucf101/autoencodr", "--data", videos, "--out", tmp_path / "run")
    assert "did you mean 'ucf101/autoencoder'?" in said


def test_train_says_how_to_get_the_weights_of_the_perceptual_loss_and_how_to_do_without(
    refusal: Refusal, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PVDM_WEIGHTS", str(tmp_path / "weights"))
    missing = replace(weights.VGG16, url=(tmp_path / "no.pth").as_uri())
    monkeypatch.setattr(weights, "VGG16", missing)
    said = refusal(*TRAIN, "--data", videos, "--out", tmp_path / "run", "-q")
    assert "loss.lpips=4 needs vgg16-397923af.pth" in said
    assert f"put it into {tmp_path / 'weights'} by hand" in said
    assert "or go without: loss.lpips=0" in said

    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / missing.file).write_bytes(b"an error page")
    said = refusal(*TRAIN, "--data", videos, "--out", tmp_path / "run", "-q")
    assert "not vgg16-397923af.pth, which has 553433881 bytes and not 13; remove it" in said


def test_train_says_what_it_still_needs(refusal: Refusal, tmp_path: Path) -> None:
    assert "--data" in refusal(*TRAIN, "--out", tmp_path / "run", "loss.lpips=0")


def test_train_names_data_that_is_not_there_or_empty(refusal: Refusal, tmp_path: Path) -> None:
    for data in (tmp_path / "nowhere", tmp_path):
        said = refusal(*TRAIN, "--data", data, "--out", tmp_path / "run", "loss.lpips=0")
        assert str(data) in said


def test_a_run_that_never_saved_may_be_started_again_with_other_settings(
    refusal: Refusal, tmp_path: Path
) -> None:
    words = (*TRAIN, "--data", tmp_path / "nowhere", "--out", tmp_path / "run", "loss.lpips=0")
    for seed in (1, 2):
        assert "nowhere" in refusal(*words, f"training.seed={seed}")


def test_train_says_that_a_place_cannot_be_written(
    refusal: Refusal, videos: Path, blocked: Path
) -> None:
    small = ["clip.height=16", "clip.width=24", "clip.frames=4"]
    small += [f"autoencoder.{key}={value}" for key, value in TINY["autoencoder"].items()]
    said = refusal(*TRAIN, "--data", videos, "--out", blocked, "loss.lpips=0", *small, "-q")
    assert "cannot write" in said
