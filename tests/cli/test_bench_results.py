"""Results of `pvdm bench`: all benchmarks at once, files, pictures, comparisons."""

import csv
import io
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from test_bench import preset, pretended  # noqa: F401  (fixtures)

from pvdm_cli.benchmark.figure import COUNTED
from pvdm_cli.benchmark.systems import SYSTEMS

Jobs = list[dict[str, Any]]


@pytest.fixture
def results(pvdm: Any, preset: str, pretended: Jobs, tmp_path: Path) -> tuple[Path, Path]:  # noqa: F811
    """A result, and another of which one time is 1.5 times as long and one row is missing."""
    paths = tmp_path / "a.json", tmp_path / "b.json"
    words = ["--steps", "9/3", "--frames", "16,32", "--device", "cpu"]
    for path in paths:
        assert pvdm("bench", "sample", preset, *words, "--out", path).code == 0
    told = json.loads(paths[1].read_text())
    told["rows"][0]["median"] *= 1.5
    told["environment"]["torch"] = "1.0"
    del told["rows"][-1]
    paths[1].write_text(json.dumps(told))
    return paths


def test_all_measures_everything_and_draws_it(
    pvdm: Any,
    preset: str,  # noqa: F811
    pretended: Jobs,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wan = SYSTEMS["wan"]
    absent = replace(wan, step=replace(wan.step, package="no_such_package"))
    monkeypatch.setitem(SYSTEMS, "wan", absent)
    out, picture = tmp_path / "all.json", tmp_path / "all.svg"
    words = ["--frames", "4,6", "--steps", "4/2", "--memory-limit", "24", "--device", "cpu"]
    words += ["--systems", "wan"]
    result = pvdm("bench", "all", preset, *words, "--out", out, "--plot", picture)
    assert result.code == 0
    told = json.loads(out.read_text())
    assert told["command"].startswith("pvdm bench all")
    benches = [figure["bench"] for figure in told["figures"]]
    assert list(dict.fromkeys(benches)) == ["sample", "train", "encode", "decode", "io", "rivals"]
    ours, theirs = told["figures"][-2:]
    assert ours["settings"]["steps"] == 4
    assert theirs["state"] == "not installed"
    assert "TATS" in {system["method"] for system in told["systems"]}
    rows = {(row["bench"], row["quantity"]): row for row in told["rows"]}
    assert rows["train", "largest batch"]["median"] == 4
    assert rows["train", "seconds"]["unit"] == "s / clip"
    assert rows["encode", "seconds"]["floor"] > 0
    for name in ("Seconds / peak memory", "Largest training batch", "floor of", "encode", "Files"):
        assert name in result.out
    assert " ".join(result.out.split()).count("no-such-package is not installed") == 1
    drawing = ElementTree.fromstring(picture.read_text())
    text = " ".join(drawing.itertext())
    assert "seconds against frames" in text
    assert "GB of memory against the batch" in text
    lines = [each for each in drawing.iter() if "curve" in each.get("class", "")]
    assert len(lines) >= 4  # with their names


def test_csv_holds_a_number_a_line(pvdm: Any, preset: str, pretended: Jobs) -> None:  # noqa: F811
    words = ["--batch-size", "1,2,max", "--max-batch", "3", "--device", "cpu", "--csv"]
    result = pvdm("bench", "encode", preset, *words)
    rows = list(csv.DictReader(io.StringIO(result.out)))
    found = [(row["quantity"], row["settings"].split(", ")[2], row["median"]) for row in rows]
    assert ("seconds", "batch 2", "0.5") in found
    assert ("largest batch", "batch largest", "3") in found
    assert ("seconds", "batch largest", "0.25") in found  # of each clip
    assert ("peak memory", "batch 3", str(15 * 2**30 // 4)) in found  # tried on the way


def test_the_coding_table_fits_80_columns(
    pvdm: Any,
    pretended: Jobs,  # noqa: F811
) -> None:
    result = pvdm("bench", "decode", "ucf101/diffusion-s", "--device", "cpu")
    assert max(map(len, result.out.splitlines())) <= 80
    row = next(line for line in result.out.splitlines() if line.startswith(" ucf101"))
    batch, seconds, rate, memory, floor, share, *device = row.split()[1:]
    assert (batch, seconds, rate, memory, device) == ("1", "0.250", "4", "1.25", ["cpu", "fp32"])
    assert math.isclose(float(share), 100 * float(floor) / 0.25, rel_tol=0.01)
    assert math.isclose(float(floor), 1.158, rel_tol=0.01)  # 1,158 GFLOP at 1 TFLOP/s


def test_two_results_are_compared_row_by_row(pvdm: Any, results: tuple[Path, Path]) -> None:
    told = json.loads(pvdm("bench", "compare", *results, "--json").out)
    assert [each["ratio"] for each in told["ratios"]] == [1.5, 1, 1]
    assert [each["beyond"] for each in told["ratios"]] == [True, False, False]
    assert len(told["gone"]) == 1
    assert told["new"] == []
    assert any(each.startswith("torch: ") for each in told["differing"])
    lines = pvdm("bench", "compare", *results, "--markdown").out.splitlines()
    assert sum("| worse |" in line for line in lines) == 1
    assert sum("| same |" in line for line in lines) == 2
    assert any(line.startswith(f"- only in {results[0]}: peak memory") for line in lines)


def test_a_baseline_passes_what_is_no_worse_and_says_what_is_missing(
    pvdm: Any,
    preset: str,  # noqa: F811
    results: tuple[Path, Path],
) -> None:
    words = ["bench", "sample", preset, "--steps", "9/3", "--device", "cpu"]
    good = pvdm(*words, "--frames", "16,32", "--baseline", results[1], "--fail-above", "1.001")
    assert good.code == 0  # 1.5 times faster
    assert "only in this result: peak memory" in good.err
    assert "3 figures beside" in good.err
    other = pvdm(*words, "--frames", "64", "--baseline", results[0], "--fail-above", "1.5")
    assert other.code == 1
    assert "nothing in it was measured now" in other.err


@pytest.mark.slow
def test_what_is_not_done_in_time_is_said(pvdm: Any, preset: str) -> None:  # noqa: F811
    words = ["--minutes", "0.1", "--steps", "20/20", "--frames", "20000", "--device", "cpu"]
    result = pvdm("bench", "all", preset, *words, "--systems", "latte-xl", "--json")
    assert result.code == 0
    told = json.loads(result.out)
    if SYSTEMS["latte-xl"].lacks is None:
        assert told["figures"][-1]["state"] == "out of time"
    states = [figure["state"] for figure in told["figures"] if figure["bench"] == "sample"]
    assert states == ["out of time"]
    assert "sample" not in {row["bench"] for row in told["rows"]}
    assert "figures are missing: 0.1 minutes were over" in told["notes"][-1]


@pytest.mark.slow
def test_all_of_the_demo_model_is_measured_for_real(pvdm: Any, tmp_path: Path) -> None:
    words = ["--steps", "20/5", "--frames", "32", "--repeats", "1", "--max-batch", "2"]
    words += ["--systems", "ltx"]  # others are run in test_bench_rivals.py
    result = pvdm("bench", "all", *words, "--minutes", "8", "--device", "cpu", "--json")
    assert result.code == 0
    told = json.loads(result.out)
    *figures, theirs = told["figures"]
    assert theirs["state"] == ("not installed" if SYSTEMS["ltx"].lacks else COUNTED)
    assert {figure["state"] for figure in figures} == {"done"}
    for figure in figures:
        assert figure["peak"]["bytes"] > 0
        if figure["floor"]:
            assert figure["floor"]["seconds"] > 0


@pytest.mark.slow
def test_all_of_pvdm_s_ends_within_its_minutes(pvdm: Any, tmp_path: Path) -> None:
    words = ["sky/diffusion-s", "--extrapolate", "--frames", "16", "--repeats", "1"]
    words += ["--systems", "ltx"]
    began = time.monotonic()
    result = pvdm("bench", "all", *words, "--minutes", "1.5", "--device", "cpu", "--json")
    assert time.monotonic() - began < 90 + 30  # networks are counted and rates measured besides
    assert result.code == 0
    told = json.loads(result.out)
    states = [figure["state"] for figure in told["figures"]]
    assert set(states) <= {"done", "out of time", COUNTED, "not installed"}
    assert "done" in states
    missing = states.count("out of time")  # on two idle cores few or none
    assert any(note.startswith(f"{missing} of") for note in told["notes"]) == bool(missing)
