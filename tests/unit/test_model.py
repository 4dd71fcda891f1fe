"""Model folders and run folders: what is written reads back, what is damaged is named."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tiny import CONFIG, tiny_model

from pvdm_cli import model as model_module
from pvdm_cli.config import ModelConfig
from pvdm_cli.errors import ModelError, PvdmError
from pvdm_cli.model import (
    Model,
    find_checkpoint,
    fingerprint,
    list_checkpoints,
    load_model,
    resolve_model,
    save_model,
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    model = tiny_model()
    model.provenance = {"data": "skies", "step": 3}
    save_model(model, path)
    return path


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a model.json."""
    path = folder / "model.json"
    card = json.loads(path.read_text())
    change(card)
    path.write_text(json.dumps(card))


def test_a_model_reads_back_as_it_was_written(saved: Path) -> None:
    before, after = tiny_model(), load_model(saved, "cpu")
    assert after.config == before.config
    assert after.fps == 7
    assert after.provenance == {"data": "skies", "step": 3}
    assert after.fingerprint == before.fingerprint
    for name in ("autoencoder", "denoiser"):
        ours, theirs = getattr(before, name), getattr(after, name)
        for key, value in ours.state_dict().items():
            assert torch.equal(theirs.state_dict()[key], value), key
        assert not theirs.training
        assert not any(parameter.requires_grad for parameter in theirs.parameters())
    z_t, t = torch.ones(2, 4, CONFIG.latent.flat), torch.tensor([1, 19])
    assert before.denoiser is not None
    assert after.denoiser is not None
    torch.testing.assert_close(after.denoiser(z_t, t), before.denoiser(z_t, t))


def test_either_network_may_be_absent_but_every_command_needs_the_autoencoder(
    copy: Path, tmp_path: Path
) -> None:
    save_model(tiny_model(with_denoiser=False), tmp_path / "alone")
    alone = load_model(tmp_path / "alone", "cpu")
    assert alone.denoiser is None
    with pytest.raises(ModelError, match="here holds an autoencoder only"):
        alone.require_denoiser("here")
    edit(copy, lambda card: card["files"].pop("autoencoder.safetensors"))
    with pytest.raises(ModelError, match="holds no autoencoder"):
        load_model(copy, "cpu")


def test_half_precision_is_half_the_size_and_read_as_float32(saved: Path, tmp_path: Path) -> None:
    model = tiny_model()
    save_model(model, tmp_path / "half", half=True)
    sizes = [(path / "denoiser.safetensors").stat().st_size for path in (saved, tmp_path / "half")]
    assert sizes[1] < 0.6 * sizes[0]
    loaded = load_model(tmp_path / "half", "cpu")
    assert loaded.denoiser is not None
    assert model.denoiser is not None
    for key, value in loaded.denoiser.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, model.denoiser.state_dict()[key].half().float())
    save_model(loaded, tmp_path / "again", half=True)
    again = load_model(tmp_path / "again", "cpu")
    assert again.fingerprint == loaded.fingerprint != model.fingerprint


def test_the_fingerprint_hears_of_every_weight_of_the_autoencoder_only() -> None:
    model, before = tiny_model(), tiny_model().fingerprint
    assert model.denoiser is not None
    next(model.denoiser.parameters()).zero_()
    assert fingerprint(model.autoencoder) == before
    list(model.autoencoder.parameters())[-1].view(-1)[-1] += 1e-6
    assert fingerprint(model.autoencoder) != before


def flip_last_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def rename_weight(folder: Path) -> None:
    """Weights under another name, with a card that agrees."""
    file = folder / "autoencoder.safetensors"
    weights = safetensors.torch.load_file(file)
    weights["other"] = weights.pop("to_pixels.bias")
    written = model_module.write_tensors(weights, file)
    edit(folder, lambda card: card["files"].update({file.name: written}))


