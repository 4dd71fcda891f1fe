"""What training refuses, and what it makes of damage: one sentence each."""

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import Heard, Place, contents, difference, series, stop_after

from pvdm_cli import api, weights
from pvdm_cli.errors import ConfigError, DataError, ModelError, PvdmError
from pvdm_cli.files import only_writer
from pvdm_cli.model import list_checkpoints, load_model
from pvdm_cli.training.autoencoder import AutoencoderStage
from pvdm_cli.training.diffusion import DiffusionStage

STAGES = ["autoencoder", "diffusion"]
WEIGHTS = {"autoencoder": "autoencoder.safetensors", "diffusion": "denoiser.safetensors"}


def test_init_from_what_does_not_fit_is_refused(place: Place, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"init=.*: weight 'decoder\.blocks\.1\.\S+' is missing"):
        place.train(
            "autoencoder", tmp_path / "a", f"init={place.first_stage}", "autoencoder.depth=2"
        )
    with pytest.raises(ModelError, match="holds no denoiser to start from"):
        place.train("diffusion", tmp_path / "b", f"init={place.first_stage}")


def test_another_configuration_is_refused_naming_its_keys(
    place: Place, whole: Callable[[str], Path]
) -> None:
    run = whole("autoencoder")
    before = contents(run)
    with pytest.raises(ConfigError, match=r"another data\.holdout, training\.lr; .*--overwrite"):
        place.train("autoencoder", run, "training.lr=1", "data.holdout=0.4")
    assert contents(run) == before


