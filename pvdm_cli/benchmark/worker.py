"""The child's side of `child.measure`: `python -m pvdm_cli.benchmark.worker`, job on stdin."""

import json
import os
import sys
import threading
import time
from typing import Any

import torch

from pvdm_cli.benchmark import coding, floor, io, rivals, sample, train
from pvdm_cli.errors import PvdmError
from pvdm_cli.runtime import ran_out


class Answers:
    """Writes JSON lines to stdout; steps are gathered, so that a fast step is not slowed."""

    def __init__(self) -> None:
        self._steps, self._said = 0, time.monotonic()
        self._lock = threading.Lock()  # give_up is called from the thread that watches

    def step(self) -> None:
        """Count a step done."""
        self._steps += 1
        if time.monotonic() - self._said > 0.2:
            self._write({"steps": self._steps})
            self._steps, self._said = 0, time.monotonic()

    def end(self, state: str, **more: Any) -> None:
        """Say how it ended."""
        self._write({"state": state, **more})

    def give_up(self) -> None:
        """Say that the memory limit was passed, and be gone before the system runs out."""
        self.end("out of memory")
        os._exit(0)

    def _write(self, message: dict[str, Any]) -> None:
        with self._lock:
            sys.stdout.write(json.dumps(message) + "\n")
            sys.stdout.flush()


def measure(kind: str, job: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Do a job of a kind."""
    if kind == "rates":
        return floor.measure_rates(job["device"], job["dtype"])
    told = answers.step, answers.give_up
    if kind == "sample":
        return sample.measure(sample.SampleJob.read(job), *told)
    if kind == "train":
        return train.measure(train.TrainJob(**job), *told)
    if kind == "coding":
        return coding.measure(coding.CodingJob.read(job), *told)
    if kind == "rival":
        return rivals.measure(rivals.RivalJob(**job), *told)
    return io.measure(io.IoJob.read(job), *told)


def main() -> None:
    """Do the job."""
    asked, answers = json.load(sys.stdin), Answers()
    torch.set_num_threads(asked["job"]["threads"])
    try:
        figures = measure(asked["kind"], asked["job"], answers)
    except PvdmError as error:
        answers.end("refused", message=str(error))
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        answers.end("out of memory")
    else:
        answers.end("done", figures=figures)


if __name__ == "__main__":
    main()
