"""Measuring: times, peaks, the search for the largest batch, and that real work is measured."""

import json
import mmap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import CONFIG, tiny_model

from pvdm_cli.benchmark import child, floor, maximum, sample, subjects, train
from pvdm_cli.benchmark.child import Outcome
from pvdm_cli.benchmark.maximum import Largest, largest_batch, parse_memory
from pvdm_cli.benchmark.noise import noise_stage
from pvdm_cli.benchmark.published import TABLE_5, Cost
from pvdm_cli.benchmark.sample import SampleJob, bench_sample
from pvdm_cli.benchmark.subjects import Subject, build, find_subject, random_network
from pvdm_cli.benchmark.timing import PeakMeter, Timing, repeat
from pvdm_cli.benchmark.train import TrainJob, bench_train
from pvdm_cli.config import RunConfig
from pvdm_cli.errors import PvdmError
from pvdm_cli.model import save_model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.runtime import ran_out
from pvdm_cli.sampling import Steps

CPU = torch.device("cpu")
SUBJECT = Subject("tiny", CONFIG.model_dump(mode="json"))
MB = 1 << 20


def job(**changes: Any) -> SampleJob:
    """A measurement of two clips and a half (frames of a clip: 4)."""
    values = {"subject": SUBJECT, "steps": Steps(7, 3), "frames": 10, "repeats": 2}
    return SampleJob(**{**values, **changes})


def run_config(stage: str) -> RunConfig:
    """A training run of the tiny networks."""
    training = {"batch_size": 3, "lr": 1e-3, "ema_decay": 0.5}
    return RunConfig.model_validate(
        {**CONFIG.model_dump(mode="json"), "stage": stage, "training": training}
    )