def make_noise(folder: Path) -> None:
    """A file that is no safetensors file, with a card that agrees."""
    file = folder / "autoencoder.safetensors"
    file.write_bytes(b"\xff" * 64)
    listed = {"bytes": 64, "sha256": model_module.sha256(file)}
    edit(folder, lambda card: card["files"].update({file.name: listed}))


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (
        lambda f: (f / "denoiser.safetensors").unlink(),
        r"denoiser\.safetensors: missing, though model\.json lists it",
    ),
    "truncated": (
        lambda f: os.truncate(f / "denoiser.safetensors", 100),
        r"denoiser\.safetensors: 100 bytes where model\.json says \d+: .*truncated",
    ),
    "changed": (
        lambda f: flip_last_byte(f / "autoencoder.safetensors"),
        r"autoencoder\.safetensors: content differs from its sha256",
    ),
    "no card": (lambda f: (f / "model.json").unlink(), "neither a model folder"),
    "half a card": (lambda f: os.truncate(f / "model.json", 99), r"model\.json: not JSON"),
    "binary card": (lambda f: (f / "model.json").write_bytes(b"\xff\x00"), "not JSON"),
    "a list": (lambda f: (f / "model.json").write_text("[]"), "not a model description"),
    "no config": (lambda f: edit(f, lambda c: c.pop("config")), "not a model description"),
    "no list": (lambda f: edit(f, lambda c: c.update(files=[])), "does not list its files"),
    "no size": (
        lambda f: edit(f, lambda c: c.update(files={"autoencoder.safetensors": {}})),
        "does not list its files",
    ),
    "newer": (lambda f: edit(f, lambda c: c.update(format=2)), "format 2, this version reads 1"),
    "unknown key": (
        lambda f: edit(f, lambda c: c["config"]["clip"].update(heigth=3)),
        "unknown key 'heigth' in clip; did you mean 'height'",
    ),
    "other shape": (
        lambda f: edit(f, lambda c: c["config"]["autoencoder"].update(projection_mlp=24)),
        r"weight 'projections\.\w+\.blocks\.0\.feed_forward\.\S+' has shape .* needs .*24",
    ),
    "deeper": (
        lambda f: edit(f, lambda c: c["config"]["autoencoder"].update(depth=2)),
        r"weight 'decoder\.blocks\.1\.\S+' is missing; weights and configuration do not match",
    ),
    "other names": (rename_weight, "weight 'other' is not part of the network"),
    "noise": (make_noise, r"autoencoder\.safetensors: not readable"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_sentence_that_names_the_file_and_what_is_wrong(
    copy: Path, kind: str
) -> None:
    damage, expected = DAMAGE[kind]
    damage(copy)
    with pytest.raises(ModelError, match=expected) as found:
        load_model(copy, "cpu")
    assert str(copy) in str(found.value)
    assert "\n" not in str(found.value)


def test_a_full_disk_is_one_sentence_and_leaves_the_old_model(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise safetensors.SafetensorError("No space left on device")

    before = (copy / "autoencoder.safetensors").read_bytes()
    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(PvdmError, match=r"cannot write .*No space left"):
        save_model(tiny_model(), copy)
    assert (copy / "autoencoder.safetensors").read_bytes() == before
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A run folder of three checkpoints, the newest saved just before a kill."""
    run = tmp_path / "run"
    for step in (20, 100, 40):
        shutil.copytree(saved, run / "checkpoints" / f"step-{step:08d}" / "model")
    (run / "latest").write_text("step-00000040\n")
    return run


def test_a_run_folder_stands_for_its_newest_checkpoint_or_the_one_asked_for(run: Path) -> None:
    assert resolve_model(run) == run / "checkpoints" / "step-00000100" / "model"
    assert resolve_model(str(run), 20) == run / "checkpoints" / "step-00000020" / "model"
    assert load_model(run, "cpu", checkpoint=40).fps == 7
    with pytest.raises(ModelError, match=r"no checkpoint of step 30 \(there are: 20, 40, 100\)"):
        resolve_model(run, 30)
    with pytest.raises(ModelError, match="no best checkpoint is known"):
        resolve_model(run, "best")
    (run / "best").write_text("step-00000020\n")
    assert resolve_model(run, "best") == run / "checkpoints" / "step-00000020" / "model"


def test_what_kills_leave_behind_is_not_taken_for_a_checkpoint(run: Path) -> None:
    checkpoints = run / "checkpoints"
    for name in (".step-00000300.17.partial", ".step-00000200.3.old", "step-newest00"):
        shutil.copytree(checkpoints / "step-00000020", checkpoints / name)
    (checkpoints / "step-00000400" / "model").mkdir(parents=True)
    (run / "latest").write_text("step-00000400\n")
    assert [path.name[-3:] for path in list_checkpoints(run)] == ["020", "040", "100"]
    assert find_checkpoint(run).name == "step-00000100"
    shutil.rmtree(checkpoints)
    (run / "latest").write_bytes(b"\xff")
    with pytest.raises(ModelError, match="no checkpoint yet"):
        resolve_model(run)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_model_says_what_would_be_accepted(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="a model folder"):
        load_model(tmp_path / name, "cpu")


def test_a_checkpoint_can_only_be_asked_of_a_run(saved: Path) -> None:
    for name in (str(saved), "demo", "hf:a/b"):
        with pytest.raises(ModelError, match="not a run folder, so there is no checkpoint 5"):
            resolve_model(name, 5)


def test_the_demo_is_known_by_its_name(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "DEMO", saved)
    assert load_model("demo", "cpu").fps == 7
    monkeypatch.setattr(model_module, "DEMO", saved / "absent")
    with pytest.raises(ModelError, match="not part of this installation"):
        load_model("demo", "cpu")


def test_a_model_without_diffusion_has_no_schedule() -> None:
    config = ModelConfig.model_validate({**CONFIG.model_dump(), "diffusion": None})
    assert Model(config, tiny_model().autoencoder).schedule is None
