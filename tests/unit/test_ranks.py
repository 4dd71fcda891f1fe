"""The processes of one run, as far as one process tells."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import typer
from ranks_together import free_port

from pvdm_cli import ranks
from pvdm_cli.cli import launch, render
from pvdm_cli.config import TrainingConfig
from pvdm_cli.errors import ConfigError
from pvdm_cli.progress import SILENT
from pvdm_cli.ranks import PeerLostError, Ranks
from pvdm_cli.training.players import Portion


def test_alone_everything_is_as_it_was() -> None:
    here = ranks.here()
    assert (here.rank, here.size, here.main) == (0, 1, True)
    assert here.agree([True, False]) == [True, False]
    assert here.gather("x") == ["x"]
    assert here.first(lambda: 3) == 3
    assert list(here.tickets("work", 3)) == [0, 1, 2]
    values = torch.ones(2)
    assert here.sum(values) is values
    assert here.says("a line")
    assert not here.failed


def test_a_process_is_only_launched_with_all_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ranks.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")  # left in a shell, say
    assert not ranks.launched()
    for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "0")
    assert ranks.launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not ranks.launched()


@pytest.mark.parametrize(
    ("batch", "accumulation", "size"),
    [(6, 1, 1), (6, 1, 2), (6, 1, 3), (4, 3, 2), (4, 3, 4), (4, 3, 6), (5, 2, 2), (1, 6, 2)],
)
def test_processes_share_all_samples_of_a_step_in_small_enough_passes(
    batch: int, accumulation: int, size: int
) -> None:
    settings = TrainingConfig(batch_size=batch, accumulation=accumulation)
    parts = [Portion.of(settings, Ranks(rank, size)) for rank in range(size)]
    samples = [i for part in parts for each in range(part.passes) for i in part.samples(each)]
    assert sorted(samples) == list(range(batch * accumulation))
    assert all(part.batch <= batch for part in parts)


def test_one_process_takes_the_passes_of_the_configuration() -> None:
    part = Portion.of(TrainingConfig(batch_size=4, accumulation=3), Ranks())
    assert (part.batch, part.passes) == (4, 3)
    assert part.samples(2) == range(8, 12)


def test_a_step_that_does_not_go_round_names_the_multiple() -> None:
    with pytest.raises(ConfigError, match=r"is 12 clips, which 5 processes .* multiple of 5"):
        Portion.of(TrainingConfig(batch_size=4, accumulation=3), Ranks(0, 5))


def test_a_broken_connection_is_said_in_a_sentence_and_other_failures_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranks, "_ending", False)  # what is set here does not outlive the test
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer"
    with pytest.raises(PeerLostError, match="another process of this run"), ranks.watching():
        raise RuntimeError(gloo)
    assert ranks.ending()
    with pytest.raises(RuntimeError, match="shapes"), ranks.watching():
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(("given", "ends"), [("1", (1, 1)), ("4", (4, 4)), ("2:8", (2, 8))])
def test_numbers_of_machines(given: str, ends: tuple[int, int]) -> None:
    assert launch._nodes(given) == ends


@pytest.mark.parametrize("given", ["0", "3:2", "a", "1:x", "-1", ""])
def test_numbers_of_machines_that_make_no_sense(given: str) -> None:
    with pytest.raises(ConfigError, match="give a number from 1 on, or MIN:MAX"):
        launch._nodes(given)


@pytest.mark.parametrize("given", ["0", "x", "-2"])
def test_numbers_of_processes_that_make_no_sense(given: str) -> None:
    with pytest.raises(ConfigError, match="give a number from 1 on, or gpu"):
        launch.hand_over(given, "1", None, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="asks glibc to abort at exit")
def test_a_process_that_is_done_leaves_before_cpp_can_abort_it() -> None:
    code = """
import atexit, ctypes
libc = ctypes.CDLL(None)
libc.__cxa_atexit(libc.abort, None, None)
atexit.register(print, "cleaned up")
from pvdm_cli.cli import launch
print("done", end=", ")
launch.leave(3)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (found.returncode, found.stdout) == (3, "done, cleaned up\n")


def test_gpu_asks_for_gpus() -> None:
    if torch.cuda.device_count():
        pytest.skip("there are GPUs here")
    with pytest.raises(ConfigError, match="sees no GPU here; give a number"):
        launch.hand_over("gpu", "1", None, 0)


def test_nothing_is_handed_over_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.hand_over(None, "1", None, 3)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "pvdm")  # a process of a launcher goes on itself
    launch.hand_over("2", "1", None, 3)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setattr(launch, "_launch", lambda *given: 143)
    with pytest.raises(typer.Exit) as left:
        launch.hand_over("2", "1", None, 3)
    assert left.value.exit_code == 143


@pytest.fixture
def outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a process of the launcher leaves its exit code; this one is not ended with it."""
    path = tmp_path / "outcome"
    monkeypatch.setenv(launch.OUTCOME, str(path))
    monkeypatch.setattr(launch, "_end_with_the_launcher", lambda: None)
    return path


@pytest.mark.parametrize(
    ("code", "left", "exited"),
    [(0, None, 0), (3, "3", 0), (143, None, 143)],
    ids=["done", "some skipped", "stopped by a signal"],
)
def test_a_process_leaves_the_code_that_a_new_start_cannot_change(
    outcome: Path, code: int, left: str | None, exited: int
) -> None:
    assert launch.run(lambda: code) == exited
    assert (outcome.read_text() if outcome.exists() else None) == left


def test_a_process_started_again_after_a_mistake_does_not_make_it_again(outcome: Path) -> None:
    outcome.write_text("1")
    worked = []
    assert launch.run(lambda: len(worked.append(1) or worked)) == 0
    assert not worked


def test_a_mistake_is_one_line_and_is_left_to_the_launcher(
    outcome: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def mistaken() -> int:
        raise ConfigError("no such key")

    assert launch.run(mistaken) == 1
    assert capsys.readouterr().err == "error: no such key\n"
    assert outcome.read_text() == "1"


def test_a_crash_is_shown_in_full_and_may_be_tried_again(
    outcome: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.run(lambda: 1 // 0) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: Traceback (most recent call last):")
    assert "ZeroDivisionError" in said
    assert not outcome.exists()


def test_a_place_to_meet_needs_somebody_to_meet() -> None:
    with pytest.raises(ConfigError, match=r"--rdzv-endpoint a:1 is where .* --nproc-per-node or"):
        launch.hand_over(None, "1", "a:1", 3)


def test_a_number_left_in_the_shell_does_not_silence_a_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert render.reporter() is not SILENT


def test_who_is_left_alone_after_the_work_is_done_has_done_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    for key, value in {**place, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}.items():
        monkeypatch.setenv(key, str(value))

    def broken(self: Ranks) -> None:
        raise PeerLostError("another process of this run has ended")

    monkeypatch.setattr(ranks, "launched", lambda: True)
    monkeypatch.setattr(Ranks, "barrier", broken)
    with ranks.joined() as here:
        assert here.store is not None
    assert ranks.here().store is None
    assert not dist.is_initialized()
