"""`pvdm train` survives kills: the same command ends with the bytes of an uninterrupted run."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command import last_step, pvdm, wait_for_step
from killing import start, train_in_child
from training_runs import Place, contents, difference

from pvdm_cli.model import list_checkpoints, load_model

STAGES = ["autoencoder", "diffusion"]
SEED = int(os.environ.get("PVDM_KILL_SEED", "0"))  # for trying other kills by hand
EVERY = int(os.environ.get("PVDM_KILL_EVERY", "20"))  # file operations from kill to kill
KILLS = int(os.environ.get("PVDM_KILLS", "5"))  # of each case below
KILLED = -signal.SIGKILL
SHORT = (
    *("training.steps=6", "training.checkpoint_every=2", "training.keep_last=1"),
    *("training.validate_every=3", "training.sample_every=3", "training.ema_every=1"),
)


@pytest.fixture(scope="module")
def whole(place: Place) -> Callable[[str], Path]:
    """An uninterrupted run of each stage, in a child like the interrupted ones."""
    for stage in STAGES:
        assert train_in_child(place, stage, place.root / f"whole-{stage}", *SHORT) == 0
    return lambda stage: place.root / f"whole-{stage}"


def equal(run: Path, whole: Path) -> bool:
    """Whether two runs hold the same files, byte for byte, and no leftovers."""
    differing = difference(contents(run), contents(whole))
    assert differing == []
    return not differing


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["autoencoder", pytest.param("diffusion", marks=pytest.mark.slow)]
)
def test_killed_at_file_operations_a_run_still_ends_with_the_same_bytes(
    place: Place, whole: Callable[[str], Path], tmp_path: Path, stage: str
) -> None:
    """Each start dies at another operation: loading, logging, sampling, saving, removing."""
    rng = random.Random(f"{SEED} {stage}")
    codes = []
    while KILLED in codes[-1:] or not codes:
        at = rng.randrange(20, 120)
        codes.append(train_in_child(place, stage, tmp_path / "run", *SHORT, kill_at=at))
    assert codes[-1] == 0
    assert len(codes) > 1
    assert equal(tmp_path / "run", whole(stage))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_killed_once_anywhere_in_a_run_nothing_is_lost(
    place: Place, whole: Callable[[str], Path], tmp_path: Path, stage: str
) -> None:
    # Both stages save by the same code: one is killed half-way between the places of the other.
    first = (SEED + EVERY * STAGES.index(stage) // 2) % EVERY
    for number in range(first, 1000, EVERY):
        run = tmp_path / str(number)
        code = train_in_child(place, stage, run, *SHORT, kill_at=number)
        assert code in (0, KILLED)
        assert train_in_child(place, stage, run, *SHORT) == 0
        assert equal(run, whole(stage))
        if code == 0:  # the run has fewer operations than that
            assert number > 60
            return
    raise AssertionError("a run has more file operations than were tried")


ADVERSARIAL = ("adversarial.discriminator_channels=8", "adversarial.discriminator_layers=2")
CASES = {
    "adversarial": ("autoencoder", ADVERSARIAL),  # has all that a plain first stage has, and more
    "diffusion": ("diffusion", ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_killed_while_a_checkpoint_is_written_nothing_is_lost(
    place: Place, tmp_path: Path, case: str, record_property: Callable[[str, object], None]
) -> None:
    """Every second kill comes at any moment, the others in the middle of a checkpoint.

    The run still ends with the same bytes.
    """
    (stage, more), rng, run = CASES[case], random.Random(f"{SEED} {case}"), tmp_path / "run"
    settings = (*SHORT, *more, "training.steps=30", "training.checkpoint_every=3")
    began = time.monotonic()
    assert train_in_child(place, stage, tmp_path / "whole", *settings) == 0
    seconds = time.monotonic() - began
    kills = unfinished = finished = 0
    while kills < KILLS or not finished:
        child = start(place, stage, run, *settings)
        if kills >= KILLS:
            child.join()
        elif kills % 2:
            child.join(seconds * rng.uniform(0.1, 0.9))
        else:
            while child.is_alive() and not being_written(run, child.pid):
                time.sleep(0.0005)
            time.sleep(rng.uniform(0, 0.01))
        child.kill()
        child.join()
        assert child.exitcode in (0, KILLED)
        unfinished += being_written(run, child.pid)
        if list_checkpoints(run):
            load_model(run, "cpu")  # checks every hash
            latest = run / "latest"  # not there if the kill came right after the first checkpoint
            assert latest.exists() or len(list_checkpoints(run)) == 1
            if latest.exists():
                assert (run / "checkpoints" / latest.read_text().strip()).is_dir()
        finished = 0
        if child.exitcode == KILLED:
            kills += 1
        else:
            finished = equal(run, tmp_path / "whole")
            if kills < KILLS:  # the machine has become faster: once more from the start
                shutil.rmtree(run)
    assert unfinished, "no kill met a checkpoint that was being written"
    record_property("kills", kills)  # of which in the middle of a checkpoint:
    record_property("unfinished", unfinished)


def being_written(run: Path, process: int | None) -> bool:
    """Whether a process is writing a checkpoint, or was when it was killed."""
    return any((run / "checkpoints").glob(f".step-*.{process}.partial"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "signals"),
    [
        ("autoencoder", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]),
        ("diffusion", [signal.SIGKILL, signal.SIGTERM]),
    ],
)
def test_the_real_command_survives_sigkill_and_saves_at_sigterm_and_sigint(
    place: Place, tmp_path: Path, stage: str, signals: list[signal.Signals]
) -> None:
    more = ("training.steps=200", "training.sample_every=0", "training.checkpoint_every=20")
    run, rng = tmp_path / "run", random.Random(f"command {SEED} {stage}")
    for number in signals:
        process = pvdm(*place.command(stage, run, *more))
        wait_for_step(run, process, last_step(run) + rng.randrange(4, 40))
        process.send_signal(number)
        _, said = process.communicate()
        assert last_step(run) < 160, "too slow to stop it on the way"
        if number == signal.SIGKILL:
            assert process.returncode == KILLED
            continue
        assert process.returncode == 128 + number, said
        assert "finishing this step and saving; once more quits at once" in said
        assert "stopped; the same command continues" in said
    last = pvdm(*place.command(stage, run, *more))
    _, said = last.communicate()
    assert last.returncode == 0, said
    assert f"continuing {run} from step" in said
    assert f"{run}: step 200, finished" in said
    quiet = pvdm(*place.command(stage, tmp_path / "whole", *more), "-q")
    assert quiet.communicate() == (None, "")
    assert equal(run, tmp_path / "whole")
