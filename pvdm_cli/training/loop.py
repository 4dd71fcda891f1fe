"""The training loop of both stages.

One optimizer step is: draw, predict, loss, backward (a number of times), clip, step, average.
Everything random is keyed by (seed, step, sample), so a resumed run equals an uninterrupted one.
"""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch

from pvdm_cli.config import RunConfig
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import Hold
from pvdm_cli.model import checkpoint_folders, checkpoint_step, list_checkpoints
from pvdm_cli.models.compiled import compile_network
from pvdm_cli.models.cost import training_flops
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import here
from pvdm_cli.runtime import matrix_rate, peak_memory, resolve_precision
from pvdm_cli.training.checkpoint import Trained, load_moments, load_newest, settle
from pvdm_cli.training.metrics import Metrics, tally
from pvdm_cli.training.optim import bring_together, learning_rate, make_average
from pvdm_cli.training.players import (
    BatchT,
    Portion,
    Stage,
    accumulate,
    make_players,
    update,
)
from pvdm_cli.training.saving import Saver, Troubles, keep_folder


@dataclass
class TrainResult:
    """How a run ended.

    Attributes:
        run: The run folder.
        step: Optimizer steps done.
        finished: False if it was stopped before the last step.
        seconds: Time spent now.
        metrics: The last value of everything logged.
    """

    run: Path
    step: int
    finished: bool
    seconds: float
    metrics: dict[str, float]


