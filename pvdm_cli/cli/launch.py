"""One command in several processes: through torch's elastic launcher, or as one of its processes."""

import atexit
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pvdm_cli import ranks
from pvdm_cli.cli import options, render
from pvdm_cli.errors import ConfigError, PvdmError

# A file each machine's processes leave their exit code in: one that starting again cannot change.
OUTCOME = "PVDM_OUTCOME"
# Seconds between SIGTERM to the launcher and SIGKILL to its processes: time to write a checkpoint.
GRACE = "600"

NprocOpt = Annotated[
    str | None,
    typer.Option(
        "--nproc-per-node",
        metavar="N|gpu",
        help="Processes on this machine, one for each GPU; gpu: as many as there are.",
    ),
]
NnodesOpt = Annotated[
    str,
    typer.Option("--nnodes", metavar="M|MIN:MAX", help="Machines that run this same command."),
]
RdzvOpt = Annotated[
    str | None,
    typer.Option(
        "--rdzv-endpoint", metavar="HOST:PORT", help="One of those machines, where they meet."
    ),
]
RestartsOpt = Annotated[
    int,
    typer.Option("--max-restarts", min=0, help="Times to start anew after a process has died."),
]


def hand_over(nproc: str | None, nnodes: str, endpoint: str | None, restarts: int) -> None:
    """Give the whole command to the launcher and leave with its exit code, where that is asked for.

    Raises:
        ConfigError: If the numbers make no sense.
    """
    alone = nproc is None and nnodes == "1"
    if os.environ.get("TORCHELASTIC_RUN_ID"):  # already one of its processes
        return
    if alone:
        if endpoint is not None:
            raise ConfigError(
                f"--rdzv-endpoint {endpoint} is where several processes meet: also say how many, by "
                "--nproc-per-node or --nnodes"
            )
        return
    least, most = _nodes(nnodes)
    if endpoint is None and most > 1:
        raise ConfigError(
            f"--nnodes {nnodes}: also say where the machines meet, by --rdzv-endpoint HOST:PORT, "
            "the same on each of them"
        )
    raise typer.Exit(_launch(_processes(nproc or "gpu"), least, most, endpoint, restarts))


def _processes(nproc: str) -> int:
    """Turn N or gpu into a number of processes."""
    import torch

    if nproc == "gpu":
        if not torch.cuda.device_count():
            raise ConfigError("--nproc-per-node gpu: torch sees no GPU here; give a number")
        return torch.cuda.device_count()
    if not nproc.isdigit() or nproc == "0":
        raise ConfigError(f"--nproc-per-node {nproc}: give a number from 1 on, or gpu")
    return int(nproc)


def _nodes(nnodes: str) -> tuple[int, int]:
    """Turn M or MIN:MAX into both ends."""
    least, _, most = nnodes.partition(":")
    if not (least.isdigit() and (most or least).isdigit() and 0 < int(least) <= int(most or least)):
        raise ConfigError(f"--nnodes {nnodes}: give a number from 1 on, or MIN:MAX")
    return int(least), int(most or least)


def _launch(nproc: int, least: int, most: int, endpoint: str | None, restarts: int) -> int:
    """Run this command in so many processes; return its exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if not options.debug_asked():  # the processes say themselves what matters
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        for name in logging.root.manager.loggerDict:
            if name.startswith("torch.distributed.elastic"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
    # Else a machine that takes the place of a lost one waits for an address nobody tells it.
    os.environ.setdefault("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", GRACE)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // nproc)))
    with tempfile.TemporaryDirectory(prefix="pvdm-") as folder:
        config = LaunchConfig(
            min_nodes=least,
            max_nodes=most,
            nproc_per_node=nproc,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            run_id="pvdm",
            rdzv_backend="c10d",
            rdzv_endpoint=endpoint or "localhost:0",
            max_restarts=restarts,
        )
        outcome = Path(folder, "outcome")
        os.environ[OUTCOME] = str(outcome)
        try:
            elastic_launch(config, sys.executable)("-m", "pvdm_cli", *sys.argv[1:])
        except SignalException as stopped:
            return 128 + int(stopped.sigval)
        except ChildFailedError as failed:
            if _read(outcome):  # the process has said why
                return _read(outcome)
            killed = (each for each in failed.failures.items() if each[1].exitcode < 0)
            rank, failure = next(killed, failed.get_first_failure())  # others end because of it
            raise PvdmError(
                f"process {rank} ended by {_death(failure.exitcode)} and "
                f"--max-restarts {restarts} is used up; the same command goes on"
            ) from None
        return _read(outcome)


def _death(code: int) -> str:
    """Say how a process ended."""
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _read(outcome: Path | None) -> int:
    """Return the exit code that a process of this machine has left, or 0."""
    if outcome is None:
        return 0
    try:
        return int(outcome.read_text())
    except (OSError, ValueError):
        return 0


def run(work: Callable[[], int]) -> int:
    """Do the work of one process that a launcher has started; return its exit code.

    Where this program is the launcher too, 0 also stands for a code left in the outcome file: for
    torch anything else is a reason to start again.

    Args:
        work: Runs the command and returns its exit code; may raise.
    """
    _end_with_the_launcher()
    outcome = Path(os.environ[OUTCOME]) if OUTCOME in os.environ else None
    here = ranks.Ranks()
    try:
        with ranks.joined() as here:
            if not here.main:  # one log, one result
                sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  (until the process ends)
            code = max(here.gather(_read(outcome)))
            if not code:  # else this is a new start of what a new start cannot help
                if here.main and ranks.restarted():
                    typer.echo("a process had died: all are started again", err=True)
                code = max(here.gather(work()))
            return _leave(outcome, code) if code else 0
    except Terminated as stopped:
        return int(str(stopped.code))
    except ranks.PeerLostError as error:
        if not here.failed:
            _say(here, str(error))
    except PvdmError as error:
        here.fail()
        _leave(outcome, 1)
        _say(here, traceback.format_exc() if options.debug_asked() else str(error))
    except Exception:  # noqa: BLE001  (said in full; the launcher may start again)
        here.fail()
        _say(here, traceback.format_exc(), crash=True)
    return 1


def leave(code: int) -> NoReturn:
    """End a process that a launcher has started, once its work is done and Python has cleaned up.

    Beyond that C++ ends its own: with threads of torch's connections still there it aborted one
    process of about 40 on a busy machine, which the launcher took for a death and started all again.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Terminated(SystemExit):
    """Asked to leave, by SIGTERM, in the middle of the work."""


def _say(here: ranks.Ranks, text: str, *, crash: bool = False) -> None:
    """Say a failure once, however many processes have it; a crash rather twice than never."""
    place = ""
    if not here.main:
        place = f"process {here.rank} of {here.size}: "
        time.sleep(1)  # what all have to say, the first process says
    if here.says(text) or (crash and here.store_lost):
        render.error(f"{place}{text}")


def _leave(outcome: Path | None, code: int) -> int:
    """Leave an exit code to the launcher; return the code to exit with instead.

    Not one of a signal: where that was the launcher's way to start all again, it shall.
    """
    if outcome is None or code > 128:
        return code
    outcome.write_text(str(code))
    return 0


def _end_with_the_launcher() -> None:
    """Have Linux send SIGTERM if the launcher dies: nobody else would end this process."""
    if sys.platform.startswith("linux"):
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
