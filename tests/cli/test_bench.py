"""`pvdm bench`: one real run of each command, the tables, and what is refused."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny import CONFIG

from pvdm_cli.benchmark import child, floor
from pvdm_cli.benchmark.child import Outcome
from pvdm_cli.benchmark.timing import Timing
from pvdm_cli.cli import bench_cells
from pvdm_cli.config import load_config
from pvdm_cli.footprint import count_step

GB = 2**30


@pytest.fixture
def preset(tmp_path: Path) -> str:
    """A YAML file that describes the tiny diffusion model."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"stage": "diffusion", **CONFIG.model_dump(mode="json")}))
    return str(path)


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """Children that answer at once: 1.5 s per 16 frames; 5 clips of 1.25 GB fit. Their jobs."""
    jobs: list[dict[str, Any]] = []

    def measure(kind: str, job: dict[str, Any], *told: Any, timeout: None = None) -> Outcome:
        if kind == "rates":
            return Outcome("done", {"flops_per_second": 1e12, "bytes_per_second": 1e10})
        jobs.append(job)
        if kind == "train" and job["batch"] > 5:
            return Outcome("out of memory", {})
        seconds = 1.5 * job["frames"] / 16 if kind == "sample" else job["batch"] / 4
        size = 3 * GB // 2 if kind == "sample" else job["batch"] * 5 * GB // 4
        timing = asdict(Timing.of([seconds * 0.9, seconds, seconds * 1.1], "some steps"))
        peak = {"counted": "resident", "bytes": size}
        return Outcome("done", {"timing": timing, "peak": peak, "dtype": "fp32"})

    monkeypatch.setattr(child, "measure", measure)
    floor.rates.cache_clear()
    yield jobs
    floor.rates.cache_clear()


def slow_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the denoiser of every process started from now on sleep at each call."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        """
import time
from pvdm_cli.models.denoiser import Denoiser

def slow(self, *given, _forward=Denoiser.forward, **named):
    time.sleep(0.2)
    return _forward(self, *given, **named)

