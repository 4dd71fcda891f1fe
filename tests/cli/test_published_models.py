"""Published `.pth` files where a model is expected: found by content, described by a preset."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from recipe import published_state
from scoring import write_noise
from test_convert import SIZES

from pvdm_cli import shipped
from pvdm_cli.config import ModelConfig
from pvdm_cli.errors import ModelError
from pvdm_cli.model import load_model
from pvdm_cli.published.files import write_state
from pvdm_cli.published.names import NETWORKS, buffers, build, entries
from pvdm_cli.published.pair import fitting_preset
from pvdm_cli.published.paths import published_files
from pvdm_cli.published.sizes import Weights
from pvdm_cli.video.read import probe

Pvdm = Callable[..., Any]
Refusal = Callable[..., str]
CONVERT = "`pvdm convert --autoencoder AE.pth --denoiser UNET.pth --preset PRESET --out MODEL`"


@pytest.fixture
def preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shipped preset of networks that are small enough for a test."""
    folder = tmp_path / "presets" / "small"
    folder.mkdir(parents=True)
    values = SIZES.model_dump(mode="json", exclude_none=True)
    path = folder / "diffusion.yaml"
    values |= {"stage": "diffusion", "diffusion": {"num_timesteps": 20}}
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setattr(shipped, "presets_dir", lambda: tmp_path / "presets")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Published weights under names that tell nothing."""
    folder = tmp_path / "published"
    folder.mkdir()
    write_state(published_state("denoiser", SIZES), folder / "a.pth")
    write_state(published_state("autoencoder", SIZES), folder / "b.pth")
    return folder


@pytest.mark.usefixtures("preset")
def test_published_weights_draw_what_their_conversion_draws(
    pvdm: Pvdm, folder: Path, tmp_path: Path
) -> None:
    files = ["--autoencoder", folder / "b.pth", "--denoiser", folder / "a.pth"]
    words = ["convert", *files, "--preset", "small/diffusion", "--out", tmp_path / "model"]
    assert pvdm(*words, "-q").code == 0

    def draw(model: object, name: str) -> NDArray[np.uint8]:
        words = ["--frames", 6, "--steps", "2/2", "--fps", 8, "--format", "npz", "--device", "cpu"]
        result = pvdm("sample", model, *words, "--out", tmp_path / name)
        assert result.code == 0, result.err
        assert ("published weights" in result.err) == (name != "converted")
        with np.load(tmp_path / name / "video-00000.npz") as file:
            return np.asarray(file["frames"])

    expected = draw(tmp_path / "model", "converted")
    assert np.array_equal(draw(folder, "folder"), expected)
    assert np.array_equal(draw(f"{folder}/b.pth+{folder}/a.pth", "pair"), expected)
    told = json.loads((tmp_path / "pair" / "video-00000.json").read_text())
    assert told["model"] == f"{folder}/b.pth+{folder}/a.pth"


@pytest.mark.usefixtures("preset")
def test_an_autoencoder_alone_encodes_decodes_and_is_scored(
    pvdm: Pvdm, folder: Path, tmp_path: Path
) -> None:
    videos = write_noise(tmp_path / "videos", 8, 8, suffix="mp4")
    alone, cache = folder / "b.pth", tmp_path / "cache"
    encoded = pvdm("encode", videos, "--autoencoder", alone, "--out", cache, "--workers", 0)
    assert encoded.code == 0, encoded.err
    assert pvdm("decode", cache, "--out", tmp_path / "decoded", "--device", "cpu").code == 0
    assert probe(next((tmp_path / "decoded").glob("*.mp4"))).num_frames == 8
    words = ["eval", "reconstruction", alone, "--data", videos, "--split", "all", "--json"]
    assert json.loads(pvdm(*words).out)["psnr"] > 0
    assert load_model(alone, "cpu").denoiser is None
    assert "holds an autoencoder only" in pvdm("sample", alone, "--fps", 8).err


@pytest.mark.usefixtures("preset")
def test_info_tells_what_published_weights_are(pvdm: Pvdm, folder: Path) -> None:
    for name in (folder, f"{folder}/a.pth+{folder}/b.pth"):
        told = json.loads(pvdm("info", name, "--json").out)
        assert (told["kind"], told["preset"]) == ("published weights", "small/diffusion")
        assert told["networks"]["denoiser"]["file"] == "a.pth"
        assert (
            told["networks"]["denoiser"]["parameters"]
            > told["networks"]["autoencoder"]["parameters"]
        )


@pytest.mark.usefixtures("preset")
def test_what_is_not_clear_is_refused(refusal: Refusal, folder: Path) -> None:
    assert "does not know the frame rate" in refusal("sample", folder, "--steps", 2, "-q")
    assert "a published U-Net without its autoencoder" in refusal("sample", folder / "a.pth")
    assert "c.pth: No such file" in refusal("sample", f"{folder}/b.pth+{folder}/c.pth")
    (folder / "c.pth").write_bytes((folder / "b.pth").read_bytes())
    said = refusal("sample", folder)
    assert f"{folder}/b.pth and {folder}/c.pth both hold a published autoencoder" in said
    write_state({}, folder / "c.pth")
    assert "neither a published autoencoder nor a published U-Net" in refusal("sample", folder)
    for words in (["push", folder, "me/sky", "--dry-run"], ["bench", "sample", str(folder)]):
        assert CONVERT in refusal(*words)


def test_weights_of_no_shipped_size_have_to_be_described(refusal: Refusal, folder: Path) -> None:
    said = refusal("sample", folder)
    assert "published weights of sizes that no shipped preset has" in said
    assert CONVERT in said


def test_presets_of_one_size_that_mean_different_models_are_not_guessed_at(
    preset: Path, folder: Path
) -> None:
    values = yaml.safe_load(preset.read_text())
    other = preset.with_name("other.yaml")
    values["diffusion"]["prefix_prob"] = 0.7  # of training alone
    other.write_text(yaml.safe_dump(values))
    assert load_model(folder, "cpu").provenance["preset"] == "small/diffusion"
    values["denoiser"]["num_heads"] = 2
    other.write_text(yaml.safe_dump(values))
    with pytest.raises(ModelError, match="may be of small/diffusion or small/other; say of which"):
        load_model(folder, "cpu")


@pytest.mark.parametrize("name", ["sky/diffusion-s", "ucf101/diffusion-l", "sky/autoencoder"])
def test_the_released_sizes_are_known_by_their_shapes(name: str) -> None:
    config = ModelConfig.model_validate(
        {
            key: value
            for key, value in yaml.safe_load(shipped.preset_path(name).read_text()).items()
            if key in ModelConfig.model_fields
        }
    )

    def shapes(kind: str) -> Weights:
        network = build(NETWORKS[kind], config)
        published = {entry.published: entry.shape for entry in entries(network)}
        weights = Weights({}, f"{kind}.pth")
        tables = {key: tuple(value.shape) for key, value in buffers(network, config).items()}
        weights.shapes = published | tables
        return weights

    denoiser = shapes("denoiser") if config.denoiser else None
    _, found = fitting_preset(shapes("autoencoder"), denoiser)
    assert found.denoiser == config.denoiser
    assert found.autoencoder == config.autoencoder
    assert found.clip == config.clip


def test_a_plus_in_a_folder_is_no_second_file(tmp_path: Path) -> None:
    assert published_files("a+b/ae.pth") == [Path("a+b/ae.pth")]
    assert published_files("a+b/ae.pth+c/u.pth") == [Path("a+b/ae.pth"), Path("c/u.pth")]
    assert published_files("me/sky@v1") == []
    assert published_files(tmp_path) == []
