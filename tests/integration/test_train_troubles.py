"""What must not cost a run: a full disk, a folder removed, a flipped bit, a clock that jumps."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import last_step, pvdm
from safetensors.torch import load_file
from training_runs import Heard, Place, contents, difference, metrics, stop_after

from pvdm_cli.errors import ModelError, PvdmError
from pvdm_cli.model import list_checkpoints, load_model
from pvdm_cli.training import loop
from pvdm_cli.training.saving import Saver

MANY = (
    *("training.steps=100000", "training.log_every=1", "training.checkpoint_every=5"),
    *("training.validate_every=100000", "training.sample_every=20", "training.keep_last=1"),
)
PATIENCE = 60  # seconds to wait for what takes one


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real disk of 2 MB: five checkpoints and what else a run writes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=200", "none", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk needs the right to mount a tmpfs: run as root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


class Run:
    """A real `pvdm train` whose words are read as they come."""

    def __init__(
        self, place: Place, out: Path, *overrides: str, stage: str = "autoencoder"
    ) -> None:
        self.out, self.heard = out, out.parent.parent / f"{out.name}-said"
        with self.heard.open("w") as said:
            self.process = pvdm(*place.command(stage, out, *MANY, *overrides), stderr=said)

    @property
    def said(self) -> str:
        return self.heard.read_text()

    def wait_until(self, true: Callable[[], bool]) -> None:
        """Wait for something to become true while the run lives."""
        deadline = time.monotonic() + PATIENCE
        while not true():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)

    def wait_for_checkpoint(self, after: int = 0) -> int:
        """Wait for a checkpoint of a step after the given one; return its step."""
        self.wait_until(lambda: newest(self.out) > after)
        return newest(self.out)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE)


def newest(run: Path) -> int:
    """Step of the newest checkpoint, or 0."""
    found = list_checkpoints(run)
    return int(found[-1].name[-8:]) if found else 0


def fill(disk: Path) -> Path:
    """Take all that is left of a disk."""
    path = disk / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def whole(run: Path) -> bool:
    """Whether the newest checkpoint and the steps in metrics.jsonl are as they should be."""
    load_model(run, "cpu")  # checks every hash
    steps = [line["step"] for line in metrics(run) if "loss" in line]
    return steps == list(range(1, steps[-1] + 1)) and steps[-1] >= newest(run)


# A full disk ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_no_step_and_no_line(
    place: Place, small_disk: Path
) -> None:
    run = Run(place, small_disk / "run", "training.tensorboard=true")
    run.wait_for_checkpoint()
    filler = fill(small_disk)
    run.wait_until(lambda: "training goes on, the next checkpoint tries again" in run.said)
    full_at = newest(run.out)
    load_model(run.out, "cpu")  # the old checkpoint is as good as it was
    assert not list((run.out / "checkpoints").glob(".*.partial"))
    lines = run.said.count("warning: cannot write")
    time.sleep(0.3)
    assert run.said.count("warning: cannot write") <= max(lines, 3)  # once for each kind
    assert "MB free)" in run.said
    filler.unlink()
    run.wait_for_checkpoint(after=full_at)
    assert run.stop() == 128 + signal.SIGTERM, run.said
    assert "stopped; the same command continues" in run.said
    assert "Traceback" not in run.said
    assert whole(run.out)


@pytest.mark.slow
def test_a_disk_without_inodes_is_said_and_a_run_that_ends_on_it_fails_in_one_sentence(
    place: Place, small_disk: Path
) -> None:
    run = Run(place, small_disk / "run")
    saved = run.wait_for_checkpoint()
    files = small_disk / "files"
    files.mkdir()
    number = 0
    while True:
        try:
            (files / str(number := number + 1)).touch()
        except OSError:
            break
    run.wait_until(lambda: "no more files (inodes)" in run.said)
    saved = newest(run.out)
    assert run.stop(signal.SIGINT) == 1, run.said
    error = run.said.splitlines()[-1]
    assert error.startswith("error: cannot save step ")
    assert error.endswith(
        f"make room and give the same command again: it goes on from step {saved}"
    )
    shutil.rmtree(files)
    heard = Heard()
    result = place.train("autoencoder", run.out, *MANY, reporter=heard, stop=stop_after(2))
    assert result.step == saved + 2
    assert f"continuing {run.out} from step {saved}" in heard.lines
    assert whole(run.out)


# A folder that is removed --------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_folder_removed_while_training_is_made_anew(place: Place, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    run = Run(place, tmp_path / "runs" / "run", stage="diffusion")
    saved = run.wait_for_checkpoint()
    shutil.rmtree(run.out, ignore_errors=True)
    run.wait_for_checkpoint(after=saved)
    assert "was removed while training; it is made anew" in run.said
    assert run.stop() == 128 + signal.SIGTERM
    assert "Traceback" not in run.said
    saved = newest(run.out)
    assert place.train("diffusion", run.out, *MANY, stop=stop_after(2)).step == saved + 2


def test_a_folder_that_another_run_has_taken_is_not_written_into(
    place: Place, tmp_path: Path
) -> None:
    run, before = tmp_path / "run", {}

    def stop() -> bool:
        if last_step(run) == 6:
            while newest(run) != 5:  # it is written beside training
                time.sleep(0.01)
            run.rename(tmp_path / "moved")
            place.train("autoencoder", run, "training.seed=7", "training.steps=2")
            before.update(contents(run))
        return False

    with pytest.raises(PvdmError) as found:
        place.train("autoencoder", run, stop=stop)
    assert str(found.value) == (
        f"{run} was removed while this process was training in it, and another one has taken it "
        "since; choose another --out"
    )
    assert difference(contents(run), before) == []
    assert newest(tmp_path / "moved") == 5


# A flipped bit -------------------------------------------------------------------------------


FILES = (
    *("state/state.json", "state/training.safetensors", "model/model.json"),
    *("model/denoiser.safetensors", "model/autoencoder.safetensors"),
)


@pytest.fixture
def copy(whole_runs: Callable[[str], Path], tmp_path: Path) -> Path:
    """A finished run of the second stage, with checkpoints of steps 10 and 12."""
    return Path(shutil.copytree(whole_runs("diffusion"), tmp_path / "run"))


@pytest.fixture(scope="module")
def whole_runs(whole: Callable[[str], Path]) -> Callable[[str], Path]:
    return whole


def flip(path: Path, rng: random.Random) -> None:
    """Flip one bit of a file, anywhere."""
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


@pytest.mark.parametrize("file", FILES)
def test_a_checkpoint_with_a_flipped_bit_is_kept_aside_and_the_one_before_is_as_good(
    place: Place, whole_runs: Callable[[str], Path], copy: Path, file: str
) -> None:
    heard, last = Heard(), copy / "checkpoints" / "step-00000012"
    flip(last / file, random.Random(file))
    damaged = contents(last)
    assert place.train("diffusion", copy, reporter=heard).finished
    (told,) = [line for line in heard.lines if line.startswith("warning: ")]
    assert told.startswith(f"warning: {last / file}: ")
    assert told.endswith(f"kept as {last}.broken, going on from the checkpoint before")
    assert f"continuing {copy} from step 10" in heard.lines
    assert contents(last.with_name(f"{last.name}.broken")) == damaged
    shutil.rmtree(f"{last}.broken")
    assert difference(contents(copy), contents(whole_runs("diffusion"))) == []


def test_without_a_checkpoint_that_can_be_read_nothing_is_touched(place: Place, copy: Path) -> None:
    for path in list_checkpoints(copy):
        flip(path / "state" / "training.safetensors", random.Random(0))
    before = contents(copy)
    with pytest.raises(ModelError, match=r"no checkpoint that can be read \(.*12.*--overwrite"):
        place.train("diffusion", copy)
    assert difference(contents(copy), before) == []


def test_sampling_from_a_broken_checkpoint_says_which_one_to_take(copy: Path) -> None:
    flip(copy / "checkpoints/step-00000012/model/denoiser.safetensors", random.Random(0))
    with pytest.raises(ModelError) as found:
        load_model(copy, "cpu")
    assert "take another by `--checkpoint STEP` (there are: 10) or as" in str(found.value)
    assert load_model(str(found.value).split(" or as ")[1], "cpu").provenance["step"] == 10
    assert load_model(copy, "cpu", 10).provenance["step"] == 10


# Clocks --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wall_clock_that_jumps_changes_nothing(
    place: Place, whole_runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, now = random.Random(0), time.time
    monkeypatch.setattr(time, "time", lambda: now() + rng.uniform(-1e6, 1e6))
    place.train("diffusion", tmp_path / "run", stop=stop_after(5))
    place.train("diffusion", tmp_path / "run")
    assert difference(contents(tmp_path / "run"), contents(whole_runs("diffusion"))) == []


def test_checkpoints_by_minutes_come_in_between_and_change_nothing_else(
    place: Place, whole_runs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved: list[int] = []
    real = Saver.save
    monkeypatch.setattr(
        Saver, "save", lambda self, step, *more: (saved.append(step), real(self, step, *more))
    )
    monkeypatch.setattr(loop.time, "monotonic", lambda: 100.0 * len(ticks))
    ticks: list[int] = []
    steps = stop_after(99)

    def tick() -> bool:
        ticks.append(1)  # a step takes 100 seconds
        return steps()

    run = tmp_path / "run"
    place.train("autoencoder", run, "training.checkpoint_minutes=5", stop=tick)
    assert saved == [3, 5, 8, 10, 12]
    assert (run / "best").read_text() == (whole_runs("autoencoder") / "best").read_text()
    ours, theirs = (list_checkpoints(each)[-1] for each in (run, whole_runs("autoencoder")))
    for name in ("state/training.safetensors", "model/autoencoder.safetensors"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()
    assert metrics(run) == metrics(whole_runs("autoencoder"))
    assert {path.name for path in list_checkpoints(run)} >= {"step-00000010", "step-00000012"}


# Written in a thread -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_signal_quits_at_once_and_the_checkpoint_before_is_whole(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    run = Run(place, tmp_path / "runs" / "run")
    saved = run.wait_for_checkpoint()
    run.process.send_signal(signal.SIGINT)
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(PATIENCE) in (-signal.SIGINT, 128 + signal.SIGINT)
    assert newest(run.out) >= saved
    load_model(run.out, "cpu")


def test_an_error_ends_a_run_only_when_what_is_being_written_has_landed(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Saver._write

    def slow(self: Saver, *arguments: object) -> object:
        time.sleep(0.3)
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Saver, "_write", slow)
    asked = iter(range(99))

    def stop() -> bool:
        if next(asked) == 5:  # right after the checkpoint of step 5 has been handed over
            raise PvdmError("something else")
        return False

    with pytest.raises(PvdmError, match="something else"):
        place.train("autoencoder", tmp_path / "run", stop=stop)
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    assert checkpoint.name == "step-00000005"
    assert json.loads((checkpoint / "state" / "state.json").read_text())["step"] == 5


def test_a_checkpoint_that_fails_gives_its_rank_to_the_next(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, heard = tmp_path / "run", Heard()
    blocked = run / "checkpoints" / f".step-00000004.{os.getpid()}.partial"

    def stop() -> bool:
        blocked.parent.mkdir(exist_ok=True)
        blocked.write_text("in the way")
        return last_step(run) == 8

    often = ("training.checkpoint_every=4", "training.log_every=2")
    place.train("autoencoder", run, *often, reporter=heard, stop=stop)
    assert any(line.startswith("warning: cannot save step 4 in ") for line in heard.lines)
    assert (run / "best").read_text() == "step-00000008\n"
    assert newest(run) == 8


@pytest.mark.slow
def test_weights_of_a_checkpoint_are_those_of_its_step_though_training_went_on(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, waited = Saver._write, []

    def late(self: Saver, *arguments: object) -> object:
        waited.append(time.sleep(0.2))
        return real(self, *arguments)  # type: ignore[arg-type]

    place.train("diffusion", tmp_path / "soon", "training.keep_last=9")
    monkeypatch.setattr(Saver, "_write", late)
    place.train("diffusion", tmp_path / "late", "training.keep_last=9")
    assert len(waited) == 3
    for ours, theirs in zip(
        *(list_checkpoints(tmp_path / name) for name in ("soon", "late")), strict=True
    ):
        names = ("state/training.safetensors", "model/denoiser.safetensors")
        for a, b in ((load_file(ours / name), load_file(theirs / name)) for name in names):
            assert all(bool((a[key] == b[key]).all()) for key in a)
