"""Both stages of training, with tiny real networks on a few procedural skies."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scoring import use_quick_detector
from training_runs import Heard, Place, contents, difference, metrics, series, stop_after

from pvdm_cli import api
from pvdm_cli.config import ClipConfig
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.catalog import find_videos, split
from pvdm_cli.data.clips import Clips
from pvdm_cli.data.live import LiveLatents
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import ConfigError, DataError
from pvdm_cli.evaluation import reconstruction
from pvdm_cli.model import list_checkpoints, load_model, save_model
from pvdm_cli.video.pixels import psnr, to_float
from pvdm_cli.video.read import probe
from pvdm_cli.video.synthetic import FPS, write_skies
from pvdm_cli.video.write import write_video

STAGES = ["autoencoder", "diffusion"]
WEIGHTS = {"autoencoder": "autoencoder.safetensors", "diffusion": "denoiser.safetensors"}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_loss_falls_with_weights_in_full_precision(
    place: Place, tmp_path: Path, stage: str, precision: str
) -> None:
    settings = (f"precision={precision}", "steps=99", "validate_every=99", "sample_every=0")
    more = [f"training.{each}" for each in settings]
    place.train(stage, tmp_path / "run", *more, stop=stop_after(16))
    loss = series(tmp_path / "run", "loss")
    assert len(loss) == 8
    assert np.mean(loss[-4:]) < 0.8 * np.mean(loss[:3])
    state = load_file(list_checkpoints(tmp_path / "run")[-1] / "state" / "training.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("stage", "names"),
    [
        ("autoencoder", {"val_psnr", "val_psnr_mean_frame", "val_loss"}),
        ("diffusion", {"val_loss", "val_loss_prefix"}),
    ],
)
def test_metrics_hold_losses_rates_and_figures_of_held_out_videos(
    whole: Callable[[str], Path], stage: str, names: set[str]
) -> None:
    lines = metrics(whole(stage))
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8, 10, 12]
    assert [line["lr"] > 0 and line["grad_norm"] > 0 for line in lines if "loss" in line]
    measured = [line for line in lines if names <= line.keys()]
    assert [line["step"] for line in measured] == [4, 8, 12]
    card = json.loads((list_checkpoints(whole(stage))[-1] / "model" / "model.json").read_text())
    last = {name: measured[-1][name] for name in names}
    assert card["provenance"]["metrics"] == last
    assert card["provenance"]["step"] == 12
    assert card["provenance"]["stage"] == stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_leaves_checkpoints_samples_and_its_configuration(
    whole: Callable[[str], Path], place: Place, stage: str
) -> None:
    run = whole(stage)
    assert [path.name for path in list_checkpoints(run)] == ["step-00000010", "step-00000012"]
    assert (run / "latest").read_text() == "step-00000012\n"
    samples = sorted(path.name for path in (run / "samples").iterdir())
    assert samples == ["step-00000006.mp4", "step-00000012.mp4"]
    info = probe(run / "samples" / samples[-1])
    assert (info.num_frames, info.fps) == (8 if stage == "autoencoder" else 16, FPS)
    top = {"best", "checkpoints", "config.yaml", "latest", "metrics.jsonl", "samples", ".lock"}
    top.add("starts.jsonl")
    assert {path.name for path in run.iterdir()} == top
    model = load_model(run, "cpu")
    assert model.fps == FPS
    assert (model.denoiser is not None) == (stage == "diffusion")
    assert model.fingerprint == load_model(place.first_stage, "cpu").fingerprint
    before = load_model(run, "cpu", checkpoint=10)
    ours, theirs = (m.denoiser or m.autoencoder for m in (model, before))
    assert any(
        not torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )


def test_checkpoints_are_kept_as_configured(place: Place, tmp_path: Path) -> None:
    settings = ("checkpoint_every=1", "keep_last=1", "keep_every=4", "steps=10", "sample_every=0")
    place.train("autoencoder", tmp_path / "run", *(f"training.{each}" for each in settings))
    kept = [int(path.name[-8:]) for path in list_checkpoints(tmp_path / "run")]
    assert kept == [4, 8, 10]
    assert [path.name for path in (tmp_path / "run" / "samples").iterdir()] == ["step-00000010.mp4"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("steps", [(3,), (5, 1, 3)], ids=["once", "three times"])
def test_a_run_stopped_and_continued_equals_the_uninterrupted_one(
    place: Place, whole: Callable[[str], Path], tmp_path: Path, stage: str, steps: tuple[int, ...]
) -> None:
    run, done, heard = tmp_path / "run", 0, Heard()
    for each in steps:
        result = place.train(stage, run, stop=stop_after(each))
        done += each
        assert (result.step, result.finished) == (done, False)
    result = place.train(stage, run, reporter=heard)
    assert (result.step, result.finished) == (12, True)
    assert f"continuing {run} from step {done}" in heard.lines
    assert difference(contents(run), contents(whole(stage))) == []


def test_noise_on_the_latents_changes_what_is_learnt_and_goes_on_as_it_was(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    noisy = "loss.latent_noise=0.1"
    place.train("autoencoder", tmp_path / "whole", noisy)
    place.train("autoencoder", tmp_path / "run", noisy, stop=stop_after(4))
    place.train("autoencoder", tmp_path / "run", noisy)
    assert difference(contents(tmp_path / "run"), contents(tmp_path / "whole")) == []
    assert series(tmp_path / "run", "loss") != series(whole("autoencoder"), "loss")


@pytest.mark.parametrize("stage", STAGES)
def test_a_finished_run_is_left_as_it_is(
    place: Place, whole: Callable[[str], Path], stage: str
) -> None:
    before = contents(whole(stage))
    result = place.train(stage, whole(stage))
    assert (result.step, result.finished) == (12, True)
    assert difference(contents(whole(stage)), before) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_may_be_shared_out_over_accumulation_steps(
    place: Place, tmp_path: Path, stage: str
) -> None:
    shared = ("training.log_every=1", "training.lr=1e-4")
    whole, halves = ("training.batch_size=4",), ("training.accumulation=2",)
    place.train(stage, tmp_path / "a", *shared, *whole, stop=stop_after(3))
    place.train(stage, tmp_path / "b", *shared, *halves, stop=stop_after(3))
    for name in ("loss", "grad_norm"):
        expected = pytest.approx(series(tmp_path / "a", name), rel=2e-3)
        assert series(tmp_path / "b", name) == expected


def test_videos_decoded_on_demand_give_the_same_weights(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    place.train("autoencoder", tmp_path / "run", "data.memory_gb=0", "data.num_workers=3")
    found, expected = contents(tmp_path / "run"), contents(whole("autoencoder"))
    names = difference(found, expected)
    said = {"config.yaml", "model.json", "state.json"}  # the override, and hashes of it
    assert {Path(name).name for name in names} == said


def test_validation_measures_the_averaged_weights(
    place: Place, whole: Callable[[str], Path]
) -> None:
    _, held_out = split(find_videos(place.videos), 0.3)
    clip = ClipConfig(frames=8, height=32, width=16)
    x = to_float(Clips.load(held_out[:2], clip, memory_gb=1).first_windows(2))
    run = whole("autoencoder")
    averaged = load_model(run, "cpu").autoencoder
    measured = series(run, "val_psnr")[-1]
    assert float(psnr(averaged(x), x).mean()) == pytest.approx(measured, rel=1e-4)
    state = load_file(list_checkpoints(run)[-1] / "state" / "training.safetensors")
    live = {k.removeprefix("live."): v for k, v in state.items() if k.startswith("live.")}
    averaged.load_state_dict(live)
    assert float(psnr(averaged(x), x).mean()) != pytest.approx(measured, rel=1e-4)


def test_without_an_average_the_live_weights_are_published(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    place.train("autoencoder", run, "training.ema_decay=0", stop=stop_after(3))
    place.train("autoencoder", run, "training.ema_decay=0")
    last = list_checkpoints(run)[-1]
    state = load_file(last / "state" / "training.safetensors")
    for key, value in load_file(last / "model" / "autoencoder.safetensors").items():
        assert torch.equal(state[f"live.{key}"], value)


@pytest.mark.parametrize("stage", STAGES)
def test_init_starts_from_given_weights_and_is_needed_only_once(
    place: Place, whole: Callable[[str], Path], tmp_path: Path, stage: str
) -> None:
    shutil.copytree(list_checkpoints(whole(stage))[-1] / "model", tmp_path / "start")
    run, more = tmp_path / "run", (f"init={tmp_path / 'start'}", "training.lr=1e-12")
    place.train(stage, run, *more, "training.steps=3", stop=stop_after(2))
    given = load_file(tmp_path / "start" / WEIGHTS[stage])
    found = load_file(list_checkpoints(run)[-1] / "model" / WEIGHTS[stage])
    for key, value in given.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=1e-5)
    shutil.rmtree(tmp_path / "start")
    assert place.train(stage, run, *more, "training.steps=3").finished


@pytest.mark.parametrize(("stage", "figure", "better"), [
    ("autoencoder", "val_psnr", max), ("diffusion", "val_loss", min)
])  # fmt: skip
def test_the_checkpoint_that_validates_best_is_kept_and_can_be_named(
    place: Place, tmp_path: Path, stage: str, figure: str, better: Callable[..., float]
) -> None:
    often = ("training.validate_every=1", "training.checkpoint_every=1", "training.keep_last=1")
    wild = ("training.lr=0.3", "training.warmup_steps=0", "training.ema_decay=0")
    run = tmp_path / "run"
    place.train(stage, run, *often, *wild)
    figures = {line["step"]: line[figure] for line in metrics(run) if figure in line}
    assert len(figures) == 12
    best = next(step for step, value in figures.items() if value == better(figures.values()))
    assert (run / "best").read_text() == f"step-{best:08d}\n"
    assert {path.name for path in list_checkpoints(run)} == {f"step-{s:08d}" for s in (best, 12)}
    chosen = load_model(run, "cpu", "best")
    assert chosen.provenance["metrics"][figure] == figures[best]


@pytest.mark.slow
def test_the_first_stage_can_go_by_rfvd(
    place: Place, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PVDM_I3D", str(shared / "reference" / "fvd" / "i3d_kinetics400.safetensors")
    )
    by_rfvd = ("training.judge=rfvd", "training.patience=2", "clip.frames=9", "training.steps=9")
    often = ("training.validate_every=1", "training.checkpoint_every=1", "training.sample_every=9")
    wild = ("training.lr=0.3", "training.warmup_steps=0", "training.ema_decay=0")
    run = tmp_path / "run"
    place.train("autoencoder", run, *by_rfvd, *often, *wild)
    figures = {line["step"]: line["val_rfvd"] for line in metrics(run) if "val_rfvd" in line}
    best = min(figures, key=lambda step: figures[step])
    assert (run / "best").read_text() == f"step-{best:08d}\n"
    assert len(figures) in (best + 2, 9)  # patience counts from there
    chosen = api.eval_reconstruction(run, place.videos, checkpoint="best", num=2, device="cpu")
    assert chosen.rfvd == pytest.approx(figures[best], rel=1e-3)


@pytest.mark.slow
def test_a_few_drawn_videos_are_scored_on_the_way(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    monkeypatch.setattr(reconstruction, "FEWEST_FRAMES", 8)
    every = ("training.score_every=4", "training.score_videos=5", "training.steps=8")
    heard = Heard()
    place.train("diffusion", tmp_path / "run", *every, reporter=heard)
    scores = series(tmp_path / "run", "fvd_of_5")
    assert len(scores) == 2
    assert scores[0] != scores[1]
    assert len([line for line in heard.lines if "a trend at most" in line]) == 2
    place.train("diffusion", tmp_path / "again", "training.steps=8")
    without, scored = (
        [line["loss"] for line in metrics(tmp_path / name) if "loss" in line]
        for name in ("again", "run")
    )
    assert without == scored  # looking changes nothing


@pytest.mark.slow
def test_the_second_stage_can_go_by_the_scores_of_drawn_videos(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_detector(monkeypatch, tmp_path)
    monkeypatch.setattr(reconstruction, "FEWEST_FRAMES", 8)
    run, heard = tmp_path / "run", Heard()
    by_score = ("training.judge=fvd", "training.score_every=1", "training.score_videos=3")
    often = ("training.validate_every=1", "training.checkpoint_every=1", "training.sample_every=9")
    wild = ("training.lr=0.1", "training.warmup_steps=0", "training.ema_decay=0")
    ending = ("training.patience=2", "data.holdout=0.3")
    keys = (*by_score, *often, *wild, *ending)
    place.train("diffusion", run, *keys, stop=stop_after(2))  # and go on
    place.train("diffusion", run, *keys, reporter=heard)
    figures = {line["step"]: line["fvd_of_3"] for line in metrics(run) if "fvd_of_3" in line}
    best = min(figures, key=lambda step: figures[step])
    assert (run / "best").read_text() == f"step-{best:08d}\n"
    assert len(figures) in (best + 2, 12)  # patience counts scores, not validations
    told = load_model(run, "cpu", "best").provenance["metrics"]
    assert told["fvd_of_3"] == figures[best]
    assert "val_loss" in told
    assert any("a trend at most; the best checkpoint goes by it" in line for line in heard.lines)
    with pytest.raises(ConfigError, match=r"another training\.score_videos"):
        place.train("diffusion", run, *keys, "training.score_videos=4")


def test_a_run_that_no_longer_gets_better_ends_and_stays_ended(
    place: Place, tmp_path: Path
) -> None:
    often = ("training.validate_every=1", "training.checkpoint_every=1", "training.patience=2")
    still = ("training.lr=1e-30", "training.ema_decay=0")
    result = place.train("autoencoder", tmp_path / "run", *often, *still)
    assert (result.step, result.finished) == (3, True)
    assert place.train("autoencoder", tmp_path / "run", *often, *still).step == 3


@pytest.mark.slow
def test_without_a_cache_videos_are_encoded_as_training_goes(place: Place, tmp_path: Path) -> None:
    live: dict[str, Any] = {
        "data": place.videos, "cache": None, "autoencoder": str(place.first_stage)
    }  # fmt: skip
    place.train("diffusion", tmp_path / "whole", "data.cache=off", **live)
    place.train("diffusion", tmp_path / "run", "data.cache=off", **live, stop=stop_after(4))
    place.train("diffusion", tmp_path / "run", "data.cache=off", **live)
    assert difference(contents(tmp_path / "run"), contents(tmp_path / "whole")) == []
    assert "val_loss_prefix" in metrics(tmp_path / "run")[-1]


def test_latents_made_on_the_way_are_those_of_a_cache(place: Place) -> None:
    cache, model = Cache.open(place.cache), load_model(place.first_stage, "cpu")
    clips = Clips.load(find_videos(place.videos), model.config.clip, memory_gb=1)
    live = LiveLatents(
        place.videos,
        clips,
        partial(encode_clips, model),
        model.config.latent,
        fingerprint=model.fingerprint,
    )
    assert len(live) == 7 * 13  # every window of 8 frames in 20, where the cache has some
    assert [video.path for video in live.videos] == [video.path for video in cache.videos]
    rows = {tuple(row): number for number, row in enumerate(live.index.tolist())}
    same = [rows[tuple(row)] for row in cache.index.tolist()]
    torch.testing.assert_close(
        live.read(same, dtype=torch.float32),
        cache.read(range(len(cache)), dtype=torch.float32),
        rtol=2e-3,
        atol=2e-3,
    )
    pairs = live.pairs()
    assert (live.index[pairs.next, 1] - live.index[pairs.first, 1]).eq(8).all()
    assert len(live.rows_of(3)) == 13
    torch.testing.assert_close(
        torch.tensor(live.manifest.std), torch.tensor(cache.manifest.std), rtol=0.2, atol=0.02
    )


ADVERSARIAL = (
    *("adversarial.discriminator_channels=8", "adversarial.discriminator_layers=2"),
    *("adversarial.ramp_steps=4", "training.precision=fp32"),
)


def test_the_adversarial_phase_goes_on_as_it_was(place: Place, tmp_path: Path) -> None:
    init = f"init={place.first_stage}"
    place.train("autoencoder", tmp_path / "whole", *ADVERSARIAL, init)
    place.train("autoencoder", tmp_path / "run", *ADVERSARIAL, init, stop=stop_after(3))
    place.train("autoencoder", tmp_path / "run", *ADVERSARIAL, init, stop=stop_after(4))
    place.train("autoencoder", tmp_path / "run", *ADVERSARIAL, init)
    assert difference(contents(tmp_path / "run"), contents(tmp_path / "whole")) == []
    last = {name: value for line in metrics(tmp_path / "run") for name, value in line.items()}
    for name in ("generator", "features", "grad_norm", "adversary_loss", "adversary_grad_norm"):
        assert np.isfinite(last[name])
    for name in ("adversary_real_accuracy", "adversary_fake_accuracy"):
        assert 0 <= last[name] <= 1
    state = load_file(list_checkpoints(tmp_path / "run")[-1] / "state" / "training.safetensors")
    assert any(key.startswith("adversary.live.") for key in state)
    assert any(key.startswith("adversary.optimizer.") for key in state)


def test_the_adversarial_phase_takes_over_the_optimizer_of_the_first(
    place: Place, tmp_path: Path
) -> None:
    def moments(run: Path) -> dict[str, Any]:
        state = load_file(list_checkpoints(run)[-1] / "state" / "training.safetensors")
        return {key: value for key, value in state.items() if key.startswith("optimizer.")}

    before = moments(place.first_stage)
    more = (*ADVERSARIAL, "training.steps=3", "training.checkpoint_every=1")
    run = tmp_path / "run"
    place.train("autoencoder", run, *more, f"init={place.first_stage}", stop=stop_after(1))
    counts = {key for key in before if key.endswith(".step")}
    assert counts
    assert all(moments(run)[key] == before[key] + 1 for key in counts)
    model = list_checkpoints(place.first_stage)[-1] / "model"  # a model has no optimizer to give
    place.train("autoencoder", tmp_path / "fresh", *more, f"init={model}", stop=stop_after(1))
    assert all(moments(tmp_path / "fresh")[key] == 1 for key in counts)


def test_network_and_discriminators_take_turns(place: Place, tmp_path: Path) -> None:
    def weights(step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        place.train("autoencoder", tmp_path / f"{step}", *ADVERSARIAL, stop=stop_after(step))
        (checkpoint,) = list_checkpoints(tmp_path / f"{step}")
        state = load_file(checkpoint / "state" / "training.safetensors")
        ours = {k: v for k, v in state.items() if k.startswith("live.")}
        theirs = {
            k: v for k, v in state.items() if k.startswith("adversary.live.") and "norm" not in k
        }
        return ours, {k: v for k, v in theirs.items() if k.endswith(("weight", "bias"))}

    (one, rival_one), (two, rival_two), (three, rival_three) = map(weights, (1, 2, 3))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(two[key], three[key]) for key in one)
    assert not all(torch.equal(rival_one[key], rival_two[key]) for key in rival_one)
    assert all(torch.equal(rival_two[key], rival_three[key]) for key in rival_one)


def test_the_scale_of_the_latents_is_the_caches_or_that_of_the_weights_taken_over(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_model(whole("diffusion"), "cpu")
    assert model.denoiser is not None
    scale = model.denoiser.scale
    assert scale is not None
    manifest = Cache.open(place.cache).manifest
    torch.testing.assert_close(scale.mean, torch.tensor(manifest.mean))
    torch.testing.assert_close(scale.std, torch.tensor(manifest.std))

    scale.mean.add_(1)  # as if these weights had been trained on another cache
    save_model(model, tmp_path / "other")
    run, options = tmp_path / "run", (f"init={tmp_path / 'other'}", "training.steps=2")
    place.train("diffusion", run, *options, stop=stop_after(1))
    place.train("diffusion", run, *options)
    found = load_model(run, "cpu").denoiser
    assert found is not None
    assert found.scale is not None
    assert torch.equal(found.scale.mean, scale.mean)


def test_overwrite_starts_afresh_and_removes_only_what_a_run_writes(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    place.train("autoencoder", run, "training.seed=1", stop=stop_after(6))
    (run / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="nowhere"):
        place.train("autoencoder", run, data=tmp_path / "nowhere", overwrite=True)
    assert len(list_checkpoints(run)) == 2
    heard = Heard()
    assert place.train("autoencoder", run, overwrite=True, reporter=heard).finished
    assert not any("continuing" in line for line in heard.lines)
    assert (run / "notes.txt").read_text() == "mine"
    found = contents(run, without=["notes.txt"])
    assert difference(found, contents(whole("autoencoder"))) == []


def test_what_does_not_change_the_weights_may_change_on_the_way(
    place: Place, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    place.train("autoencoder", run, "training.steps=5", "training.keep_last=1")
    place.train("autoencoder", run, "training.log_every=3", "data.memory_gb=0")
    name = "checkpoints/step-00000012/state/training.safetensors"
    assert contents(run)[name] == contents(whole("autoencoder"))[name]


def test_held_out_videos_that_are_too_short_are_done_without(place: Place, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(place.videos, videos)
    _, held_out = split(find_videos(videos), 0.3)
    for source in held_out:
        write_video(source.path, np.zeros((7, 32, 16, 3), np.uint8), fps=FPS)
    heard = Heard()
    place.train("autoencoder", tmp_path / "run", data=videos, reporter=heard, stop=stop_after(4))
    assert "no held-out video is long enough: training goes without validation" in heard.lines
    assert series(tmp_path / "run", "val_psnr") == []


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_one_video_is_enough_to_train_without_validation(
    place: Place, tmp_path: Path, stage: str
) -> None:
    write_skies(tmp_path / "one", 1, frames=20, height=32, width=16)
    given: dict[str, Any] = {"data": tmp_path / "one"}
    if stage == "diffusion":
        given = {"cache": tmp_path / "cache"}
        named = {"autoencoder": str(place.first_stage), "device": "cpu"}
        api.encode(tmp_path / "one", tmp_path / "cache", **named)
    assert place.train(stage, tmp_path / "run", **given, stop=stop_after(4)).step == 4
    assert all(not name.startswith("val") for line in metrics(tmp_path / "run") for name in line)


def test_videos_that_cannot_be_used_are_named(place: Place, tmp_path: Path) -> None:
    shutil.copytree(place.videos, tmp_path / "videos")
    train, _ = split(find_videos(tmp_path / "videos"), 0.3)
    train[0].path.write_bytes(b"no video")
    heard = Heard()
    data = tmp_path / "videos"
    place.train("autoencoder", tmp_path / "run", data=data, reporter=heard, stop=stop_after(1))
    assert any(line.startswith(f"left out {train[0].name}: ") for line in heard.lines)
