"""What a run folder holds, read as it is: a run that is being written may end in half a line."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pvdm_cli.config import RunConfig, parse_config, read_yaml
from pvdm_cli.errors import ConfigError, ModelError
from pvdm_cli.report.series import Point, Series
from pvdm_cli.shipped import preset_path

Facts = dict[str, Any]


@dataclass
class Record:
    """A run as its folder tells it.

    Attributes:
        path: The run folder.
        name: What it is called on the page.
        settings: The resolved configuration, by dotted keys.
        yaml: The same as text.
        metrics: Everything in `metrics.jsonl` that is a number, by name.
        checkpoints: Steps of the checkpoints there are.
        latest: Name of the newest.
        best: Name of the one that validated best.
        provenance: What the newest checkpoint says of its origin.
        starts: One entry for each start: command, device, environment.
        evaluations: Lines of all `metric-*.jsonl` in the run folder and the folders in it.
        drift: Content of `drift.json`, in the run or in a folder of its videos.
        written: When the last line of metrics was written, in seconds since 1970.
        notes: What could not be read, each in a sentence.
    """

    path: Path
    name: str
    settings: Facts = field(default_factory=dict)
    yaml: str = ""
    metrics: dict[str, Series] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)
    latest: str | None = None
    best: str | None = None
    provenance: Facts = field(default_factory=dict)
    starts: list[Facts] = field(default_factory=list)
    evaluations: list[Facts] = field(default_factory=list)
    drift: Any = None
    written: float | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def stage(self) -> str:
        """Which network is trained."""
        return str(self.settings.get("stage") or "unknown stage")

    @property
    def step(self) -> int:
        """The last step that was logged, or of which there is a checkpoint."""
        logged = [series[-1].step for series in self.metrics.values()]
        return max([*logged, *self.checkpoints], default=0)

    @property
    def steps(self) -> int | None:
        """Steps it is to take."""
        found = self.settings.get("training.steps")
        return found if isinstance(found, int) else None

    @property
    def seconds(self) -> float:
        """Time spent in training steps, by their logged rate."""
        rates = self.metrics.get("steps_per_second", [])
        befores = [0, *(point.step for point in rates)]
        return sum(
            (point.step - before) / point.value
            for before, point in zip(befores, rates, strict=False)
            if point.value > 0
        )

    @property
    def preset(self) -> str | None:
        """Name or path of the preset it was started from, where that is recorded."""
        for told in (*reversed(self.starts), self.provenance):
            if isinstance(told.get("preset"), str):
                return str(told["preset"])
        return None


def read_record(path: Path, name: str) -> Record:
    """Read a run folder.

    Raises:
        ModelError: If it is not one.
    """
    _refuse_other(path)
    record = Record(path, name)
    _read_settings(record)
    _read_metrics(record)
    _read_checkpoints(record)
    record.starts = _lines(path / "starts.jsonl", record.notes)
    for file in [*sorted(path.glob("metric-*.jsonl")), *sorted(path.glob("*/metric-*.jsonl"))]:
        named = file.stem.removeprefix("metric-")
        record.evaluations += [{"file": named, **line} for line in _lines(file, record.notes)]
    drifts = [path / "drift.json", *sorted(path.glob("*/drift.json"))]
    measured = next((file for file in drifts if file.is_file()), drifts[0])
    record.drift = _json(measured, record.notes)
    return record


def _refuse_other(path: Path) -> None:
    """Check that a path is a run folder."""
    if not path.exists():
        raise ModelError(f"{path}: no such folder; give the --out of a `pvdm train`")
    if not path.is_dir():
        raise ModelError(f"{path}: a file, no run folder; give the --out of a `pvdm train`")
    if not _is_run(path):
        below = [str(folder) for folder in sorted(path.iterdir()) if _is_run(folder)]
        instead = " or ".join(below[:4]) or "the --out of a `pvdm train`"
        raise ModelError(
            f"{path}: no run folder (it holds neither config.yaml nor metrics.jsonl); give {instead}"
        )


def _is_run(path: Path) -> bool:
    """Whether a path is a folder with what every run has."""
    return any((path / marker).is_file() for marker in ("config.yaml", "metrics.jsonl"))


def _read_settings(record: Record) -> None:
    """Read the configuration; one of another version of pvdm is taken as it stands."""
    file = record.path / "config.yaml"
    if not file.is_file():
        record.notes.append("config.yaml is missing.")
        return
    try:
        record.yaml = file.read_text(encoding="utf-8", errors="replace")
        values = read_yaml(file)
    except (ConfigError, OSError) as error:
        record.notes.append(f"{error}.")
        return
    try:
        values = parse_config(RunConfig, values, where="config.yaml").model_dump(mode="json")
    except ConfigError as error:
        record.notes.append(f"{error}: shown as it stands.")
    record.settings = flat(values)


def flat(values: Mapping[str, Any], prefix: str = "") -> Facts:
    """Name the leaves of nested mappings by dotted keys."""
    found: Facts = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _read_metrics(record: Record) -> None:
    """Read `metrics.jsonl` into series by name; values that are no numbers are left out."""
    file = record.path / "metrics.jsonl"
    broken: set[str] = set()
    for line in _lines(file, record.notes):
        step = line.pop("step", None)
        if not isinstance(step, int) or isinstance(step, bool):
            continue
        for name, value in line.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not math.isfinite(value):
                broken.add(name)
                continue
            record.metrics.setdefault(name, []).append(Point(step, float(value)))
    for series in record.metrics.values():
        series.sort(key=lambda point: point.step)
    if broken:
        names = ", ".join(sorted(broken))
        record.notes.append(f"Some values are infinite or not a number, and not drawn: {names}.")
    if file.is_file():
        record.written = file.stat().st_mtime


def _read_checkpoints(record: Record) -> None:
    """Read which checkpoints there are, and what the newest says of its origin."""
    folders = sorted((record.path / "checkpoints").glob("step-????????"))
    names = [folder.name.removeprefix("step-") for folder in folders]
    record.checkpoints = [int(name) for name in names if name.isdigit()]
    record.latest, record.best = (_word(record.path / name) for name in ("latest", "best"))
    for folder in reversed(folders):
        card = _json(folder / "model" / "model.json", record.notes)
        if isinstance(card, dict) and isinstance(card.get("provenance"), dict):
            record.provenance = card["provenance"]
            return


def _word(file: Path) -> str | None:
    """Read a file of one word."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None


