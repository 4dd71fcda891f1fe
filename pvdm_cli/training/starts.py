"""`starts.jsonl`: one line for each start of a run: command, device, hardware and versions."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pvdm_cli.environment import environment
from pvdm_cli.errors import PvdmError
from pvdm_cli.model import checkpoint_step, list_checkpoints

FILE = "starts.jsonl"


def record_start(
    run: Path,
    provenance: Mapping[str, Any],
    inputs: Mapping[str, object],
    device: str,
    processes: int = 1,
) -> None:
    """Note that a run starts, or goes on.

    Args:
        run: The run folder.
        provenance: `preset` and `overrides`, where they are known.
        inputs: What it learns from, by the name of the option; None is left out.
        device: What it runs on.
        processes: How many share the work.

    Raises:
        PvdmError: If it cannot be written.
    """
    checkpoints = list_checkpoints(run)
    line = {
        "time": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "step": checkpoint_step(checkpoints[-1]) if checkpoints else 0,
        **{key: provenance[key] for key in ("preset", "overrides") if key in provenance},
        "command": _command(run, provenance, inputs),
        "device": device,
        "processes": processes,
        "environment": environment(),
    }
    try:
        with (run / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")
    except OSError as error:
        raise PvdmError(f"cannot write {run / FILE}: {error.strerror}") from error


def _command(
    run: Path, provenance: Mapping[str, Any], inputs: Mapping[str, object]
) -> list[str] | None:
    """Words of the command that does the same; None if the preset is not known."""
    if "preset" not in provenance:
        return None
    words = ["pvdm", "train", str(provenance["preset"])]
    for option, value in inputs.items():
        words += [] if value is None else [f"--{option}", str(value)]
    return [*words, "--out", str(run), *map(str, provenance.get("overrides", ()))]
