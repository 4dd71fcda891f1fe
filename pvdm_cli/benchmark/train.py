"""The largest training batch that fits, and seconds per step at that batch.

A step is the training loop's own: losses of the stage, backward, clipping, AdamW, average. The
data is noise drawn once (real runs draw ahead, in threads).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from pvdm_cli.benchmark import child
from pvdm_cli.benchmark.maximum import FREE_SHARE, free_memory, largest_batch
from pvdm_cli.benchmark.noise import noise_stage
from pvdm_cli.benchmark.published import TABLE_5, PublishedRow
from pvdm_cli.benchmark.timing import Peak, PeakMeter, Timing, device_name, repeat, seconds_of
from pvdm_cli.config import RunConfig, load_config, parse_config
from pvdm_cli.environment import environment
from pvdm_cli.errors import PvdmError
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import Ranks
from pvdm_cli.runtime import resolve_device, resolve_precision
from pvdm_cli.training.optim import make_average
from pvdm_cli.training.players import Portion, Stage, accumulate, make_players, update

DEFAULT_PRESETS = ("demo/autoencoder", "demo/diffusion")
MOST = {"cpu": 64, "mps": 64, "cuda": 1024}  # where the search stops unless told otherwise
WARM_UP = 1  # steps; the first one makes the optimizer's moments


@dataclass(frozen=True)
class TrainJob:
    """A few training steps at one batch size, within a memory limit."""

    config: dict[str, Any]
    batch: int
    repeats: int | None
    limit: int | None
    device: str
    threads: int


@dataclass(frozen=True)
class Try:
    """One batch size tried."""

    batch: int
    fits: bool
    peak: Peak | None
    timing: Timing | None


@dataclass(frozen=True)
class TrainFigure:
    """What a preset's training needs.

    Attributes:
        largest_batch: Clips of one forward and backward pass; 0: not even one fits.
        capped: The search stopped there, more may fit.
        limit_bytes: Memory to fit in, None: the card.
        limit_from: Who said so.
        timing: Of one step at the largest batch.
        peak: Memory of a step at the largest batch.
    """

    preset: str
    stage: str
    frames: int
    height: int
    width: int
    device: str
    dtype: str
    threads: int
    torch: str
    largest_batch: int
    capped: bool
    limit_bytes: int | None
    limit_from: str
    timing: Timing | None
    peak: Peak | None
    tries: list[Try]
    notes: list[str]


@dataclass(frozen=True)
class TrainBench:
    """All figures of a run of `bench train`, and the published ones."""

    figures: list[TrainFigure]
    published: list[PublishedRow]
    environment: dict[str, Any]


def bench_train(
    presets: Sequence[str] = DEFAULT_PRESETS,
    *,
    overrides: Sequence[str] = (),
    memory_limit: int | None = None,
    max_batch: int | None = None,
    repeats: int | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> TrainBench:
    """Find the largest batch that fits and time a step with it, every try in its own process.

    Args:
        presets: Presets of either stage.
        overrides: key=value changes to all of them.
        memory_limit: Bytes; None: the card, or 80 % of the free main memory.
        max_batch: Where the search stops; None: 64, on CUDA 1024.
        repeats: Steps timed at the largest batch; None: 3, fewer once 20 s are spent.
        device: cpu | cuda | mps | auto.
        reporter: Told of every try.

    Raises:
        PvdmError: If a preset is not there or cannot be trained.
    """
    target = resolve_device(device)
    most = MOST[target.type] if max_batch is None else max_batch
    if most < 1:
        raise PvdmError(f"--max-batch {most}: expected 1 or more")
    limit, limit_from = _limit(memory_limit, target)
    configs = {name: _trainable(load_config(name, overrides), target) for name in presets}
    figures = []
    for name, (config, notes) in configs.items():
        for note in notes:
            reporter.say(f"{name}: {note}")
        search = _Search(name, config, limit, repeats, str(target), reporter)
        found = largest_batch(search.fits, most)
        best = search.timed(found.batch) if found.batch else None
        figures.append(
            TrainFigure(
                preset=name,
                stage=config.stage,
                frames=config.clip.frames,
                height=config.clip.height,
                width=config.clip.width,
                device=device_name(target),
                dtype=resolve_precision(config.training.precision, target),
                threads=torch.get_num_threads(),
                torch=torch.__version__,
                largest_batch=found.batch,
                capped=found.capped,
                limit_bytes=limit,
                limit_from=limit_from,
                timing=best.timing if best else None,
                peak=best.peak if best else None,
                tries=search.tries,
                notes=notes,
            )
        )
        reporter.done()
    return TrainBench(figures, list(TABLE_5), environment())


def fitting_batch(config: RunConfig, device: str, reporter: Reporter = SILENT) -> int:
    """Find the largest batch whose training steps fit in memory; 0 if not even one clip does.

    Args:
        config: What is to be trained; with `training.clips_per_step` no more than that is tried.
        device: cpu | cuda | mps | auto.
        reporter: Told of every try.
    """
    target = resolve_device(device)
    limit, _ = _limit(None, target)
    most = config.training.clips_per_step or MOST[target.type]
    search = _Search("batch_size=auto", config, limit, None, str(target), reporter)
    found = largest_batch(search.fits, most).batch
    reporter.done()
    return found


def _limit(given: int | None, device: torch.device) -> tuple[int | None, str]:
    """Bytes to fit in, and where the number comes from."""
    if given is not None:
        return given, "given"
    if device.type != "cpu":
        return None, "the device's own"
    free = free_memory()
    if free is None:
        raise PvdmError("this system does not tell its free memory; give --memory-limit")
    return int(FREE_SHARE * free), f"{FREE_SHARE:.0%} of the free memory"


def _trainable(config: RunConfig, device: torch.device) -> tuple[RunConfig, list[str]]:
    """Leave out what cannot run here, saying so."""
    notes = []
    if config.training.precision == "fp16" and device.type == "cpu":
        notes.append("measured in fp32: its fp16 needs a GPU")
        training = config.training.model_copy(update={"precision": "fp32"})
        config = config.model_copy(update={"training": training})
    return config, notes


class _Search:
    """Tries batch sizes of one preset in child processes and remembers what came of it."""

    def __init__(
        self,
        name: str,
        config: RunConfig,
        limit: int | None,
        repeats: int | None,
        device: str,
        reporter: Reporter,
    ) -> None:
        self.name, self.config, self.reporter = name, config, reporter
        self.limit, self.repeats, self.device = limit, repeats, device
        self.tries: list[Try] = []

    def fits(self, batch: int) -> bool:
        """Take two steps; say how it went."""
        found = self._try(batch, repeats=1)
        self.tries.append(found)
        self.reporter.say(f"{self.name}: batch {batch} {_described(found)}")
        return found.fits

    def timed(self, batch: int) -> Try:
        """Time the steps asked for; the figures of the search if memory was too short now."""
        found = self._try(batch, self.repeats)
        return found if found.fits else next(t for t in self.tries if t.batch == batch)

    def _try(self, batch: int, repeats: int | None) -> Try:
        job = TrainJob(
            config=self.config.model_dump(mode="json"),
            batch=batch,
            repeats=repeats,
            limit=self.limit,
            device=self.device,
            threads=torch.get_num_threads(),
        )
        self.reporter.start(f"{self.name}, batch {batch}", unit="step")
        state, figures = child.measure("train", asdict(job), self.reporter.advance)
        if state != "done":
            return Try(batch, False, None, None)
        peak, timing = Peak(**figures["peak"]), Timing(**figures["timing"])
        over = self.limit is not None and (peak.bytes or 0) > self.limit
        return Try(batch, not over, peak, timing)


def _described(found: Try) -> str:
    """Say what came of a try."""
    if not found.fits:
        return "does not fit"
    assert found.timing is not None
    assert found.peak is not None
    memory = f", {found.peak.bytes / 2**30:.2f} GB" if found.peak.bytes is not None else ""
    return f"fits: {found.timing.median:.3g} s per step{memory}"


def measure(
    job: TrainJob,
    on_step: Callable[[], None] = lambda: None,
    on_excess: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a few steps in this process; JSON values.

    Args:
        job: What to train.
        on_step: Called after each step.
        on_excess: Called from another thread once memory on the CPU passes the limit.
    """
    device = resolve_device(job.device)
    meter = PeakMeter(device)
    if job.limit is not None:
        _enforce(job.limit, device, meter, on_excess)
    config = parse_config(RunConfig, job.config, where="the preset")
    alone = {"batch_size": job.batch, "accumulation": 1, "clips_per_step": 0}
    training = config.training.model_copy(update=alone)
    config = config.model_copy(update={"training": training})
    step = stepper(noise_stage(config, device), config)

    def timed() -> float:
        seconds = seconds_of(step, device)
        on_step()
        return seconds

    for _ in range(WARM_UP):
        timed()
    timing = Timing.of(repeat(timed, job.repeats), warm_up=f"{WARM_UP} step")
    return {"timing": asdict(timing), "peak": asdict(meter.read())}


def _enforce(
    limit: int, device: torch.device, meter: PeakMeter, on_excess: Callable[[], None]
) -> None:
    """Make a run past the limit fail."""
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), device)
    elif device.type == "cpu":
        meter.watch(limit, on_excess)
    else:
        raise PvdmError(f"--memory-limit works on cpu and cuda, not on {device.type}")


def stepper(stage: Stage[Any], config: RunConfig) -> Callable[[], None]:
    """Return one whole optimizer step of the training loop, on the same batch each time.

    Where two players take turns it is a step of each.
    """
    settings, players = config.training, make_players(stage, config)
    portion = Portion.of(settings, Ranks())
    average = make_average(stage.network, settings)
    batches = itertools.repeat(stage.draw(0, portion.samples(0)))
    steps = itertools.count(1)

    def step() -> None:
        for player in players:
            accumulate(player, batches, config, portion.passes)
            update(player)
        if average is not None and next(steps) % settings.ema_every == 0:
            average.update_parameters(stage.network)

    return step
