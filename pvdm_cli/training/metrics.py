"""`metrics.jsonl`: one JSON line per logged step; resuming drops what a lost stretch had written."""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvdm_cli.errors import ConfigError
from pvdm_cli.files import write_text
from pvdm_cli.ranks import Ranks
from pvdm_cli.training.saving import Troubles

LEAST = 1 << 16  # bytes of free disk, below which TensorBoard is left alone


def tally(values: Tensor, which: Tensor) -> Tensor:
    """Sum and count [2] of those values [b] that are meant: a term of some samples only."""
    return torch.stack([values.where(which, 0).sum(), which.sum().to(values.dtype)])


class Metrics:
    """Means over the steps since the last line, without a host sync per step.

    Args:
        path: The file.
        since: The step that training goes on from; what the file says of later ones is dropped.
        state: What `state` returned at that step, or nothing.
        clips_per_step: For the rate of clips.
        cost: Operations of a clip, and the most the devices do in a second; None: not told.
        tensorboard: Also write TensorBoard events, to a folder beside the file.
        ranks: The processes whose steps are counted together; the first of them writes.
        troubles: Told of what cannot be written.

    Raises:
        ConfigError: If TensorBoard is asked for and not installed.
    """

    def __init__(
        self,
        path: Path,
        *,
        since: int,
        state: dict[str, Any] | None = None,
        clips_per_step: int = 1,
        cost: tuple[float, float] | None = None,
        tensorboard: bool = False,
        ranks: Ranks | None = None,
        troubles: Troubles | None = None,
    ) -> None:
        self.path, self.clips_per_step, self.cost = path, clips_per_step, cost
        self._ranks = ranks or Ranks()
        self._tensorboard = tensorboard = tensorboard and self._ranks.main
        self._board = _board(path.parent / "tensorboard", since) if tensorboard else None
        self._troubles = troubles or Troubles(lambda message: None)
        self._unwritten: list[str] = []  # lines that the disk has not taken yet
        self.waited = 0.0  # seconds spent waiting for data since the last line
        self.last: dict[str, float] = {}
        state = state or {"tallies": {}, "steps": 0}
        # Sum and count of each term, [2]: a term need not be of every step.
        tallies = state["tallies"] if self._ranks.main else {}  # they are those of all processes
        self._tallies = {name: torch.tensor(value) for name, value in tallies.items()}
        self._count: int = state["steps"]
        self._counted_before = self._count  # in another process: of no use for a rate
        self._time = time.perf_counter()
        if self._ranks.main and path.exists():
            self._drop_after(since)

    def state(self) -> dict[str, Any]:
        """What a line not yet written is made of, as JSON values: kept in checkpoints."""
        return {"tallies": self._totals(), "steps": self._count}

    def _totals(self) -> dict[str, list[float]]:
        """Add up the tallies of all processes."""
        if self._ranks.size == 1:
            return {name: value.tolist() for name, value in self._tallies.items()}
        names = sorted({name for names in self._ranks.gather([*self._tallies]) for name in names})
        nothing = torch.zeros(2)
        mine = [self._tallies.get(name, nothing).to("cpu", torch.float64) for name in names]
        total = self._ranks.sum(torch.stack(mine)) if names else torch.empty(0, 2)
        return dict(zip(names, total.tolist(), strict=True))

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count one step's loss terms: means, or tallies of what is not in every sample."""
        for name, value in terms.items():
            value = value.float()
            if value.ndim == 0:
                value = torch.stack([value, torch.ones_like(value)])
            before = self._tallies.get(name)
            self._tallies[name] = value if before is None else before.to(value.device) + value
        self._count += 1

    def shown(self) -> dict[str, str]:
        """What stands beside the bar: the last logged loss."""
        return {"loss": f"{self.last['loss']:.4f}"} if "loss" in self.last else {}

    def log(self, step: int, **more: float) -> dict[str, float]:
        """Write a line of means, rates and `more`; return the means."""
        now = time.perf_counter()
        means = {name: total / count for name, (total, count) in self._totals().items() if count}
        rate = (self._count - self._counted_before) / (now - self._time)
        speed = {
            "steps_per_second": round(rate, 4),
            "clips_per_second": round(rate * self.clips_per_step, 4),
            "data_wait": round(self.waited / (now - self._time), 4),
        }
        if self.cost is not None:
            operations, most = self.cost
            done = rate * self.clips_per_step * operations
            # More than the device's rate: that was measured while others used the device.
            most = max(most, done)
            self.cost = operations, most
            speed |= {"tflops": _rounded(done / 1e12), "flop_utilisation": _rounded(done / most)}
        self._write(step, {**means, **more, **speed})
        self.waited = 0.0
        self._tallies = {}
        self._count, self._counted_before, self._time = 0, 0, now
        return means

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Write a line of validation figures."""
        self._write(step, values)
        self._time = time.perf_counter()

    def _write(self, step: int, values: dict[str, float]) -> None:
        self.last |= values
        if not self._ranks.main:
            return
        self._unwritten.append(json.dumps({"step": step, **values}) + "\n")
        with self._troubles.survive("metrics", self.path, "its lines are kept until it can be"):
            self._append()
        if self._tensorboard:
            folder = self.path.parent / "tensorboard"
            with self._troubles.survive("events", folder, "TensorBoard misses these steps"):
                self._show(folder, step, values)

    def _append(self) -> None:
        """Write the lines that are not in the file yet, all or none."""
        with self.path.open("ab", buffering=0) as file:
            size, lines = file.tell(), "".join(self._unwritten).encode()
            if file.write(lines) != len(lines):
                file.truncate(size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._unwritten.clear()

    def _show(self, folder: Path, step: int, values: dict[str, float]) -> None:
        """Write TensorBoard's events."""
        # Its thread would end with a traceback of its own.
        if folder.exists() and shutil.disk_usage(folder).free < LEAST:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        try:
            if self._board is None or not folder.exists():
                self._board = _board(folder, step - 1)
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        except OSError:
            self._board = None
            raise

    def close(self) -> None:
        """Try a last time to write what could not be written."""
        if self._unwritten:
            lost = f"its last {len(self._unwritten)} lines are lost"
            with self._troubles.survive("the end", self.path, lost):
                self._append()

    def _drop_after(self, step: int) -> None:
        """Keep only whole lines up to a step: what follows will be written again."""
        kept = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                known = entry.pop("step") <= step
            except (ValueError, KeyError, TypeError, AttributeError):  # cut short by a kill
                continue
            if known:
                kept.append(line)
                self.last |= entry
        write_text(self.path, "".join(f"{line}\n" for line in kept))


def _rounded(value: float) -> float:
    """Keep four figures, however small the network."""
    return float(f"{value:.4g}")


def _board(folder: Path, since: int) -> Any:
    """Open TensorBoard's writer; what it has of later steps is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # optional, and slow to import
    except ImportError:
        raise ConfigError(
            "training.tensorboard=true needs TensorBoard: pip install tensorboard"
        ) from None
    return SummaryWriter(folder, purge_step=since + 1)
