"""Switches of training that change its speed, its memory or what it shows, not what it learns."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from training_runs import Heard, Place, contents, difference, metrics, series, stop_after

from pvdm_cli import runs
from pvdm_cli.config import load_config
from pvdm_cli.data.catalog import find_videos
from pvdm_cli.data.clips import Clips, mirrored
from pvdm_cli.data.live import LiveLatents
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import ConfigError
from pvdm_cli.model import list_checkpoints, load_model
from pvdm_cli.models.cost import training_flops
from pvdm_cli.progress import SILENT

STAGES = ["autoencoder", "diffusion"]


def test_a_cache_that_does_not_fit_in_memory_is_read_clip_by_clip_with_the_same_result(
    place: Place, whole: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[bool] = []
    real = runs.Cache.open

    def spy(path: Path, *, in_memory: bool = False) -> Any:
        opened.append(in_memory)
        return real(path, in_memory=in_memory)

    monkeypatch.setattr(runs.Cache, "open", spy)
    place.train("diffusion", tmp_path / "run", "data.memory_gb=0", "data.num_workers=4")
    assert opened == [False]
    names = difference(contents(tmp_path / "run"), contents(whole("diffusion")))
    said = {"config.yaml", "model.json", "state.json"}  # the override, and hashes of it
    assert {Path(name).name for name in names} == said


# Batch size ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_largest_batch_that_fits_is_found_said_and_kept(place: Place, tmp_path: Path) -> None:
    heard = Heard()
    auto = ("training.batch_size=auto", "training.clips_per_step=2")
    place.train("diffusion", tmp_path / "run", *auto, stop=stop_after(1), reporter=heard)
    assert "training.batch_size=auto: 2 clips fit, so a step is 2 x 1" in heard.lines
    assert any(line.startswith("batch_size=auto: batch 2 fits") for line in heard.lines)
    kept = load_config(tmp_path / "run" / "config.yaml").training
    assert (kept.batch_size, kept.accumulation, kept.clips_per_step) == (2, 1, 2)
    heard.lines.clear()
    place.train("diffusion", tmp_path / "run", *auto, stop=stop_after(1), reporter=heard)
    assert not any("auto" in line for line in heard.lines)  # not searched again
    assert heard.lines[0] == f"continuing {tmp_path / 'run'} from step 1"


@pytest.mark.parametrize(
    ("fits", "total", "batch", "accumulation"),
    [(5, 0, 5, 1), (5, 24, 4, 6), (64, 24, 24, 1), (1, 7, 1, 7), (6, 7, 1, 7)],
)
def test_a_step_is_shared_out_over_what_fits(
    place: Place, tmp_path: Path, fits: int, total: int, batch: int, accumulation: int
) -> None:
    auto = ["training.batch_size=auto", f"training.clips_per_step={total}", "training.steps=1"]
    runs.run_training(
        load_config(place.preset("diffusion"), auto),
        tmp_path / "run",
        cache=place.cache,
        device="cpu",
        reporter=SILENT,
        find_batch=lambda config: fits,
        stop=lambda: True,
    )
    kept = load_config(tmp_path / "run" / "config.yaml").training
    assert (kept.batch_size, kept.accumulation) == (batch, accumulation)


def test_where_not_even_one_clip_fits_the_remedies_are_named(place: Place, tmp_path: Path) -> None:
    config = load_config(place.preset("diffusion"), ["training.batch_size=auto"])
    given: dict[str, Any] = {"cache": place.cache, "device": "cpu", "reporter": SILENT}
    with pytest.raises(
        ConfigError, match=r"not even one clip fits.*activation_checkpointing=block"
    ):
        runs.run_training(config, tmp_path / "run", **given, find_batch=lambda config: 0)
    assert not (tmp_path / "run" / "config.yaml").exists()


# What is shown ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_every_line_tells_how_well_the_device_is_used(
    place: Place, whole: Callable[[str], Path], stage: str
) -> None:
    cost = training_flops(load_config(place.preset(stage)))
    lines = map(json.loads, (whole(stage) / "metrics.jsonl").read_text().splitlines())
    for line in (each for each in lines if "loss" in each):
        assert line["tflops"] * 1e12 == pytest.approx(cost * line["clips_per_second"], rel=1e-2)
        assert 0 < line["flop_utilisation"] <= 1


def test_shares_tell_which_term_counts(place: Place, tmp_path: Path) -> None:
    terms = ("loss.l1=1", "loss.l2=2", "training.steps=2")
    place.train("autoencoder", tmp_path / "run", *terms)
    line = metrics(tmp_path / "run")[0]
    assert line["l1_share"] + line["l2_share"] == pytest.approx(1)
    parts = {"l1": line["l1"], "l2": 2 * line["l2"]}
    assert line["l1_share"] == pytest.approx(parts["l1"] / sum(parts.values()), rel=0.05)


def test_one_term_alone_has_no_share(whole: Callable[[str], Path]) -> None:
    assert not any(name.endswith("_share") for name in metrics(whole("autoencoder"))[0])


def test_held_out_videos_have_the_loss_that_is_trained(whole: Callable[[str], Path]) -> None:
    losses = series(whole("autoencoder"), "val_loss")
    assert len(losses) == 3
    assert all(0 < loss < 2 for loss in losses)  # L1 alone, of pixels in [-1, 1]


# Mirrored clips -----------------------------------------------------------------------------


def test_mirrored_videos_are_second_copies_whose_clips_follow_each_other(place: Place) -> None:
    model = load_model(place.first_stage, "cpu")
    clips = Clips.load(find_videos(place.videos), model.config.clip, memory_gb=1)
    encode = partial(encode_clips, model)
    make = partial(LiveLatents, place.videos, clips, encode, model.config.latent)
    plain, both = make(fingerprint=""), make(fingerprint="", flip=True)
    assert len(both) == 2 * len(plain)
    assert torch.equal(both.read(range(len(plain))), plain.read(range(len(plain))))
    row = len(plain) + 5
    video, first, _ = both.index[row].tolist()
    assert (video, first) == (7, 5)  # the copy of video 0
    expected = encode(mirrored(clips.window(0, 5))[None])
    np.testing.assert_array_equal(both.read([row]).numpy(), expected)
    pairs = both.pairs()
    assert torch.equal(both.index[pairs.next, 0], both.index[pairs.first, 0])
    assert [video.path for video in both.videos] == 2 * [video.path for video in plain.videos]


@pytest.mark.slow
def test_a_run_with_mirrored_clips_learns_something_else_in_either_stage(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    flip, live = "data.flip=true", {"data": place.videos, "cache": None}
    place.train("autoencoder", tmp_path / "first", flip)
    assert series(tmp_path / "first", "loss") != series(whole("autoencoder"), "loss")
    given = {**live, "autoencoder": str(place.first_stage)}
    place.train("diffusion", tmp_path / "second", flip, "data.cache=off", **given)
    assert len(series(tmp_path / "second", "loss")) == 6
    with pytest.raises(ConfigError, match=r"data\.flip=true mirrors videos, not latents"):
        place.train("diffusion", tmp_path / "third", flip)


# torch.compile ------------------------------------------------------------------------------


def compiled_losses(place: Place, folder: Path, stage: str, grain: str) -> list[list[float]]:
    """Losses of a few steps, plain and compiled."""
    settings = ["training.steps=3", "training.lr=1e-3", "training.log_every=1"]
    settings += [f"training.activation_checkpointing={grain}", "training.sample_every=0"]
    place.train(stage, folder / "plain", *settings)
    place.train(stage, folder / "compiled", *settings, "training.compile=true")
    plain, compiled = (load_file(newest(folder / run) / FILES[stage]) for run in RUNS)
    assert plain.keys() == compiled.keys()
    return [series(folder / run, "loss") for run in RUNS]


RUNS = ("plain", "compiled")
FILES = {"autoencoder": "autoencoder.safetensors", "diffusion": "denoiser.safetensors"}


def newest(run: Path) -> Path:
    return list_checkpoints(run)[-1] / "model"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # both inside torch
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("grain", ["none", "block"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_network_captured_for_compilation_learns_the_same(
    place: Place, tmp_path: Path, stage: str, grain: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = torch.nn.Module.compile, []

    def captured(module: torch.nn.Module, **options: Any) -> None:
        seen.append(type(module).__name__)
        real(module, backend="aot_eager", fullgraph=grain == "none", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", captured)
    torch.compiler.reset()
    plain, compiled = compiled_losses(place, tmp_path, stage, grain)
    assert compiled == pytest.approx(plain, rel=1e-3)
    blocks = ["Block", "ProjectionBlock", "ProjectionBlock", "ProjectionBlock", "Block"]
    assert seen == (blocks if stage == "autoencoder" else ["Denoiser"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")  # both inside torch
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_network_learns_the_same(place: Place, tmp_path: Path) -> None:
    plain, compiled = compiled_losses(place, tmp_path, "diffusion", "none")
    assert compiled == pytest.approx(plain, rel=1e-3)
