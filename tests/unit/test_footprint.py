"""Memory of a training step, counted: against what is known, and against what is measured."""

import itertools
from typing import Any

import pytest
from tiny import CONFIG

from pvdm_cli.benchmark.train import bench_train
from pvdm_cli.config import RunConfig, load_config
from pvdm_cli.footprint import RESERVE, count_step, largest_batch
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.planning import num_parameters, plan_run

CARD = 24 << 30


def tiny(**training: Any) -> RunConfig:
    """A second stage of the tiny networks."""
    values = {**CONFIG.model_dump(mode="json"), "stage": "diffusion", "training": training}
    return RunConfig.model_validate(values)


def test_the_state_is_weights_moments_average_and_the_frozen_autoencoder() -> None:
    denoiser, autoencoder = num_parameters(Denoiser(CONFIG)), num_parameters(Autoencoder(CONFIG))
    found = count_step(tiny(ema_decay=0.9), 1, "fp32")
    assert found.state == 4 * (4 * denoiser + autoencoder)
    assert found.passing >= 4 * denoiser  # at the end there are the gradients of all weights
    assert found.peak == found.state + found.passing


@pytest.mark.slow
def test_each_clip_adds_as_much_and_half_precision_adds_less() -> None:
    found = [count_step(tiny(), batch, "fp32") for batch in (8, 16, 24)]
    first, second = (b.kept - a.kept for a, b in itertools.pairwise(found))
    assert first == pytest.approx(second, rel=0.01)
    rounded = [count_step(tiny(), batch, "bf16").kept for batch in (8, 16)]
    assert 0.4 * first < rounded[1] - rounded[0] < 0.9 * first
    assert all(each.passing >= each.kept for each in found)


@pytest.mark.slow
def test_the_largest_batch_is_the_last_that_leaves_the_reserve() -> None:
    config = tiny()
    peak = count_step(config, 40, "fp32").peak
    found = largest_batch(config, "fp32", peak + RESERVE)
    assert found == pytest.approx(40, abs=1)
    assert largest_batch(config, "fp32", RESERVE) == 0


@pytest.mark.slow
def test_a_plan_tells_the_peak_and_the_largest_batch() -> None:
    figures = plan_run(tiny(batch_size=3, precision="fp32")).figures
    assert figures["peak_memory_bytes"] == count_step(tiny(), 3, "fp32").peak
    assert figures["largest_batch_in_24_GiB"] > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "grain", "least"),
    [
        ("sky/diffusion-s", "none", 64),
        ("sky/diffusion-s", "attention", 128),
        ("sky/diffusion-l", "none", 32),
        ("sky/diffusion-l", "attention", 48),
    ],
)
def test_so_many_clips_train_on_a_card_of_24_gib(preset: str, grain: str, least: int) -> None:
    config = load_config(preset, [f"training.activation_checkpointing={grain}"])
    assert largest_batch(config, "bf16", CARD) >= least


@pytest.mark.slow
def test_the_count_is_near_what_training_takes_on_the_cpu() -> None:
    changes = ["training.clips_per_step=0"]
    config = load_config("sky/diffusion-s", changes)
    (figure,) = bench_train(
        ["sky/diffusion-s"], overrides=changes, batches=[2], repeats=1, device="cpu"
    ).figures
    assert figure.peak is not None
    counted = count_step(config, 2, "fp32").peak  # 14 % more was found
    assert figure.peak.bytes == pytest.approx(counted, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "measured"), [(16, 4.94), (64, 14.08)])
def test_the_count_is_what_an_h100_needed(batch: int, measured: float) -> None:
    config = load_config("sky/diffusion-s", ["training.activation_checkpointing=none"])
    found = count_step(config, batch, "bf16")
    bare = 3 * 4 * num_parameters(Denoiser(config.model()))  # that step had no average, no encoder
    assert (bare + found.passing) / 2**30 == pytest.approx(measured, rel=0.03)
