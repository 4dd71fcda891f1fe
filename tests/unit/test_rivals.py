"""Other people's systems: what they cost, that they run, and what is said where they cannot."""

import importlib.util
from dataclasses import replace

import pytest

from pvdm_cli.benchmark import rivals
from pvdm_cli.benchmark.figure import COUNTED
from pvdm_cli.benchmark.paper import published_systems
from pvdm_cli.benchmark.rivals import bench_rivals
from pvdm_cli.benchmark.systems import SYSTEMS, find_systems
from pvdm_cli.errors import PvdmError

# What was found before, by other code: parameters M, GFLOP a step, TFLOP a clip.
KNOWN = {
    "vdm": (35.7, 249.5, 250),
    "vdm-256": (35.7, 4008, 4008),
    "latte-s": (22.6, 184, 56),
    "latte-xl": (457, 3725, 941),
    "unet3d": (1411, 4887, 499),
    "animatediff": (1313, 4106, 421),
    "cogvideox": (1694, 4525, 473),
    "wan": (1419, 3778, 387),
    "ltx": (1923, 709, 72),
}


def needs(name: str) -> None:
    """Skip where a package is not installed."""
    if lacks := SYSTEMS[name].lacks:
        pytest.skip(lacks)


def test_every_system_is_known() -> None:
    assert list(SYSTEMS) == [system.name for system in find_systems("all")]
    assert set(SYSTEMS) == set(KNOWN)


def test_an_unknown_system_is_refused_with_a_guess() -> None:
    with pytest.raises(PvdmError, match=r"--systems 'late-s' is not known; did you mean 'latte-s'"):
        find_systems("vdm,late-s")


def test_what_is_not_installed_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    system = SYSTEMS["wan"]
    absent = replace(system, step=replace(system.step, package="no_such_package"))
    monkeypatch.setitem(SYSTEMS, "wan", absent)
    found = bench_rivals([], systems="wan", device="cpu")
    assert [figure.state for figure in found.figures] == ["not installed"]
    said = "wan: no-such-package is not installed: pip install 'pvdm[rivals]'"
    assert found.notes == [said]
    assert found.rows == []


def test_what_nobody_can_run_is_there_with_its_reason_and_its_figures() -> None:
    found = {each.method: each for each in published_systems()}
    assert {"TATS", "VideoGPT", "MoCoGAN", "DIGAN", "StyleGAN-V", "TGANv2", "VDM"} <= set(found)
    assert found["VDM"].why_not_run is None
    for method in ("TATS", "VideoGPT", "MoCoGAN", "DIGAN", "StyleGAN-V", "TGANv2"):
        row = found[method]
        assert row.why_not_run
        assert row.cost or row.fvd or row.inception
    small = found["PVDM-S"]
    assert small.fvd is not None
    assert small.fvd.ucf101 == (457.4, 902.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_system_costs_what_is_known(name: str) -> None:
    needs(name)
    found = rivals.count_clip(SYSTEMS[name], "bf16")
    counted = found.parameters / 1e6, found.step_flops / 1e9, found.flops / 1e12
    assert counted == pytest.approx(KNOWN[name], rel=0.02)
    assert found.weight_bytes >= 2 * found.parameters


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_large_system_is_counted_not_run() -> None:
    needs("ltx")
    (figure,) = bench_rivals([], systems="ltx", device="cpu").figures
    assert (figure.state, figure.timing, figure.peak) == (COUNTED, None, None)
    assert figure.counted is not None
    assert figure.counted.calls == 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vdm", "latte-s"])
def test_a_system_is_run_beside_ours(name: str) -> None:
    needs(name)
    found = bench_rivals(["demo"], systems=name, steps=10, repeats=1, device="cpu")
    ours, theirs = found.figures
    for figure in (ours, theirs):
        assert figure.state == "done"
        assert figure.timing is not None
        assert figure.step is not None
        assert figure.peak is not None
        assert figure.counted is not None
        assert figure.timing.median > figure.counted.calls * figure.step.median * 0.999
        assert (figure.peak.bytes or 0) > 4 * figure.counted.parameters
        assert figure.floor is not None
        assert figure.floor.flops == figure.counted.flops


@pytest.mark.slow
def test_a_clip_that_does_not_fit_is_a_row_that_says_so() -> None:
    needs("latte-s")
    found = bench_rivals([], systems="latte-s", memory_limit=100 << 20, device="cpu")
    assert [figure.state for figure in found.figures] == ["out of memory"]
    assert found.notes == ["latte-s: one clip does not fit in the memory of cpu here"]


def test_the_extra_is_told_by_its_packages() -> None:
    names = {system.step.package for system in SYSTEMS.values()}
    assert names == {"diffusers", "video_diffusion_pytorch"}
    for name, system in SYSTEMS.items():
        installed = importlib.util.find_spec(system.step.package) is not None
        assert (system.lacks is None) == installed, name
