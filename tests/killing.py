"""Training in processes that are killed: at any file operation, or at any moment.

Children are forked from a clean server that has already imported everything, so a run that is
killed a hundred times costs little more than one that is not.
"""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
from training_runs import Place

OPERATIONS = {"open", "os.mkdir", "os.remove", "os.rename", "os.rmdir"}


def start(
    place: Place, stage: str, out: Path, *overrides: str, kill_at: int | None = None
) -> "multiprocessing.process.BaseProcess":
    """Start training in a child.

    Args:
        place: What it needs.
        stage: autoencoder | diffusion.
        out: The run folder.
        overrides: key=value changes.
        kill_at: It kills itself by SIGKILL just before this file operation (from 0) in the run
            folder; None lets it live.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["killing", "pvdm_cli.api"])
    child = server.Process(target=_train, args=(place, stage, out, overrides, kill_at))
    child.start()
    return child


def train_in_child(
    place: Place, stage: str, out: Path, *overrides: str, kill_at: int | None = None
) -> int:
    """Train in a child and return its exit code, -9 if it was killed."""
    child = start(place, stage, out, *overrides, kill_at=kill_at)
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def _train(
    place: Place, stage: str, out: Path, overrides: tuple[str, ...], kill_at: int | None
) -> None:
    """What a child does; one thread, as the comparison is bit for bit."""
    torch.set_num_threads(1)
    if kill_at is not None:
        _kill_self_before(str(out), kill_at)
    place.train(stage, out, *overrides)


def _kill_self_before(folder: str, number: int) -> None:
    """Count file operations below a folder by Python's audit events and die at the given one."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in OPERATIONS and str(arguments[0]).startswith(folder):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    sys.addaudithook(hook)
