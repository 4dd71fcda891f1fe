"""`pvdm bench rivals`: its tables, its result, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from pvdm_cli.benchmark.figure import COUNTED, Bench, Counted, Figure
from pvdm_cli.benchmark.floor import Floor
from pvdm_cli.benchmark.paper import published_systems
from pvdm_cli.benchmark.systems import SYSTEMS
from pvdm_cli.benchmark.timing import Peak, Timing
from pvdm_cli.cli import bench_tables

GB = 2**30


def figure(subject: str, seconds: float | None, state: str = "done", *notes: str) -> Figure:
    """A clip of 250 steps, if it has been run, else counted."""
    ran: dict[str, Any] = {}
    if seconds is not None:
        ran = {
            "timing": Timing.of([250 * seconds], "1 step"),
            "step": Timing.of([seconds], "1 step", [2 * seconds]),
            "peak": Peak("resident", 3 * GB),
            "floor": Floor(100 * seconds, 1, 1, 1, 1e12, 1e10, "compute"),
        }
    return Figure(
        bench="rivals",
        subject=subject,
        settings={"steps": 250, "frames": 16},
        batch=1,
        unit="clip",
        height=256,
        width=256,
        device="cpu",
        dtype="fp32",
        threads=2,
        state=state,
        extrapolated=True,
        counted=Counted(457_000_000, 2 * GB, 3_725 * 10**9, 250, 10**13),
        notes=list(notes),
        **ran,
    )


@pytest.fixture
def result() -> Bench:
    """Ours, one that ran, one that was counted, two that could not."""
    figures = [
        figure("sky/diffusion-s", 2.0),
        figure("Latte-XL", 40.0),
        figure("UNet3DCondition", None, COUNTED),
        figure("VDM", None, "not installed", "vdm: it is not installed: do this"),
        figure("Latte-S", None, "out of memory", "latte-s: one clip does not fit"),
    ]
    return Bench("rivals", figures, systems=published_systems())


def test_the_tables_fit_80_columns_and_tell_what_was_run_from_what_was_not(
    result: Bench, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    bench_tables.show(result)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line.split() for line in lines]
    assert ["sky/diffusion-s", "256", "250", "2", "500", "1", "3", "40", "cpu", "fp32"] in rows
    assert ["Latte-XL", "256", "250", "40", "10,000", "20", "3", "40", "cpu", "fp32"] in rows
    assert ["UNet3DCondition", "256", "250", *"-----", "counted"] in rows
    assert ["VDM", "256", "250", *"-----", "missing"] in rows
    assert ["Latte-S", "256", "250", *"-----", "too", "large"] in rows
    counted = ["457", "2", "3,725", "941", "1"]
    assert ["Latte-XL", "256", "250", *counted, "run"] in rows
    assert ["UNet3DCondition", "256", "250", *counted, "counted"] in rows
    assert ["TATS", *"-0", "84.8", "/", "18.7", "434", "/", "19.2", "-", "57.63"] in rows
    text = " ".join(" ".join(lines).split())
    for said in (
        "vdm: it is not installed: do this",
        "latte-s: one clip does not fit",
        "from 1 timed steps each",
        "sky/diffusion-s 1,000 (1 x), Latte-XL 20,000 (20 x)",
        "counted: not run, so its time is not known",
        "RTX 3090 Ti 24 GB",
        "not run, the package of this name on PyPI is empty and somebody else's: VideoGPT",
    ):
        assert said in text


def test_nothing_run_still_gives_tables(capsys: pytest.CaptureFixture[str]) -> None:
    bench_tables.show(Bench("rivals", [figure("Wan-1.3B", None, COUNTED)]))
    assert "Wan-1.3B" in capsys.readouterr().out


def test_rows_hold_steps_clips_and_what_was_counted(result: Bench) -> None:
    rows = {(row.subject, row.quantity): row for row in result.rows}
    assert rows["Latte-XL", "seconds"].median == 10_000
    assert rows["Latte-XL", "seconds per step"].median == 40
    assert rows["Latte-XL", "peak memory"].median == 3 * GB
    counted = rows["UNet3DCondition", "operations"]
    assert (counted.median, counted.unit) == (pytest.approx(941.25), "TFLOP")
    assert ("UNet3DCondition", "seconds") not in rows


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--systems", "lattes"], "--systems 'lattes' is not known; did you mean 'latte-s'"),
        (["--precision", "fp32,bf16"], "--precision 'fp32,bf16': give one"),
        (["nothing-such"], "'nothing-such' is neither a model"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    refusal: Any, words: list[str], said: str
) -> None:
    assert said in refusal("bench", "rivals", *words)


@pytest.mark.slow
def test_a_real_run_is_told_kept_and_compared(pvdm: Any, tmp_path: Path) -> None:
    if lacks := SYSTEMS["ltx"].lacks:
        pytest.skip(lacks)
    out = tmp_path / "rivals.json"
    words = ["bench", "rivals", "demo", "--systems", "ltx", "--steps", "10"]
    words += ["--repeats", "1", "--device", "cpu"]
    assert pvdm(*words, "--markdown", "--out", out).code == 0
    told = json.loads(out.read_text())
    assert told["command"].startswith("pvdm bench rivals demo")
    states = [figure["state"] for figure in told["figures"]]
    assert states == ["done", COUNTED]  # others are run in unit/test_rivals.py
    assert {system["method"] for system in told["systems"]} >= {"TATS", "PVDM-S"}
    compared = pvdm("bench", "compare", out, out, "--json")
    assert {each["ratio"] for each in json.loads(compared.out)["ratios"]} == {1.0}
