"""Floors, coding and files: what is counted, and that real work is measured."""

from dataclasses import asdict

import pytest
import torch
from test_benchmark import SUBJECT, job
from tiny import CONFIG, tiny_model

from pvdm_cli.benchmark import child, coding, floor, io
from pvdm_cli.benchmark.compare import Result, compare_results
from pvdm_cli.benchmark.figure import Row
from pvdm_cli.benchmark.floor import Floor, Rates, Work, coding_work, sampling_work, training_work
from pvdm_cli.config import RunConfig, load_config
from pvdm_cli.model import DTYPES, Model
from pvdm_cli.models import native
from pvdm_cli.models.cost import forward_cost
from pvdm_cli.sampling import Sampling, Steps


def test_every_weight_is_read_by_one_part_and_counted_once() -> None:
    model = tiny_model()
    sizes = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in model.autoencoder.named_children()
    }
    written = sizes["decoder"] + sizes["from_latent"] + sizes["to_pixels"]
    assert forward_cost(CONFIG, "decode").weights == written
    read = forward_cost(CONFIG, "encode").weights
    assert read <= sizes["encoder"] + sizes["projections"]
    assert read >= 0.9 * (sizes["encoder"] + sizes["projections"])
    assert model.denoiser is not None
    denoiser = sum(p.numel() for p in model.denoiser.parameters())
    assert 0.9 * denoiser <= forward_cost(CONFIG, "step").weights <= denoiser


def test_the_cost_of_a_linear_map_is_the_sum_one_would_write_down() -> None:
    cost = forward_cost(CONFIG, "decode")
    latent, clip = CONFIG.latent, CONFIG.clip
    pixels = 3 * clip.frames * clip.height * clip.width
    assert cost.ends == pixels + latent.c * latent.flat
    last = 2 * pixels * CONFIG.autoencoder.width  # of width numbers to each pixel
    assert last < cost.flops < 20 * last


@pytest.mark.parametrize(("part", "gflop"), [("encode", 1397), ("decode", 1158), ("step", 71.5)])
def test_the_published_sizes_cost_what_is_known(part: str, gflop: float) -> None:
    config = load_config("sky/diffusion-s").model()
    assert forward_cost(config, part).flops / 1e9 == pytest.approx(gflop, rel=1e-3)  # type: ignore[arg-type]


def test_a_roll_out_is_its_steps_and_its_decodings() -> None:
    step, decode = forward_cost(CONFIG, "step"), forward_cost(CONFIG, "decode")
    sampling = Sampling(steps=Steps(7, 3))
    found = sampling_work(CONFIG, sampling, 3, 2, "bf16")
    assert found.flops == 2 * (13 * step.flops + 3 * decode.flops)
    steps, decodings = (c.weights + 2 * c.ends for c in (step, decode))
    assert found.bytes == 2 * (13 * steps + 3 * decodings)
    heun = sampling_work(CONFIG, Sampling(steps=Steps(7, 3), sampler="heun"), 3, 2, "bf16")
    assert heun.flops == 2 * ((13 + 2 * 5) * step.flops + 3 * decode.flops)


def test_training_costs_three_passes_forward() -> None:
    values = {**CONFIG.model_dump(mode="json"), "stage": "autoencoder"}
    config = RunConfig.model_validate(values)
    forward = [coding_work(CONFIG, part, 5, "fp32").flops for part in ("encode", "decode")]
    assert training_work(config, 5, "fp32").flops == 3 * sum(forward)


def test_the_floor_is_the_longer_of_computing_and_moving() -> None:
    work = Work(flops=600, bytes=100, activation_bytes=10**9)
    assert Floor.of(work, Rates(200, 50)).seconds == 3
    assert Floor.of(work, Rates(200, 50)).bound == "compute"
    assert Floor.of(work, Rates(600, 50)).seconds == 2
    assert Floor.of(work, Rates(600, 50)).bound == "memory"


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_coding_puts_batches_of_the_asked_size_through_the_network(
    way: coding.Way, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, str]] = []
    real = getattr(coding, f"{way}_clips")

    def spy(model: Model, clips: torch.Tensor) -> object:
        seen.append((len(clips), model.precision))
        return real(model, clips)

    monkeypatch.setattr(coding, f"{way}_clips", spy)
    found = coding.measure(
        coding.CodingJob(subject=SUBJECT, way=way, batch=3, repeats=2, precision="bf16")
    )
    assert seen == 3 * [(3, "bf16")]  # one to warm up
    assert found["timing"]["repeats"] == 2


@pytest.mark.parametrize("moved", ["cache writing", "cache reading", "cache in memory"])
def test_caches_are_written_and_read(moved: io.Moved) -> None:
    found = io.measure(io.IoJob(subject=SUBJECT, moved=moved, batch=40, repeats=2))
    assert min(found["timing"]["seconds"]) > 0


def test_video_files_give_the_clips_that_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "HEIGHT", 24)
    monkeypatch.setattr(io, "WIDTH", 32)
    clips = io.VIDEOS * io.CLIPS_EACH
    io.measure(io.IoJob(subject=SUBJECT, moved="video files", batch=clips, repeats=1))
    with pytest.raises(AssertionError):
        io.measure(io.IoJob(subject=SUBJECT, moved="video files", batch=clips + 1, repeats=1))


def test_a_measurement_that_takes_too_long_is_ended() -> None:
    assert child.measure("sample", asdict(job()), timeout=0.3).state == "out of time"


def row(median: float, quantity: str = "seconds", spread: float = 0.0) -> Row:
    return Row("sample", "tiny", "batch 1", quantity, "s", median, spread)


@pytest.mark.parametrize(
    ("before", "after", "worse"),
    [
        (row(2), row(3), 1.5),
        (row(3), row(2), 2 / 3),
        (row(4, "largest batch"), row(2, "largest batch"), 2),
        (row(4, "largest batch"), row(0, "largest batch"), float("inf")),
        (row(0, "peak memory"), row(0, "peak memory"), 1),
    ],
)
def test_worse_is_longer_larger_or_fewer(before: Row, after: Row, worse: float) -> None:
    found = compare_results(Result("a", [before], {}), Result("b", [after], {}))
    assert found.ratios[0].worse == pytest.approx(worse)
    said = found.complaint(1.2)
    assert (said is not None) == (worse > 1.2)
    if said:
        assert f"{after.quantity} of sample tiny (batch 1) {worse:.2f} times" in said


def test_a_difference_within_the_spreads_is_none() -> None:
    near = compare_results(
        Result("a", [row(2, spread=1)], {}), Result("b", [row(2.9, spread=1)], {})
    )
    far = compare_results(
        Result("a", [row(2, spread=1)], {}), Result("b", [row(3.1, spread=1)], {})
    )
    assert [each.ratios[0].beyond for each in (near, far)] == [False, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_rate_of_products_is_that_of_the_faster_kernel(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "matrix_rate", lambda device, precision: 1.0)
    monkeypatch.setattr(floor, "copy_rate", lambda device: 1.0)
    ours = native.can_multiply(DTYPES[precision])
    found = floor.measure_rates("cpu", precision)["flops_per_second"]
    assert 1e8 < found < 1e15 if ours else found == 1.0
    monkeypatch.setattr(floor, "matrix_rate", lambda device, precision: 1e18)
    assert floor.measure_rates("cpu", precision)["flops_per_second"] == 1e18
