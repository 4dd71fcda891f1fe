"""`pvdm convert`, both ways, as a user calls it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from recipe import published_state
from torch import Tensor

from pvdm_cli.config import ModelConfig
from pvdm_cli.latents import flatten
from pvdm_cli.model import Model, load_model, save_model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.published.files import write_state

SIZES = ModelConfig.model_validate(
    {
        "clip": {"frames": 4, "height": 32, "width": 48},
        "autoencoder": {
            "patch": 8,
            "width": 16,
            "depth": 1,
            "num_heads": 2,
            "head_dim": 8,
            "latent_channels": 3,
            "projection_depth": 1,
        },
        "denoiser": {
            "base_channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_downsamplings": (1,),
            "num_heads": 4,
        },
    }
)
HEADS = "denoiser.num_heads=4"  # the one size that no shape tells
Files = dict[str, Path]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    """Published files of both networks."""
    paths = {kind: tmp_path / f"{kind}.pth" for kind in ("autoencoder", "denoiser")}
    for kind, path in paths.items():
        write_state(published_state(kind, SIZES), path)
    return paths


def imports(files: Files, out: Path, *kinds: str) -> list[Any]:
    """Words that import the files of some kinds."""
    options = [word for kind in kinds for word in (f"--{kind}", files[kind])]
    return ["convert", *options, "--preset", "ucf101/diffusion-l", "--out", out]


def same(path: Path, state: dict[str, Tensor]) -> bool:
    """Whether a file holds a state dict, bit for bit."""
    found = torch.load(path, weights_only=True)
    return found.keys() == state.keys() and all(torch.equal(found[k], state[k]) for k in state)


def test_there_and_back_again_is_exact_and_the_model_works(
    pvdm: Callable[..., Any], files: Files, tmp_path: Path
) -> None:
    model, back = tmp_path / "model", tmp_path / "back"
    words = imports(files, model, "autoencoder", "denoiser")
    result = pvdm(*words, HEADS, "--fps", 25, "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["files"] == ["autoencoder.safetensors", "denoiser.safetensors"]
    assert "autoencoder.width is 16 (384 in the preset)" in result.err

    loaded = load_model(model, "cpu")
    assert loaded.fps == 25
    assert loaded.config.denoiser == SIZES.denoiser
    z = flatten(loaded.autoencoder.encode(torch.zeros(1, 3, 4, 32, 48)))
    assert loaded.denoiser is not None
    assert loaded.denoiser(z, torch.tensor([5])).shape == z.shape

    assert pvdm("convert", model, "--to-published", back).code == 0
    for kind, path in files.items():
        assert same(back / path.name, published_state(kind, SIZES))


@pytest.mark.parametrize("kind", ["autoencoder", "denoiser"])
def test_either_network_may_be_absent(
    pvdm: Callable[..., Any], files: Files, tmp_path: Path, kind: str
) -> None:
    model, back = tmp_path / "model", tmp_path / "back"
    told = [HEADS, "clip.frames=4", "clip.height=32", "clip.width=48"]
    result = pvdm(*imports(files, model, kind), *(told if kind == "denoiser" else []), "-q")
    assert (result.code, result.err) == (0, "")
    assert sorted(path.name for path in model.iterdir()) == [f"{kind}.safetensors", "model.json"]
    assert pvdm("convert", model, "--to-published", back, "-q").code == 0
    assert [path.name for path in back.iterdir()] == [f"{kind}.pth"]
    expected = published_state(kind, SIZES)
    assert same(back / f"{kind}.pth", expected)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "convert needs --preset"),
        (["--preset", "sky/diffusion-l", "--out", "{tmp}/new"], "nothing to convert"),
        (["--to-published", "{tmp}/back"], "--to-published takes one MODEL"),
        (["{tmp}/nowhere", "--to-published", "{tmp}/back"], "no such folder"),
        (["--autoencoder", "{tmp}/no.pth", "--preset", "sky/diffusion-l", "--out", "{tmp}/new"],
         "no.pth: No such file"),
        (["--autoencoder", "{ae}", "--preset", "sky/diffusion-xl", "--out", "{tmp}/new"],
         "no preset 'sky/diffusion-xl'; did you mean"),
        (["--autoencoder", "{ae}", "--preset", "sky/diffusion-l", "--out", "{tmp}/new", "a.b=1"],
         "unknown key 'a'"),
        (["--autoencoder", "{ae}", "--preset", "sky/diffusion-l", "--out", "{tmp}/new",
          "autoencoder.width=32"], "autoencoder.width=32 contradicts the weights, which mean 16"),
        (["--autoencoder", "{ae}", "--preset", "sky/diffusion-l", "--out", "{tmp}"],
         "exists and is not a model folder"),
    ],
)  # fmt: skip
def test_refusals_are_one_sentence(
    refusal: Callable[..., str], files: Files, tmp_path: Path, words: list[str], says: str
) -> None:
    filled = [word.format(tmp=tmp_path, ae=files["autoencoder"]) for word in words]
    assert says in refusal("convert", *filled)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("denoiser", "positions", True),
        ("denoiser", "normalise", True),
        ("diffusion", "prefix_noise", 0.5),
    ],
)
def test_a_denoiser_with_more_than_the_published_one_is_not_written_as_one(
    pvdm: Callable[..., Any],
    refusal: Callable[..., str],
    files: Files,
    tmp_path: Path,
    section: str,
    key: str,
    value: object,
) -> None:
    more = getattr(tiny.CONFIG, section).model_copy(update={key: value})
    config = tiny.CONFIG.model_copy(update={section: more})
    save_model(Model(config, Autoencoder(config), Denoiser(config)), tmp_path / "model")
    said = refusal("convert", tmp_path / "model", "--to-published", tmp_path / "back")
    assert f"{section}.{key}={str(value).lower()}" in said
    assert not (tmp_path / "back").exists()

    words = imports(files, tmp_path / "imported", "autoencoder", "denoiser")
    told = f"{section}.{key}={value}"
    assert f"{told} contradicts" in refusal(*words, HEADS, told)


def test_what_is_there_is_replaced_only_when_asked(
    pvdm: Callable[..., Any], refusal: Callable[..., str], files: Files, tmp_path: Path
) -> None:
    model, back = tmp_path / "model", tmp_path / "back"
    words = imports(files, model, "autoencoder")
    assert pvdm(*words).code == 0
    assert "--overwrite" in refusal(*words)
    assert pvdm(*words, "--overwrite").code == 0
    export = ["convert", model, "--to-published", back]
    assert pvdm(*export).code == 0
    assert "--overwrite" in refusal(*export)
    assert pvdm(*export, "--overwrite").code == 0
