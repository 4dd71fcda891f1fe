"""Runs one measurement in a fresh process: no peak inherited, and it may run out of memory.

The child (`worker`) gets its job as JSON on stdin and answers in JSON lines: how many steps are
done, and last the outcome.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pvdm_cli.config import PACKAGE
from pvdm_cli.errors import PvdmError

State = Literal["done", "out of memory", "out of time"]


class Outcome(NamedTuple):
    """How a measurement ended."""

    state: State
    figures: dict[str, Any]  # empty when memory or time ran out


def measure(
    kind: str,
    job: Mapping[str, Any],
    on_steps: Callable[[int], None] = lambda steps: None,
    *,
    timeout: float | None = None,
) -> Outcome:
    """Measure in a child process, which ends with this call whatever happens.

    Args:
        kind: Which of the worker's measurements.
        job: Its job, as JSON values.
        on_steps: Called with the number of steps done since the last call.
        timeout: Seconds after which it is ended.

    Raises:
        PvdmError: With the child's own words if it refuses, or its last line if it breaks.
    """
    answer: dict[str, Any] | None = None
    late = threading.Event()
    with tempfile.TemporaryDirectory(prefix="pvdm-bench-") as folder:
        said = Path(folder) / "stderr"
        with said.open("wb") as stderr, _start(stderr.fileno(), folder) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            clock = _clock(process, timeout, late)
            try:
                with contextlib.suppress(BrokenPipeError):  # it died at once: said below
                    process.stdin.write(json.dumps({"kind": kind, "job": job}))
                    process.stdin.close()
                for line in process.stdout:
                    message = json.loads(line)
                    if "steps" in message:
                        on_steps(message["steps"])
                    else:
                        answer = message
            finally:
                clock.cancel()
                process.kill()
        if answer is None and late.is_set():
            return Outcome("out of time", {})
        if answer is None:
            return _unanswered(process.returncode, said.read_text("utf-8", "replace").strip())
    if answer["state"] == "refused":
        raise PvdmError(answer["message"])
    return Outcome(answer["state"], answer.get("figures", {}))


def _start(stderr: int, temporary: str) -> subprocess.Popen[str]:
    """Start the worker with this interpreter and package; it may leave temporary files behind."""
    path = [str(PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-m", "pvdm_cli.benchmark.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "TMPDIR": temporary},
    )


def _clock(
    process: subprocess.Popen[str], timeout: float | None, late: threading.Event
) -> threading.Timer:
    """Start a clock that ends a process which takes too long, and says so."""

    def end() -> None:
        late.set()
        process.kill()

    clock = threading.Timer(timeout or 0, end)
    clock.daemon = True
    if timeout is not None:
        clock.start()
    return clock


def _unanswered(code: int, said: str) -> Outcome:
    """Judge a child that went without an answer: killed by the system means out of memory."""
    if code == -signal.SIGKILL:
        return Outcome("out of memory", {})
    error = PvdmError(
        f"a measurement broke off (exit code {code}): "
        f"{said.splitlines()[-1] if said else 'it said nothing'}; --debug shows all of it"
    )
    error.add_note(said)
    raise error
