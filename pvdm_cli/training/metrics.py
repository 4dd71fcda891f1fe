"""`metrics.jsonl`: one JSON line per logged step; resuming drops what a lost stretch had written."""

import json
import time
from pathlib import Path

from torch import Tensor

from pvdm_cli.files import write_text


class Metrics:
    """Means over the steps since the last line, without a host sync per step."""

    def __init__(self, path: Path, *, since: int) -> None:
        self.path = path
        self.last: dict[str, float] = {}
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._time = time.perf_counter()
        if path.exists():
            self._drop_after(since)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count one step's loss terms."""
        for name, value in terms.items():
            value = value.float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
        self._count += 1

    def shown(self) -> dict[str, str]:
        """What stands beside the bar: the last logged loss."""
        return {"loss": f"{self.last['loss']:.4f}"} if "loss" in self.last else {}

    def log(self, step: int, **more: float) -> float:
        """Write a line of means, rates and `more`; return the mean loss."""
        now = time.perf_counter()
        means = {name: float(value) / self._count for name, value in self._sums.items()}
        rate = self._count / (now - self._time)
        self._write(step, {**means, **more, "steps_per_second": round(rate, 4)})
        self._sums, self._count, self._time = {}, 0, now
        return means["loss"]

    def validation(self, step: int, values: dict[str, float]) -> dict[str, float]:
        """Write a line of validation figures and return them."""
        self._write(step, values)
        self._time = time.perf_counter()
        return values

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.last |= values
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")

    def _drop_after(self, step: int) -> None:
        """Keep only whole lines up to a step: what follows will be written again."""
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line that a kill cut short
                continue
            if entry["step"] <= step:
                kept.append(line)
                self.last |= {k: v for k, v in entry.items() if k != "step"}
        write_text(self.path, "".join(f"{line}\n" for line in kept))