@contextmanager
def holding(size: int) -> Iterator[None]:
    """Hold memory that comes from the system and goes back to it, whatever malloc keeps."""
    with mmap.mmap(-1, size) as block:
        for _ in range(size // MB):
            block.write(b"x" * MB)
        yield


@pytest.fixture
def preset(tmp_path: Path) -> str:
    """A YAML file that describes the tiny diffusion model."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"stage": "diffusion", **CONFIG.model_dump(mode="json")}))
    return str(path)


# Times --------------------------------------------------------------------------------------


def test_a_timing_holds_median_and_spread() -> None:
    timing = Timing.of([3.0, 1.0, 1.5], "none")
    assert (timing.median, timing.spread, timing.repeats) == (1.5, 2.0, 3)


def test_unstated_repeats_stop_when_the_budget_is_spent_and_stated_ones_do_not() -> None:
    def slow() -> float:
        time.sleep(0.002)
        return 1.0

    assert len(repeat(slow, None, budget=0.001)) == 1
    assert len(repeat(slow, None, budget=100)) == 3
    assert len(repeat(slow, 5, budget=0.001)) == 5


# Memory -------------------------------------------------------------------------------------


def test_the_peak_is_what_was_held_at_once_even_if_it_is_freed() -> None:
    meter = PeakMeter(CPU)
    with holding(96 * MB):
        pass
    peak = meter.read()
    assert peak.counted == "resident"
    assert peak.bytes is not None
    assert 90 * MB < peak.bytes < 130 * MB


def test_a_restarted_meter_forgets_the_peak_of_loading() -> None:
    meter = PeakMeter(CPU)
    with holding(96 * MB):
        pass
    meter.restart()
    assert (meter.read().bytes or 0) < 60 * MB


def test_the_watch_calls_once_the_limit_is_passed_and_not_before() -> None:
    exceeded = threading.Event()
    PeakMeter(CPU).watch(60 * MB, exceeded.set)
    assert not exceeded.wait(0.05)
    with holding(120 * MB):
        assert exceeded.wait(20)


@pytest.mark.slow
def test_a_measurement_does_not_inherit_the_peak_of_its_parent() -> None:
    with holding(400 * MB):
        found = child.measure("sample", asdict(job(frames=3, repeats=1)))
    assert found.state == "done"
    assert 0 < found.figures["peak"]["bytes"] < 300 * MB
    assert len(found.figures["timing"]["seconds"]) == 1


# The largest batch --------------------------------------------------------------------------


@pytest.mark.parametrize("guess", [0, 1, 3, 16, 40])
@pytest.mark.parametrize("most", [1, 5, 16])
@pytest.mark.parametrize("truth", range(19))
def test_the_largest_batch_is_found_without_trying_one_twice(
    truth: int, most: int, guess: int
) -> None:
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= truth

    found = largest_batch(fits, most, guess)
    assert found == Largest(min(truth, most), capped=truth >= most)
    assert len(set(tried)) == len(tried) <= 8
    assert all(1 <= batch <= most for batch in tried)


@pytest.mark.parametrize(("guess", "most_tries"), [(1, 14), (105, 6)])
def test_a_good_guess_saves_most_tries(guess: int, most_tries: int) -> None:
    for truth in (96, 104, 105, 113):
        tried: list[int] = []

        def fits(batch: int, truth: int = truth, tried: list[int] = tried) -> bool:
            tried.append(batch)
            return batch <= truth

        assert largest_batch(fits, 1024, guess).batch == truth
        assert len(tried) <= most_tries


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("24", 24 << 30),
        ("24GiB", 24 << 30),
        ("24 GB", 24 << 30),
        ("0.5g", 1 << 29),
        ("300MiB", 300 << 20),
    ],
)
def test_memory_sizes_are_read(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "0", "-3", "24TB", "many", "24IB", "1e3"])
def test_anything_else_is_no_memory_size(text: str) -> None:
    with pytest.raises(PvdmError, match=r"^--memory-limit .*500MiB$"):
        parse_memory(text)


def test_a_containers_limit_counts_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("300\n")
    assert maximum._cgroup(tmp_path) == 700
    (tmp_path / "memory.max").write_text("max\n")
    assert maximum._cgroup(tmp_path) is None


def test_a_limit_too_small_for_anything_gives_zero(preset: str) -> None:
    found = bench_train([preset], memory_limit=MB, max_batch=2, device="cpu").figures[0]
    assert found.search is not None
    assert (found.batch, found.search.capped, found.timing) == (0, False, None)
    assert [each.batch for each in found.search.tries] == [1]


def test_the_search_reports_the_largest_batch_timed_again(
    preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int | None]] = []

    def pretend(kind: str, job: dict[str, Any], *told: Any, timeout: None = None) -> Outcome:
        if kind == "rates":
            return Outcome("done", {"flops_per_second": 1e12, "bytes_per_second": 1e10})
        asked.append((job["batch"], job["repeats"]))
        if job["batch"] > 6:
            return Outcome("out of memory", {})
        timing = asdict(Timing.of([float(job["batch"])] * (job["repeats"] or 3), "1 step"))
        peak = {"counted": "resident", "bytes": job["batch"] * MB}
        return Outcome("done", {"timing": timing, "peak": peak})

    monkeypatch.setattr(child, "measure", pretend)
    floor.rates.cache_clear()
    limited = bench_train([preset], memory_limit=5 * MB, device="cpu").figures[0]
    assert limited.batch == 5  # 6 ran, but its peak was above the limit
    assert asked[-1] == (5, None)
    assert limited.timing is not None
    assert limited.timing.repeats == 3
    assert bench_train([preset], memory_limit=99 * MB, device="cpu").figures[0].batch == 6


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_want_of_memory_is_told_from_other_failures(error: Exception, expected: bool) -> None:
    assert ran_out(error) is expected


def test_a_child_killed_by_the_system_means_out_of_memory_and_another_end_is_an_error() -> None:
    assert child._unanswered(-9, "").state == "out of memory"
    with pytest.raises(PvdmError, match=r"exit code 1.*ValueError: odd; --debug") as caught:
        child._unanswered(1, "Traceback\nValueError: odd")
    assert "Traceback" in caught.value.__notes__[0]


# Sampling -----------------------------------------------------------------------------------


def test_a_measured_video_makes_every_network_call_of_the_real_one() -> None:
    calls: list[None] = []
    found = sample.measure(job(), lambda: calls.append(None))
    assert len(calls) == (2 + 2) + 2 * (7 + 2 * 3)  # warm-up, then 3 clips of 10 frames, twice
    assert found["timing"]["repeats"] == 2
    assert found["timing"]["warm_up"] == "2 clips of 2 and 2 steps"


@pytest.mark.parametrize(("frames", "decodings"), [(4, 1), (10, 3)])
def test_an_extrapolation_multiplies_out_to_the_whole_video(
    frames: int, decodings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cost = 0.0

    class Counting(Denoiser):
        def forward(self, z_t: Any, t: Any, z_prefix: Any = None, prefix_noise: Any = None) -> Any:
            nonlocal cost
            cost += 1.0 if z_prefix is None else 10.0
            return z_t

    def counted(work: Any, device: Any) -> float:
        nonlocal cost
        cost = 0.0
        work()
        return cost or 1000.0  # the decoding calls no denoiser

    model = tiny_model()
    model.denoiser = Counting(model.config)
    monkeypatch.setattr(sample, "seconds_of", counted)
    steps: list[tuple[float, float]] = []
    found = sample._extrapolated(model, job(frames=frames), lambda: None, steps)
    assert found == 7 * 1 + (decodings - 1) * 3 * 10 + decodings * 1000
    assert [wall for wall, _ in steps] == [1]


def test_a_job_survives_the_way_through_json() -> None:
    assert SampleJob.read(json.loads(json.dumps(asdict(job())))) == job()


def test_more_steps_than_were_trained_are_refused_before_anything_runs(preset: str) -> None:
    with pytest.raises(PvdmError, match=r"21/5.*20 timesteps"):
        bench_sample([preset], steps="10/5,21/5", device="cpu")


# Subjects -----------------------------------------------------------------------------------


def test_a_preset_is_built_at_its_full_size_the_same_for_a_seed() -> None:
    one, same, other = (build(SUBJECT, CPU, seed) for seed in (0, 0, 1))
    assert one.denoiser is not None
    for network, kind in ((one.autoencoder, Autoencoder), (one.denoiser, Denoiser)):
        fresh = kind(CONFIG).state_dict()
        assert {k: v.shape for k, v in network.state_dict().items()} == {
            k: v.shape for k, v in fresh.items()
        }
        assert all(bool(p.isfinite().all()) for p in network.parameters())
        assert list(network.buffers()) == []  # to_empty would leave them unset
    assert one.fingerprint == same.fingerprint != other.fingerprint


def test_a_trained_model_is_measured_with_its_own_weights(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    subject = find_subject(str(tmp_path / "model"))
    assert subject.weights == "trained"
    assert build(subject, CPU, 0).fingerprint == tiny_model().fingerprint


def test_without_the_demo_model_its_preset_is_measured_and_a_note_says_so(
    tmp_path: Path, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "DEMO", tmp_path / "nothing")
    monkeypatch.setattr(subjects, "DEMO_PRESET", preset)
    subject = find_subject("demo")
    assert (subject.name, subject.weights) == (preset, "random")
    assert "not installed" in subject.notes[0]


def test_what_cannot_sample_is_refused(tmp_path: Path) -> None:
    save_model(tiny_model(with_denoiser=False), tmp_path / "model")
    with pytest.raises(PvdmError, match="holds an autoencoder only"):
        find_subject(str(tmp_path / "model"))
    with pytest.raises(PvdmError, match="autoencoder preset"):
        find_subject("sky/autoencoder")
    with pytest.raises(PvdmError, match="did you mean 'sky/diffusion-s'"):
        find_subject("sky/difusion-s")


# Training -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_a_measured_step_is_a_whole_training_step(stage: str) -> None:
    config = run_config(stage)
    built = noise_stage(config, CPU)
    batch = built.draw(0, range(3))
    assert len(batch.frames if stage == "autoencoder" else batch.z0) == 3
    before = built.losses(built.network, batch)["loss"].item()
    step = train.stepper(built, config)
    for _ in range(5):
        step()
    after = built.losses(built.network, batch)["loss"].item()
    assert 0 < after < before  # five AdamW steps on one batch


def test_the_diffusion_stage_around_noise_sees_prefixes() -> None:
    config = run_config("diffusion")
    diffusion = CONFIG.diffusion.model_copy(update={"prefix_prob": 1.0})  # type: ignore[union-attr]
    config = config.model_copy(update={"diffusion": diffusion})
    stage = noise_stage(config, CPU)
    given = torch.cat([stage.draw(k, range(3)).keep for k in range(9)])
    assert 0 < int(given.sum()) < len(given)  # of two clips one continues the other


def test_training_is_measured_at_the_batch_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = train.noise_stage

    def spy(config: RunConfig, device: torch.device) -> Any:
        seen.append(config.training.batch_size * config.training.accumulation)
        return real(config, device)

    monkeypatch.setattr(train, "noise_stage", spy)
    values = run_config("autoencoder").model_dump(mode="json")
    values["training"] |= {"batch_size": 24, "accumulation": 3}
    steps: list[None] = []
    found = train.measure(
        TrainJob(config=values, batch=2, repeats=2),
        lambda: steps.append(None),
    )
    assert seen == [2]
    assert len(steps) == 3
    assert found["timing"]["repeats"] == 2


def test_what_cannot_run_here_is_left_out_and_said() -> None:
    config = run_config("autoencoder").model_dump(mode="json")
    config["training"]["precision"] = "fp16"
    changed, notes = train._trainable(RunConfig.model_validate(config), CPU)
    assert changed.training.precision == "fp32"
    assert len(notes) == 1
    assert "fp16" in notes[0]


def test_a_random_network_can_be_trained() -> None:
    network = random_network(Autoencoder, CONFIG, CPU, 0)
    assert all(parameter.requires_grad for parameter in network.parameters())


# The paper ----------------------------------------------------------------------------------


def test_the_published_rows_are_those_of_table_5() -> None:
    batches = {row.method: row.train_batch for row in TABLE_5}
    assert batches == {"TATS": 0, "VideoGPT": 0, "VDM": 0, "PVDM-L": 2, "PVDM-S": 7}
    row = next(row for row in TABLE_5 if (row.method, row.steps) == ("PVDM-L", "200/200"))
    assert (row.cost(16), row.cost(128), row.cost(64)) == (Cost(20.4, 5.22), Cost(166, 5.22), None)
    assert row.hardware == "RTX 3090 Ti 24 GB"