Denoiser.forward = slow
"""
    )
    monkeypatch.setenv("PYTHONPATH", str(folder))


@pytest.mark.slow
def test_sampling_is_told_as_json_and_a_slower_sampler_is_caught(
    pvdm: Any, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tmp_path / "before.json"
    words = ["bench", "sample", preset, "--steps", "4/2", "--frames", "6", "--repeats", "2"]
    words += ["--device", "cpu", "--json"]
    result = pvdm(*words, "--out", before)
    assert result.code == 0
    told = json.loads(result.out)
    assert json.loads(before.read_text()) == told
    slow_down(tmp_path / "slow", monkeypatch)
    caught = pvdm(*words, "--baseline", before, "--fail-above", "1.3")
    assert caught.code == 1
    assert caught.err.splitlines()[-1].startswith(
        "error: worse than the baseline by more than 1.3: seconds of sample"
    )
    assert min(json.loads(caught.out)["figures"][0]["timing"]["seconds"]) > 6 * 0.2
    (figure,) = told["figures"]
    assert figure["subject"] == preset
    assert figure["settings"] == {"steps": "4/2", "sampler": "ddim", "frames": 6}
    assert (figure["device"], figure["dtype"], figure["state"]) == ("cpu", "fp32", "done")
    assert figure["torch"] == told["environment"]["torch"]
    assert figure["threads"] >= 1
    timing = figure["timing"]
    assert len(timing["seconds"]) == timing["repeats"] == 2
    assert min(timing["seconds"]) <= timing["median"] <= max(timing["seconds"])
    assert timing["spread"] >= 0
    assert "steps" in timing["warm_up"]
    assert figure["peak"]["bytes"] > 0
    assert figure["extrapolated"] is False
    assert told["published"][-1]["frames128"] == {"seconds": 31.3, "gigabytes": 4.33}


@pytest.mark.slow
def test_training_is_measured_and_told_as_json(pvdm: Any, preset: str) -> None:
    words = ["--max-batch", "1", "--memory-limit", "2", "--repeats", "2", "--device", "cpu"]
    result = pvdm("bench", "train", preset, "training.grad_clip=1", *words, "--json")
    assert result.code == 0
    (figure,) = json.loads(result.out)["figures"]
    search = figure["search"]
    assert (figure["settings"]["stage"], figure["batch"], search["largest"]) == ("diffusion", 1, 1)
    assert search["capped"] is True
    assert (search["limit_bytes"], search["limit_from"]) == (2 * GB, "given")
    assert figure["timing"]["repeats"] == 2
    assert 0 < figure["peak"]["bytes"] < 2 * GB
    assert "batch 1 fits" in result.err


def test_the_sample_table_fits_80_columns_with_the_papers_rows_above_ours(
    pvdm: Any, pretended: list[dict[str, Any]]
) -> None:
    words = ["ucf101/diffusion-s", "sky/diffusion-l", "--steps", "100/20,400/400"]
    result = pvdm("bench", "sample", *words, "--device", "cpu", "--extrapolate")
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = {tuple(line.split()[:2]): i for i, line in enumerate(lines)}
    assert rows["PVDM-S", "100/20"] < rows["ucf101/diffusion-s", "100/20"]
    published = lines[rows["PVDM-L", "400/400"]]
    assert published.split(maxsplit=8)[2:8] == ["40.9", "/", "5.22", "328", "/", "5.22"]
    assert published.rstrip().endswith("RTX 3090 Ti 24 GB")
    ours = lines[rows["sky/diffusion-l", "400/400"]]
    assert ours.split()[2:] == ["~1.5", "/", "1.5", "~12", "/", "1.5", "cpu", "fp32"]
    assert "extrapolated" in result.out
    assert "random weights" in result.out
    assert [job["frames"] for job in pretended] == [16, 128] * 4


def test_the_train_table_names_the_largest_batch_and_the_limit(
    pvdm: Any, pretended: list[dict[str, Any]]
) -> None:
    words = ["ucf101/autoencoder", "--memory-limit", "24GiB", "--device", "cpu"]
    result = pvdm("bench", "train", *words)
    lines = result.out.splitlines()
    assert max(map(len, lines)) <= 80
    ours = next(line for line in lines if line.strip().startswith("ucf101/"))
    assert ours.split()[1:] == ["5", "1.25", "4", "6.25", "-", "cpu", "fp32"]  # LPIPS: uncounted
    assert [job["batch"] for job in pretended] == [1, 2, 4, 8, 6, 5, 5]
    assert "must fit in 24 GB (given)" in result.out
    assert "ucf101/autoencoder: measured in fp32" in result.err
    assert "measured in fp32: its fp16 needs a GPU" in " ".join(result.out.split())
    assert "batch 8 does not fit" in result.err


def test_the_predicted_peak_stands_beside_the_measured_one(
    pvdm: Any, preset: str, pretended: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "out.json"
    words = ["--batch-size", "3", "--device", "cpu", "--markdown", "--out", out]
    lines = pvdm("bench", "train", preset, *words).out.splitlines()
    predicted = count_step(load_config(preset, []), 3, "fp32").peak
    rows = {row["quantity"]: row for row in json.loads(out.read_text())["rows"]}
    for quantity, size in (("peak memory", 15 * GB // 4), ("predicted memory", predicted)):
        assert (rows[quantity]["median"], rows[quantity]["unit"]) == (size, "bytes")
    assert "batch 3" in rows["predicted memory"]["settings"]
    heads = "| preset | batch | s / step | clips / s | peak: GB | predicted: GB | device |"
    assert heads in lines
    cells = f"3 | 0.750 | 4 | 3.75 | {predicted / GB:.2g} | cpu fp32"
    assert f"| {preset} | {cells} |" in lines


def test_markdown_is_a_table_with_whole_names(
    pvdm: Any, preset: str, pretended: list[dict[str, Any]]
) -> None:
    words = ["--markdown", "--steps", "9/3", "--frames", "16,32", "--device", "cpu"]
    lines = pvdm("bench", "sample", preset, *words).out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| model | steps | 16 frames: s / GB | 32 frames: s / GB | device |"
    floors = table.index("| model | of | s | floor s | % of floor | bound by |")
    assert {line.count("|") for line in table[:floors]} == {6}
    assert {line.count("|") for line in table[floors:]} == {7}
    assert table[floors - 1] == f"| {preset} | 9/3 | 1.5 / 1.5 | 3 / 1.5 | cpu fp32 |"


def test_out_of_memory_is_a_row_not_a_failure(
    pvdm: Any, preset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "measure", lambda *_, **__: Outcome("out of memory", {}))
    result = pvdm("bench", "sample", preset, "--steps", "5", "--frames", "16")
    assert result.code == 0
    assert "out of memory" in result.out


def test_long_names_are_cut_to_the_terminal_and_nothing_else_is() -> None:
    columns = ["model", "steps", "16 frames\ns / GB", "device"]
    rows = [["x" * 70, "100/20", "84.8 / 18.7", "cpu"], ["short", "1/1", "-", "cpu"]]
    cut = bench_cells._cut(rows, columns, 60)
    assert cut[0][0].startswith("…x")
    assert len(cut[0][0]) + 6 + 11 + 6 + 3 * 2 + 2 == 60
    assert [row[1:] for row in cut] == [row[1:] for row in rows]
    assert cut[1] == rows[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sample", "--frames", "16,x"], "--frames '16,x': expected whole numbers"),
        (["sample", "--frames", "0"], "--frames '0': expected whole numbers"),
        (["sample", "sky/diffusion-s", "--steps", "9/"], "--steps '9/'"),
        (["sample", "sky/diffusion-s", "--steps", "2000"], "use 1 to 1000"),
        (["sample", "sky/autoencoder"], "autoencoder preset"),
        (["sample", "no/such"], "neither a model"),
        (["sample", "--json", "--markdown"], "--json and --markdown exclude each other"),
        (["io", "--csv", "--markdown"], "--csv and --markdown exclude each other"),
        (["sample", "--fail-above", "1.1"], "needs --baseline"),
        (["sample", "--baseline", "no.json"], "no.json: No such file"),
        (["sample", "--baseline", __file__], "no result of `pvdm bench`"),
        (["sample", "--baseline", __file__, "--fail-above", "0.9"], "expected 1 or more"),
        (["sample", "--plot", "x.pdf"], "ends in .svg or .png"),
        (["sample", "--sampler", "ddim,fast"], "--sampler 'fast'"),
        (["encode", "--batch-size", "1,some"], "--batch-size '1,some': expected"),
        (["decode", "--precision", "fp64"], "--precision 'fp64': choose"),
        (["all", "sky/autoencoder"], "autoencoder preset"),
        (["compare", "no.json", "no.json"], "no.json: No such file"),
        (["train", "sky/diffusion-s", "--memory-limit", "much"], "--memory-limit 'much'"),
        (["train", "sky/diffusion-s", "training.batch=3"], "unknown key 'batch'"),
        (["train", "no/such"], "no preset 'no/such'"),
        (["train", "sky/diffusion-s", "--device", "tpu"], "unknown device 'tpu'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    refusal: Callable[..., str], words: list[str], said: str
) -> None:
    assert said in refusal("bench", *words)