def _json(file: Path, notes: list[str]) -> Any:
    """Read a JSON file, None if it is not there or cannot be read."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        notes.append(f"{file.name} cannot be read as JSON.")
        return None


def _lines(file: Path, notes: list[str]) -> list[Facts]:
    """Read the JSON objects of a file, one a line; note how many lines are none."""
    found, broken = [], 0
    for line in _texts(file):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            found.append(value)
        else:
            broken += 1
    if broken:
        lines = "1 line" if broken == 1 else f"{broken} lines"
        notes.append(f"{lines} of {file.name} cannot be read: cut short, or being written.")
    return found


def _texts(file: Path) -> Iterator[str]:
    """Yield the lines of a file that are not empty."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    yield from (line for line in text.splitlines() if line.strip())


def preset_settings(name: str) -> Facts | None:
    """Settings of a preset by dotted keys, if it can still be found and read."""
    try:
        values = read_yaml(preset_path(name))
        return flat(parse_config(RunConfig, values, where=name).model_dump(mode="json"))
    except ConfigError:
        return None


def names_of(paths: list[Path]) -> list[str]:
    """Call each run by the end of its path, as much of it as tells it from the others."""
    whole = [path.resolve() for path in paths]
    for depth in range(1, 1 + max(len(path.parts) for path in whole)):
        names = ["/".join(path.parts[-depth:]).lstrip("/") or str(path) for path in whole]
        if len(set(names)) == len(names):
            break
    return names
