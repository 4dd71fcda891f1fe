"""One command in several processes, started by torch's launcher, stopped and killed for real."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from training_runs import Place, metrics, series

# Small steps, so that rounding stays; one thread, so that processes do not fight.
KEYS = (
    *("training.lr=1e-4", "training.log_every=1", "training.validate_every=1000"),
    *("training.sample_every=0", "training.checkpoint_every=10", "training.keep_every=10"),
)
STEPS = 40
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def pvdm(words: list[str]) -> "subprocess.Popen[str]":
    """Start `pvdm` with these words."""
    code = "from pvdm_cli.cli.app import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def words(place: Place, out: Path, steps: int, stage: str = "diffusion") -> list[str]:
    keys = [*KEYS, f"training.steps={steps}"]
    if stage == "autoencoder":
        keys += ["adversarial.discriminator_channels=4", "adversarial.discriminator_layers=2"]
    return [*place.command(stage, out, *keys), "--nproc-per-node", "2"]


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(happened: Callable[[], object], process: "subprocess.Popen[str]") -> None:
    """Wait until something is there, or the process has ended without it."""
    while not happened():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """Processes that a launcher has started, the first one first."""
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in found}
    return sorted(pid for pid, line in lines.items() if b"pvdm_cli" in line)


@pytest.mark.slow
def test_a_mistake_is_said_once_and_not_tried_again(place: Place, tmp_path: Path) -> None:
    given = [*place.command("diffusion", tmp_path / "run"), "--nproc-per-node", "2"]
    given[given.index("--cache") + 1] = str(tmp_path / "nowhere")
    code, out, err = ended(pvdm(given))
    assert code == 1
    assert out == ""
    assert re.fullmatch(r"error: no cache at \S+nowhere; .+\n", err)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nproc-per-node", "no"], "--nproc-per-node no: give a number from 1 on, or gpu"),
        (["--nproc-per-node", "2", "--nnodes", "3:2"], "--nnodes 3:2: give a number from 1 on"),
        (["--nnodes", "2"], "--nnodes 2: also say where the machines meet, by --rdzv-endpoint"),
    ],
)
@pytest.mark.slow
def test_numbers_that_make_no_sense_are_refused(
    place: Place, tmp_path: Path, options: list[str], said: str
) -> None:
    code, _, err = ended(pvdm([*place.command("diffusion", tmp_path / "run"), *options]))
    assert code == 1
    assert said in err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_goes_on(
    place: Place, tmp_path: Path, number: signal.Signals
) -> None:
    run = tmp_path / "run"
    process = pvdm(words(place, run, 100))
    wait_for((run / "latest").exists, process)
    process.send_signal(number)
    code, _, err = ended(process)
    assert code == 128 + number, err
    assert "stopped; the same command continues" in err
    at = metrics(run)[-1]["step"]
    assert (run / "latest").read_text() == f"step-{at:08d}\n"
    code, out, err = ended(pvdm([*words(place, run, 100), "--json"]))
    assert (code, json.loads(out)["step"]) == (0, 100)
    assert f"continuing {run} from step {at}" in err
    assert [line["step"] for line in metrics(run) if "loss" in line] == list(range(1, 101))


@pytest.fixture(scope="module")
def uninterrupted(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], list[float]]:
    """Losses of a whole run of each stage in two processes."""

    @cache
    def losses(stage: str) -> list[float]:
        run = tmp_path_factory.mktemp("whole") / stage
        assert ended(pvdm(words(place, run, STEPS, stage)))[0] == 0
        return series(run, "loss")

    return losses


@pytest.mark.slow
@pytest.mark.parametrize("number", range(int(os.environ.get("PVDM_KILLS", "2"))))
def test_a_process_killed_at_any_moment_is_started_again_and_nothing_is_lost(
    place: Place, tmp_path: Path, uninterrupted: Callable[[str], list[float]], number: int
) -> None:
    draws, stage = random.Random(number), ("diffusion", "autoencoder")[number // 2 % 2]
    run, step = tmp_path / "run", draws.randrange(1, STEPS - 10)
    process = pvdm(words(place, run, STEPS, stage))
    log = run / "metrics.jsonl"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) >= step, process)
    time.sleep(draws.uniform(0, 0.1))
    os.kill(workers(process)[number % 2], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 0, err
    assert "a process had died: all are started again" in err
    assert "Traceback" not in err
    ours, theirs = series(run, "loss"), uninterrupted(stage)
    assert len(ours) == len(theirs) >= STEPS // 2
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


@pytest.mark.slow
def test_without_restarts_left_the_death_is_told(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = pvdm([*words(place, run, 2000), "--max-restarts", "0"])
    wait_for((run / "latest").exists, process)
    os.kill(workers(process)[1], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 1
    assert "process 1 ended by signal SIGKILL and --max-restarts 0 is used up" in err


@pytest.mark.slow
def test_processes_save_and_end_when_their_launcher_is_killed(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = pvdm(words(place, run, 5000))
    wait_for((run / "latest").exists, process)
    left = workers(process)
    process.kill()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}/cmdline").exists() for pid in left):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    _, _, err = ended(process)
    last = metrics(run)[-1]["step"]
    assert (run / "latest").read_text() == f"step-{last:08d}\n", err


@pytest.mark.slow
def test_torchrun_starts_the_same(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = [*place.command("diffusion", run, *KEYS, "training.steps=5"), "--json"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "-m", "pvdm_cli", *given],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["step"] == 5
    start = json.loads((run / "starts.jsonl").read_text())
    assert start["processes"] == 2


@pytest.mark.slow
def test_two_machines_meet_at_an_endpoint(place: Place, tmp_path: Path) -> None:
    from ranks_together import free_port

    run = tmp_path / "run"
    given = place.command("diffusion", run, *KEYS, "training.steps=5")
    meet = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-endpoint", f"localhost:{free_port()}"]
    machines = [pvdm([*given, *meet, "--json"]) for _ in range(2)]
    try:
        found = [ended(machine) for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [code for code, _, _ in found] == [0, 0], found
    assert sorted(bool(out) for _, out, _ in found) == [
        False,
        True,
    ]  # one log, of the first process
