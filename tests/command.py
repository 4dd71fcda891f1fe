"""The real `pvdm train` in a process of its own, and how far it has come."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import IO


def pvdm(*words: object, stderr: "IO[str] | int" = subprocess.PIPE) -> "subprocess.Popen[str]":
    """Start the real command with one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pvdm_cli.cli.app", *map(str, words)]
    return subprocess.Popen(command, env=environment, stderr=stderr, text=True)


def wait_for_step(run: Path, process: "subprocess.Popen[str]", step: int) -> None:
    """Wait until the metrics have come to a step."""
    while last_step(run) < step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def last_step(run: Path) -> int:
    """Last step that was logged in full."""
    path = run / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    steps = re.findall(r'"step": (\d+), "loss".*\n', text)
    return int(steps[-1]) if steps else 0