def test_rfvd_needs_the_detector_and_clips_it_can_take(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PVDM_I3D", raising=False)
    monkeypatch.setenv("PVDM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "I3D_PACKAGE", "no_such_package")
    with pytest.raises(
        ModelError, match=r"training.judge=rfvd needs the Kinetics-400 I3D: .*training.judge=psnr"
    ):
        place.train("autoencoder", tmp_path / "a", "training.judge=rfvd", "clip.frames=16")
    with pytest.raises(ConfigError, match=r"of 9 frames or more, not 8; use training\.judge="):
        place.train("autoencoder", tmp_path / "b", "training.judge=rfvd")


def test_the_length_of_a_run_may_change_only_at_a_constant_rate(
    place: Place, tmp_path: Path
) -> None:
    cosine = "training.lr_schedule=cosine"
    place.train("autoencoder", tmp_path / "run", cosine, stop=stop_after(1))
    with pytest.raises(ConfigError, match=r"another training\.steps;"):
        place.train("autoencoder", tmp_path / "run", cosine, "training.steps=13")


@pytest.mark.parametrize(
    ("stage", "overrides", "options", "said"),
    [
        ("autoencoder", ["data.cache=off"], {}, "data.cache=off belongs to stage: diffusion"),
        ("diffusion", ["loss.l1=1"], {}, "loss belongs to stage: autoencoder"),
        ("autoencoder", ["training.score_every=1"], {}, "score_every belongs to stage: diffusion"),
        ("diffusion", ["training.judge=rfvd"], {}, "the second stage goes by val_loss"),
        ("autoencoder", ["training.judge=fvd"], {}, "judge=fvd belongs to stage: diffusion"),
        ("diffusion", ["training.judge=fvd"], {}, "say how often to score by training.score_every"),
        ("diffusion", ["adversarial.generator_weight=1"], {}, "adversarial belongs to stage: auto"),
        ("autoencoder", ["training.precision=fp16"], {}, "fp16 needs a GPU"),
        ("autoencoder", ["data.holdout=0", "training.judge=rfvd"], {}, "go by held-out videos"),
        ("diffusion", ["data.holdout=0", "training.patience=2"], {}, "go by held-out videos"),
        ("autoencoder", [], {"data": None}, "give --data DIR"),
        ("diffusion", [], {"cache": None}, "give --cache CACHE"),
        ("diffusion", ["data.cache=off"], {}, "give --data DIR and --autoencoder MODEL, and no"),
        ("autoencoder", [], {"data": Path("nowhere")}, "nowhere: no such file"),
        ("diffusion", [], {"cache": Path("nowhere")}, "no cache at nowhere"),
        ("diffusion", [], {"autoencoder": "nowhere"}, "nowhere: no such folder"),
        ("diffusion", ["diffusion.overlap=3"], {}, "a --window-stride that divides 5, or train"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence_and_leaves_nothing(
    place: Place,
    tmp_path: Path,
    stage: str,
    overrides: list[str],
    options: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(PvdmError) as found:
        place.train(stage, tmp_path / "run", *overrides, **options)
    assert said in str(found.value)
    assert "\n" not in str(found.value)
    assert contents(tmp_path / "run") == {}
    assert place.train("autoencoder", tmp_path / "run", stop=stop_after(1)).step == 1


def test_a_run_cannot_go_where_something_else_is(place: Place, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for blocked in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(PvdmError, match="cannot write"):
            place.train("autoencoder", blocked)
    for overwrite in (False, True):
        with pytest.raises(ConfigError, match="not empty and holds no run"):
            place.train("autoencoder", tmp_path, overwrite=overwrite)
    run = tmp_path / "run"
    run.mkdir()
    with (
        only_writer(run, "training in"),
        pytest.raises(PvdmError, match="another process is training in"),
    ):
        place.train("autoencoder", run)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights_is_one_sentence(place: Place, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PvdmError, match="cannot write"):
        place.train("autoencoder", tmp_path / "run")


def test_a_cache_of_another_autoencoder_is_refused_naming_both(
    place: Place, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    place.train("autoencoder", other, "training.seed=1", stop=stop_after(1))
    prints = [load_model(path, "cpu").fingerprint[:12] for path in (place.first_stage, other)]
    with pytest.raises(DataError, match=f"{prints[0]}.* not by the given one .{prints[1]}"):
        place.train("diffusion", tmp_path / "run", autoencoder=str(other))


def test_a_preset_of_another_autoencoder_is_refused_naming_the_keys(
    place: Place, tmp_path: Path
) -> None:
    more = ("autoencoder.depth=2", "clip.width=32")
    with pytest.raises(ConfigError, match=r"clip\.width=32 \(the autoencoder has 16\)"):
        place.train("diffusion", tmp_path / "run", *more)


def test_a_cache_whose_autoencoder_has_moved_says_how_to_name_it(
    place: Place, tmp_path: Path
) -> None:
    shutil.copytree(place.first_stage, tmp_path / "ae")
    api.encode(place.videos, tmp_path / "cache", autoencoder=str(tmp_path / "ae"), device="cpu")
    (tmp_path / "ae").rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=r"ae: no such folder .* it made .*cache: .*--autoencoder"):
        place.train("diffusion", tmp_path / "run", cache=tmp_path / "cache")
    moved = {"cache": tmp_path / "cache", "autoencoder": str(tmp_path / "moved")}
    assert place.train("diffusion", tmp_path / "run", **moved, stop=stop_after(1)).step == 1


def test_a_loss_that_is_no_number_stops_the_run_before_it_is_saved(
    place: Place, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    wild = ("training.lr=1e30", "training.warmup_steps=0", "training.grad_clip=0")
    with pytest.raises(PvdmError, match=rf"{run}: .* at step \d+; start another run .*init={run}"):
        place.train("autoencoder", run, *wild, "training.log_every=1")
    for rare in ("training.log_every=100", "training.checkpoint_every=1"):
        wild = (*wild, rare)
    with pytest.raises(PvdmError, match="weights are no longer finite"):
        place.train("autoencoder", run, *wild)
    for checkpoint in list_checkpoints(run):
        weights = load_file(checkpoint / "state" / "training.safetensors")
        live = [value for key, value in weights.items() if key.startswith("live.")]
        assert all(bool(value.isfinite().all()) for value in live)


def breaks(
    monkeypatch: pytest.MonkeyPatch, kind: type[Any], at: int, times: int, term: str
) -> None:
    """Make a term of a stage's loss no number at a step, for so many visits of it."""
    real, visits = kind.losses, []

    def losses(self: Any, network: Any, batch: Any) -> dict[str, Any]:
        found = real(self, network, batch)
        visits.append(1)
        if len(visits) > at and len(visits) <= at + times:
            found[term] = found[term] * float("nan")
            found["loss"] = found["loss"] + found[term]
        return found

    monkeypatch.setattr(kind, "losses", losses)


def test_a_run_goes_back_once_its_loss_is_no_number_and_goes_on_more_gently(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, often = Heard(), ("training.log_every=1", "training.checkpoint_every=2")
    breaks(monkeypatch, AutoencoderStage, at=4, times=1, term="l1")
    result = place.train("autoencoder", tmp_path / "run", *often, reporter=heard)
    assert result.finished
    told = "l1 is nan at step 5: going back to step 4, learning rate at 0.5 of what was set"
    assert told in heard.lines
    rates = series(tmp_path / "run", "lr")
    assert len(rates) == 12
    assert rates[4] == pytest.approx(rates[3] / 2)


def test_the_adversarial_phase_goes_on_with_half_its_weights(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, often = Heard(), ("training.log_every=2", "training.checkpoint_every=2")
    more = ("adversarial.discriminator_channels=8", "adversarial.discriminator_layers=1")
    breaks(monkeypatch, AutoencoderStage, at=2, times=2, term="features")
    assert place.train("autoencoder", tmp_path / "run", *often, *more, reporter=heard).finished
    told = [line for line in heard.lines if "going back" in line]
    assert told == [
        "features is nan at step 6: going back to step 4, adversarial weights at 0.5 of what was set",
        "features is nan at step 6: going back to step 4, adversarial weights at 0.25 of what was set",
    ]


def test_gradients_that_overflow_in_fp16_are_left_out_and_no_reason_to_go_back(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = partial(torch.amp.GradScaler, "cpu", init_scale=2.0**127)  # as "cuda" at 2^16
    monkeypatch.setattr(torch.amp, "GradScaler", lambda device, enabled: scaler(enabled=True))
    heard = Heard()
    often = ("training.log_every=1", "loss.l1=100")
    assert place.train("autoencoder", tmp_path / "run", *often, reporter=heard).finished
    norms = series(tmp_path / "run", "grad_norm")
    assert 0 < len(norms) < 12  # the first steps overflow until the scale has come down
    assert np.isfinite(norms).all()
    assert not any("going back" in line for line in heard.lines)


def test_a_run_gives_up_after_the_retries_it_was_given(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = ("training.log_every=1", "training.checkpoint_every=2", "training.retries=2")
    breaks(monkeypatch, DiffusionStage, at=4, times=99, term="loss")
    with pytest.raises(PvdmError, match="loss is nan at step 5 after 2 retries; start another run"):
        place.train("diffusion", tmp_path / "run", *often)
    assert [path.name for path in list_checkpoints(tmp_path / "run")][-1] == "step-00000004"


def damaged(run: Path, tmp_path: Path, damage: Callable[[Path], object]) -> tuple[Path, Path]:
    """Copy a run and damage its last checkpoint."""
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    last = list_checkpoints(copy)[-1]
    damage(last)
    return copy, last


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        ("state/state.json", Path.unlink, "state.json: not readable"),
        ("state/state.json", lambda p: os.truncate(p, 20), "state.json: not readable"),
        ("state/state.json", lambda p: p.write_text("{}"), "not a training state"),
        ("state/training.safetensors", Path.unlink, "missing, though state.json lists it"),
        ("state/training.safetensors", lambda p: os.truncate(p, 200), "200 bytes where state.json"),
        ("model/WEIGHTS", lambda p: os.truncate(p, 200), "200 bytes where model.json says"),
        ("model/model.json", Path.unlink, "missing, though state.json lists it"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_taken(
    place: Place,
    whole: Callable[[str], Path],
    tmp_path: Path,
    stage: str,
    file: str,
    damage: Callable[[Path], object],
    said: str,
) -> None:
    file = file.replace("WEIGHTS", WEIGHTS[stage])
    run, last = damaged(whole(stage), tmp_path, lambda step: damage(step / file))
    heard = Heard()
    place.train(stage, run, reporter=heard, stop=lambda: True)
    assert any(said in line and f"kept as {last}.broken" in line for line in heard.lines)
    assert f"continuing {run} from step 10" in heard.lines


def test_a_checkpoint_of_another_format_is_no_broken_one(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    def later(checkpoint: Path) -> None:
        (checkpoint / "state/state.json").write_text('{"format": 9, "step": 12, "files": {}}')

    run, last = damaged(whole("autoencoder"), tmp_path, later)
    with pytest.raises(ModelError, match=r"format 9, this version reads 2; go on with the version"):
        place.train("autoencoder", run)
    assert last.exists()


def test_what_a_killed_run_left_is_cleared_away(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    run = Path(shutil.copytree(whole("autoencoder"), tmp_path / "run"))
    checkpoints = run / "checkpoints"
    shutil.copytree(checkpoints / "step-00000010", checkpoints / ".step-00000009.123.partial")
    (checkpoints / "step-00000012").rename(checkpoints / ".step-00000012.123.old")
    for name in (".latest.7.partial", ".config.yaml.7.partial", "samples/.step-1.mp4.7.partial"):
        (run / name).write_text("half")
    (run / "latest").write_text("step-00000099\n")
    (run / "samples" / "step-00000012.mp4").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "loss"')
    heard = Heard()
    place.train("autoencoder", run, reporter=heard)
    assert f"continuing {run} from step 12" in heard.lines  # put back from its .old
    assert difference(contents(run), contents(whole("autoencoder"))) == []
    assert load_model(run, "cpu").provenance["step"] == 12


def test_a_kill_before_the_first_checkpoint_does_not_block_the_folder(
    place: Place, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".config.yaml.7.partial").write_text("sta")
    assert place.train("autoencoder", run, stop=stop_after(1)).step == 1


@pytest.mark.parametrize("memory_gb", [1, 0])
def test_one_flipped_bit_in_a_cache_is_refused_whether_it_fits_into_memory_or_not(
    place: Place, tmp_path: Path, memory_gb: int
) -> None:
    cache = tmp_path / "cache"
    shutil.copytree(place.cache, cache)
    shard = next(cache.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 4
    shard.write_bytes(content)
    keys = (f"data.memory_gb={memory_gb}", "training.steps=1", "training.sample_every=0")
    with pytest.raises(DataError, match=rf"{shard.name} is damaged: .* `pvdm encode` again"):
        place.train("diffusion", tmp_path / "run", *keys, cache=cache)
    assert not (tmp_path / "run" / "config.yaml").exists()
    if not memory_gb:
        place.train("diffusion", tmp_path / "run", *keys, "data.verify=false", cache=cache)