def train(
    stage: Stage[Any],
    config: RunConfig,
    run: Path,
    hold: Hold | None,
    *,
    provenance: dict[str, Any] | None = None,
    reporter: Reporter = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a stage in a run folder, going on from its last checkpoint if there is one.

    Args:
        stage: What to train.
        config: How.
        run: The run folder.
        hold: What keeps other runs out of it; only the first of several processes has it.
        provenance: Kept in every model of this run, beside step and validation figures.
        reporter: Told of every step.
        stop: Asked after every step; True saves and returns.

    Raises:
        PvdmError: If the loss is no longer finite, or a checkpoint cannot be written or read.
    """
    began = time.perf_counter()
    trainer = _Trainer(stage, config, run, hold, provenance or {}, reporter)
    with closing(trainer):
        trainer.show(again=False)  # a kill may have come between a checkpoint and its sample
        stopped = False
        while not trainer.finished and not stopped:
            try:
                stopped = trainer.go_on(stop)
            except _Diverged as found:
                trainer.go_back(found)
        trainer.end()
    seconds = time.perf_counter() - began
    return TrainResult(run, trainer.step, trainer.finished, seconds, trainer.metrics.last)


@dataclass
class Best:
    """The best validation so far.

    Attributes:
        score: Its figure, such that more is better; None before the first.
        stale: Validations since.
        improved: Whether it is newer than the last checkpoint.
        saved: Step of the first regular checkpoint after it.
    """

    score: float | None = None
    stale: int = 0
    improved: bool = False
    saved: int | None = None

    def judge(self, score: float) -> None:
        """Count one more validation."""
        if isfinite(score) and (self.score is None or score > self.score):
            self.score, self.stale, self.improved = score, 0, True
        else:
            self.stale += 1


class _Diverged(Exception):
    """A loss or a weight is no longer a number."""


class _Trainer:
    """A run between its checkpoints: everything that changes from step to step."""

    def __init__(
        self,
        stage: Stage[Any],
        config: RunConfig,
        run: Path,
        hold: Hold | None,
        provenance: dict[str, Any],
        reporter: Reporter,
    ) -> None:
        """Begin, or go on from the last checkpoint."""
        self.stage, self.config, self.settings = stage, config, config.training
        self.run, self.hold = run, hold
        self.provenance, self.reporter = provenance, reporter
        self.ranks, self.portion = here(), Portion.of(self.settings, here())
        self.troubles = Troubles(reporter.say)
        self.saver = Saver(self.run, self.settings.keep_last, self.settings.keep_every)
        self.network = stage.network
        self.device = next(stage.network.parameters()).device
        self.players = make_players(stage, config)
        self.average = make_average(stage.network, self.settings)
        self.published = stage.network if self.average is None else self.average.module
        if self.settings.compile:
            compile_network(stage.network)
        if checkpoint_folders(self.run):
            self._restore()
            self.reporter.say(f"continuing {self.run} from step {self.step}")
        else:
            self._begin({})
            self._take_over_moments()

    def _begin(self, state: dict[str, Any]) -> None:
        """Take over what a checkpoint says beside its tensors."""
        self.step: int = state.get("step", 0)
        self.setbacks: int = state.get("setbacks", 0)  # times this run has gone back
        self.measured: dict[str, float] = state.get("measured", {})  # the last validation
        self.best = Best(**state.get("best", {}))
        path = self.run / "metrics.jsonl"
        self.metrics = Metrics(
            path,
            since=self.step,
            state=state.get("metrics"),
            clips_per_step=self.settings.batch_size * self.settings.accumulation,
            cost=self._cost(),
            tensorboard=self.settings.tensorboard,
            ranks=self.ranks,
            troubles=self.troubles,
        )
        self._saved_at = time.monotonic()

    def _cost(self) -> tuple[float, float] | None:
        """Operations of a clip and the rate of all devices, where the network trains alone."""
        if self.stage.rival is not None:
            return None
        precision = resolve_precision(self.settings.precision, self.device)
        rate = self.ranks.size * matrix_rate(self.device, precision)
        return training_flops(self.config), rate

    def _restore(self) -> None:
        """Load the newest checkpoint that is whole."""
        files, say = self.stage.weights_file, self.reporter.say
        load = partial(load_newest, self.run, self._trained(), self.average, files, say)
        state = load() if self.ranks.main else {}
        self.ranks.barrier()  # damaged ones are set aside
        state = state or load()
        for player in self.players:
            player.scaler.load_state_dict(state["scalers"][player.name])
        self._begin(state)
        self._settle()

    def _settle(self) -> None:
        """Point at the newest and the best checkpoint; remove those not to keep."""
        if self.ranks.main:
            settle(self.run, self.settings.keep_last, self.settings.keep_every, self.best.saved)
        self.ranks.barrier()

    def go_on(self, stop: Callable[[], bool]) -> bool:
        """Train to the last step, saving and showing on the way; return whether it was stopped."""
        self.reporter.start(f"training {self.config.stage}", self.settings.steps, "step")
        self.reporter.advance(self.step)
        stopped = False
        with closing(_ahead(self.stage, self.step, self.config, self.portion)) as batches:
            while not self.finished and not stopped:
                self.advance(self._timed(batches))
                # The clock is that of the first process.
                stopped, late = self.ranks.agree([stop(), self.ranks.main and self._due_by_clock()])
                self._look_after_writing()
                if stopped or late or self.due(self.settings.checkpoint_every):
                    self.save()
                if self.finished or not stopped:
                    self.show()
        self.reporter.done()
        return stopped

    def go_back(self, found: _Diverged) -> None:
        """Return to the last checkpoint and go more gently from there.

        Raises:
            PvdmError: If there is none, or it has been tried often enough.
        """
        self.reporter.done()
        self._look_after_writing(wait=True)
        self.ranks.barrier()
        self.metrics.close()
        at, setbacks = self.step, self.setbacks + 1
        if setbacks > self.settings.retries or not list_checkpoints(self.run):
            tried = f" after {self.setbacks} retries" if self.setbacks else ""
            raise PvdmError(
                f"{self.run}: {found} at step {at}{tried}; start another run from the last "
                f"checkpoint by init={self.run} with a lower training.lr or training.grad_clip=1"
            ) from None
        self._restore()
        self.setbacks = setbacks
        what = "learning rate" if self.stage.rival is None else "adversarial weights"
        self.reporter.say(
            f"{found} at step {at}: going back to step {self.step}, {what} at {self.gentleness:.3g} "
            "of what was set"
        )

    def _timed(self, batches: Iterator[BatchT]) -> Iterator[BatchT]:
        """Count the time that training waits for each batch."""
        while True:
            began = time.perf_counter()
            batch = next(batches)
            self.metrics.waited += time.perf_counter() - began
            yield batch

    @property
    def gentleness(self) -> float:
        """Half for each time this run has gone back."""
        return 0.5**self.setbacks

    def _take_over_moments(self) -> None:
        """Let the second phase go on with the optimizer of the first, not only its weights."""
        start = Path(self.config.init) if self.config.init else None
        if self.stage.rival is not None and start is not None and list_checkpoints(start):
            load_moments(list_checkpoints(start)[-1], self.players[0].optimizer)

    def _trained(self) -> Trained:
        """Everything in training, by what leads the names of its tensors."""
        return {
            f"{player.name}." if player.name else "": (player.network, player.optimizer)
            for player in self.players
        }

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the run has stopped getting better."""
        patience = self.settings.patience
        return self.step >= self.settings.steps or 0 < patience <= self.best.stale

    def due(self, every: int) -> bool:
        """Whether something that happens every so many steps, and at the end, happens now."""
        return self.finished or (every > 0 and self.step > 0 and self.step % every == 0)

    def _due_by_clock(self) -> bool:
        """Whether the last checkpoint was long ago; setting the clock of the system does nothing."""
        minutes = self.settings.checkpoint_minutes
        return minutes > 0 and time.monotonic() - self._saved_at >= 60 * minutes

    def advance(self, batches: Iterator[Any]) -> None:
        """Take one optimizer step, and log and validate where that is due."""
        turn, of = self.step % len(self.players), self.step // len(self.players)
        player = self.players[turn]
        rate = learning_rate(self.settings, self.step)
        if self.stage.rival is None:
            rate *= self.gentleness
        else:
            self.stage.rival_share = self.gentleness
        for group in player.optimizer.param_groups:
            group["lr"] = rate
        terms = accumulate(player, batches, self.config, self.portion.passes)
        norm = update(player)[None]
        # In fp16 gradients overflow now and then; the scaler leaves that step out, and so do we.
        terms["grad_norm"] = tally(norm, norm.isfinite())
        self.step += 1
        if self.average is not None and turn == 0 and (of + 1) % self.settings.ema_every == 0:
            self.average.update_parameters(self.network)
        self.metrics.add({player.term(name): value for name, value in terms.items()})
        self.reporter.advance(1, **self.metrics.shown())
        if self.due(self.settings.log_every):
            self._keep_folder()
            memory = peak_memory(self.device)
            more = {} if memory is None else {"peak_memory_gb": round(memory / 2**30, 3)}
            means = self.metrics.log(self.step, lr=rate, **more)
            broken = [name for name, value in means.items() if not isfinite(value)]
            if broken:
                causes = [name for name in broken if name != "loss"]
                name = (causes or broken)[0]
                raise _Diverged(f"{name} is {means[name]}")
        if self.due(self.settings.validate_every):
            self._validate()
        every = self.settings.score_every
        if every and self.due(every):
            self._score()

    def _score(self) -> None:
        """Measure a few drawn videos."""
        self._keep_folder()
        with torch.no_grad():
            found = self.ranks.first(lambda: self.stage.score(self.published))
        told = "; the best checkpoint goes by it" if self._judge(found) else ""
        self.reporter.say(
            f"step {self.step}: {_line(found)} (so few tell a trend at most{told}; compare by `pvdm "
            "eval fvd`)"
        )

    def _validate(self) -> None:
        """Measure on held-out videos, if there are any."""
        self._keep_folder()
        with torch.no_grad():
            found = self.ranks.first(lambda: self.stage.validate(self.published))
        if found:
            self._judge(found)
            self.reporter.say(f"step {self.step}: {_line(found)}")

    def _judge(self, found: dict[str, float]) -> bool:
        """Note what was measured; return whether the best checkpoint goes by it."""
        self.measured = self.measured | found
        self.metrics.validation(self.step, found)
        name, sign = self.stage.judged_by
        if name in found:
            self.best.judge(sign * found[name])
        return name in found

    def save(self) -> None:
        """Have a checkpoint written, never one with broken weights; older ones are removed then."""
        self._look_after_writing(wait=True)
        self._keep_folder()
        for player in self.players:
            finite = [weight.isfinite().all() for weight in player.network.parameters()]
            if not torch.stack(finite).all():
                raise _Diverged("weights are no longer finite")
        model = self.stage.model(self.published)
        model.provenance |= {**self.provenance, "step": self.step, "metrics": self.measured}
        # A checkpoint made because training was interrupted must not change what is kept.
        self._best_before = self.best.saved
        if self.best.improved and self.due(self.settings.checkpoint_every):
            self.best.saved, self.best.improved = self.step, False
        for player in self.players:
            bring_together(player.optimizer)
        state = {
            "best": asdict(self.best),
            "scalers": {player.name: player.scaler.state_dict() for player in self.players},
            "setbacks": self.setbacks,
            "measured": self.measured,
            "metrics": self.metrics.state(),
        }
        if self.ranks.main:
            self.saver.save(self.step, model, self._trained(), self.average, state, self.best.saved)
        self._saved_at = time.monotonic()

    def _look_after_writing(self, *, wait: bool = False) -> None:
        """Tell of a checkpoint that could not be written."""
        if failed := self.saver.outcome(wait=wait):
            if self.best.saved == failed.step:
                self.best.saved, self.best.improved = self._best_before, True
            self.reporter.say(
                f"warning: cannot save step {failed.step} {failed.reason}; training goes on, the "
                "next checkpoint tries again"
            )

    def _keep_folder(self) -> None:
        """Make the run folder anew if it was removed."""
        if self.hold is None:
            return
        with self.troubles.survive("folder", self.run, "training goes on"):
            keep_folder(self.hold, self.config, self.reporter.say)

    def end(self) -> None:
        """Wait until the last checkpoint is on disk.

        Raises:
            PvdmError: If it could not be written.
        """
        if failed := self.saver.outcome(wait=True):
            kept = list_checkpoints(self.run)
            before = f"step {checkpoint_step(kept[-1])}" if kept else "the start"
            raise PvdmError(
                f"cannot save step {failed.step} {failed.reason}; make room and give the same command "
                f"again: it goes on from {before}"
            )

    def close(self) -> None:
        """Let what is being written land, whatever ended training."""
        self._look_after_writing(wait=True)
        self.saver.close()
        self.metrics.close()

    def show(self, *, again: bool = True) -> None:
        """Write sample videos if they are due; with again=False only if they are not there."""
        path = self.run / "samples" / f"step-{self.step:08d}"
        if not self.ranks.main:
            return
        if self.due(self.settings.sample_every) and (again or not _written(path)):
            self._keep_folder()
            without = "training goes on without"
            with self.troubles.survive("samples", path, without), torch.no_grad():
                self.stage.sample(self.published, path)


def _ahead(
    stage: Stage[BatchT], step: int, config: RunConfig, portion: Portion
) -> Generator[BatchT, None, None]:
    """Yield the batches from `step` on, each drawn in threads while the ones before are used."""
    settings = config.training
    workers = max(1, config.data.num_workers)

    def keys() -> Iterator[tuple[int, range]]:
        for number in range(step, settings.steps):
            for each in range(portion.passes):
                yield number, portion.samples(each)

    with ThreadPoolExecutor(workers) as pool:
        pending: list[Future[BatchT]] = []
        for key in keys():
            pending.append(pool.submit(stage.draw, *key))
            if len(pending) > workers:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def _written(path: Path) -> bool:
    """Whether there is a file of this name, whatever its suffix."""
    return any(path.parent.glob(f"{path.name}*"))


def _line(values: dict[str, float]) -> str:
    """Write measured values as one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
