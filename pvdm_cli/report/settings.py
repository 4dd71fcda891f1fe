"""Configuration and origin of runs: what differs, the command, the hardware, the checkpoints."""

import shlex
from collections.abc import Sequence
from typing import Any

from pvdm_cli.environment import machine
from pvdm_cli.report.evaluation import shown
from pvdm_cli.report.markup import Child, Markup, table, tag
from pvdm_cli.report.records import Facts, Record, flat, preset_settings


def differences(ours: Facts, theirs: Facts) -> list[str]:
    """Keys in which two configurations differ; of a section that one lacks, the keys of the other."""
    lacking = {key for facts in (ours, theirs) for key, value in facts.items() if value is None}
    keys = list(dict.fromkeys([*ours, *theirs]))
    return [
        key
        for key in keys
        if ours.get(key) != theirs.get(key)
        and not (key in lacking and any(other.startswith(f"{key}.") for other in keys))
    ]


def comparison(records: Sequence[Record]) -> Markup:
    """Put the keys in which runs differ side by side."""
    first, *others = records
    keys = list(
        dict.fromkeys(
            key for other in others for key in differences(first.settings, other.settings)
        )
    )
    if not keys:
        return tag("p", "All runs have the same configuration.")
    rows = [[key, *(shown(record.settings.get(key)) for record in records)] for key in keys]
    head = ["key", *(record.name for record in records)]
    return table(head, rows, caption="Keys in which the runs differ", class_="facts")


def configuration(record: Record) -> list[Markup]:
    """Tell what differs from the preset, then everything."""
    parts = [_changes(record)]
    if record.yaml:
        whole = tag("pre", record.yaml, tabindex="0")
        parts.append(tag("details", tag("summary", "config.yaml"), whole))
    return parts


def _changes(record: Record) -> Markup:
    """List the keys that are not as in the preset."""
    if record.preset is None:
        return tag("p", "Which preset this run started from is not recorded (yet).")
    preset = preset_settings(record.preset)
    if preset is None:
        return tag("p", f"The preset {record.preset} cannot be read any more: no comparison.")
    keys = differences(record.settings, preset)
    if not keys:
        return tag("p", "Every key is as in the preset ", tag("code", record.preset), ".")
    rows = [[key, shown(preset.get(key)), shown(record.settings.get(key))] for key in keys]
    return tag(
        "div",
        tag("p", "Keys that are not as in the preset ", tag("code", record.preset), ":"),
        table(["key", "preset", "run"], rows, caption="Changes to the preset", class_="facts"),
    )


def origin(record: Record) -> list[Markup]:
    """Tell by which command a run was made, on what, and which checkpoints it has."""
    parts: list[Markup | None] = [_command(record), _hardware(record), _starts(record)]
    if record.checkpoints:
        parts.append(_checkpoints(record))
    else:
        parts.append(tag("p", "No checkpoint yet."))
    return [part for part in parts if part is not None]


def _command(record: Record) -> Markup | None:
    """Show the command of the last start, or what checkpoints say of it."""
    told = record.starts[-1].get("command") if record.starts else None
    if isinstance(told, list) and told:
        return tag("pre", shlex.join(map(str, told)), class_="command")
    if record.preset is None:
        return None
    overrides = record.provenance.get("overrides")
    words = ["pvdm", "train", record.preset, "--out", str(record.path)]
    words += map(str, overrides) if isinstance(overrides, list) else []
    return tag(
        "div",
        tag("pre", shlex.join(words), class_="command"),
        tag("p", "As its checkpoints tell it; from which data is not recorded.", class_="note"),
    )


def _hardware(record: Record) -> Markup:
    """Show where the run was last started; of runs that did not record it, where this page was."""
    start = record.starts[-1] if record.starts else {}
    environment = start.get("environment")
    if isinstance(environment, dict):
        facts = {"device": _device(start), **flat(environment)}
        rows = [[key, shown(value)] for key, value in facts.items() if value is not None]
        return table(["", "last start"], rows, caption="Hardware and versions", class_="facts")
    rows = [[key, shown(value)] for key, value in machine().items()]
    return tag(
        "div",
        tag("p", "The run did not record its hardware. This page was made on:", class_="note"),
        table(["", "this machine"], rows, caption="Machine of this page", class_="facts"),
    )


def _device(start: dict[str, Any]) -> Any:
    """Name the device of the first process, and how many there were."""
    device, processes = start.get("device"), start.get("processes")
    several = isinstance(processes, int) and processes > 1
    return f"{device}, {processes} processes" if several else device


def _starts(record: Record) -> Markup | None:
    """List all starts of a run that was stopped in between."""
    if len(record.starts) < 2:
        return None
    head = ["started", "from step", "device", "hardware", "pvdm"]
    rows: list[list[Child]] = []
    for start in record.starts:
        told = start.get("environment")
        environment: dict[str, Any] = told if isinstance(told, dict) else {}
        gpus = environment.get("gpus")
        hardware = environment.get("processor") if gpus in (None, "none") else gpus
        cells = [start.get("step"), _device(start), hardware, environment.get("pvdm")]
        rows.append([start.get("time"), *map(shown, cells)])
    return table(head, rows, caption="Starts of the run", class_="facts")


def _checkpoints(record: Record) -> Markup:
    """List the checkpoints there are."""
    rows = []
    for step in record.checkpoints:
        name = f"step-{step:08d}"
        marks = [word for word in ("latest", "best") if getattr(record, word) == name]
        rows.append([f"{step:,}", ", ".join(marks)])
    return table(["checkpoint at step", ""], rows, caption="Checkpoints", class_="facts")
