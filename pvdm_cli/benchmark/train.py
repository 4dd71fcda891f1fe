"""The largest training batch that fits, and seconds per step at that batch.

A step is the training loop's own: losses of the stage, backward, clipping, AdamW, average. The
data is noise drawn once (real runs draw ahead, in threads).
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from pvdm_cli.benchmark.figure import Bench, Figure
from pvdm_cli.benchmark.floor import training_work
from pvdm_cli.benchmark.maximum import limit_of, memory_of
from pvdm_cli.benchmark.noise import noise_stage
from pvdm_cli.benchmark.run import Batch, Job, Measured, Run
from pvdm_cli.benchmark.work import begin, nothing, timed
from pvdm_cli.config import RunConfig, load_config, parse_config
from pvdm_cli.footprint import count_step, largest_batch
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import Ranks
from pvdm_cli.runtime import resolve_device, resolve_precision
from pvdm_cli.training.optim import make_average
from pvdm_cli.training.players import Portion, Stage, accumulate, make_players, update

FEW = 8  # sizes so few are tried sooner than predicted
DEFAULT_PRESETS = ("demo/autoencoder", "demo/diffusion")


@dataclass(frozen=True, kw_only=True)
class TrainJob(Job):
    """A few training steps at one batch size, within a memory limit."""

    config: dict[str, Any]


def bench_train(
    presets: Sequence[str] = DEFAULT_PRESETS,
    *,
    overrides: Sequence[str] = (),
    precisions: Sequence[str] = (),
    batches: Sequence[Batch] = (None,),
    memory_limit: int | None = None,
    max_batch: int | None = None,
    repeats: int | None = None,
    device: str = "auto",
    deadline: float | None = None,
    reporter: Reporter = SILENT,
) -> Bench:
    """Find the largest batch that fits and time a step with it, every try in its own process.

    Args:
        presets: Presets of either stage.
        overrides: key=value changes to all of them.
        precisions: Values of training.precision, each measured; none: the preset's.
        batches: Clips of one pass; None is the most that fit.
        memory_limit: Bytes; None: the card, or 80 % of the free main memory.
        max_batch: Where the search stops; None: 64, on CUDA 1024.
        repeats: Steps timed; None: 3, fewer once 20 s are spent.
        device: cpu | cuda | mps | auto.
        deadline: When everything must be over, by `time.monotonic`.
        reporter: Told of every try.

    Raises:
        PvdmError: If a preset is not there or cannot be trained.
    """
    target = resolve_device(device)
    changes = [[*overrides, f"training.precision={each}"] for each in precisions]
    configs = [
        (name, *_trainable(load_config(name, each), target))
        for name in presets
        for each in changes or [list(overrides)]
    ]
    run = Run(
        device=target,
        repeats=repeats,
        limit=limit_of(memory_limit, target) if None in batches or memory_limit else None,
        max_batch=max_batch,
        deadline=deadline,
        reporter=reporter,
    )
    return Bench(
        "train",
        [
            _figure(run, name, config, notes, batch)
            for name, config, notes in configs
            for batch in batches
        ],
    )


def _figure(run: Run, name: str, config: RunConfig, notes: list[str], batch: Batch) -> Figure:
    """Let children train."""
    for note in notes:
        run.reporter.say(f"{name}: {note}")
    job = TrainJob(config=config.model_dump(mode="json"), **run.common)
    guess = _guess(config, run) if batch is None else 1
    found = run.measure("train", name, job, batch, guess=guess)
    dtype = resolve_precision(config.training.precision, run.device)
    clip = config.clip
    return Figure(
        bench="train",
        subject=name,
        settings={"stage": config.stage, "frames": clip.frames},
        unit="clip",
        height=clip.height,
        width=clip.width,
        notes=notes,
        predicted=_predicted(config, found, dtype),
        **run.told(found, lambda batch: training_work(config, batch, dtype), dtype),
    )


def _predicted(config: RunConfig, found: Measured, precision: str) -> int | None:
    """Count the peak of what was measured, where it can be counted."""
    if not _is_counted(config) or found.peak is None or found.peak.bytes is None:
        return None
    return count_step(config, found.batch, precision).peak


def _guess(config: RunConfig, run: Run) -> int:
    """Predict the largest batch: a search from there on needs half as many tries, or fewer."""
    assert run.limit is not None
    memory = memory_of(run.limit, run.device)
    if memory is None or run.most <= FEW or not _is_counted(config):
        return 1
    run.reporter.start("predicting the largest batch")  # 10 s for a large network
    found = largest_batch(config, resolve_precision(config.training.precision, run.device), memory)
    run.reporter.done()
    return found


def _is_counted(config: RunConfig) -> bool:
    """Whether `footprint` counts all; networks of losses it does not."""
    return config.stage == "diffusion" or not (config.loss.lpips or config.adversarial)


def fitting_batch(config: RunConfig, device: str, reporter: Reporter = SILENT) -> int:
    """Find the largest batch whose training steps fit in memory; 0 if not even one clip does.

    Args:
        config: What is to be trained; with `training.clips_per_step` no more than that is tried.
        device: cpu | cuda | mps | auto.
        reporter: Told of every try.
    """
    target = resolve_device(device)
    run = Run(
        device=target,
        limit=limit_of(None, target),
        max_batch=config.training.clips_per_step or None,
        reporter=reporter,
    )
    job = TrainJob(config=config.model_dump(mode="json"), **run.common)
    found = run.search("train", "batch_size=auto", job, _guess(config, run)).largest
    reporter.done()
    return found


def _trainable(config: RunConfig, device: torch.device) -> tuple[RunConfig, list[str]]:
    """Leave out what cannot run here, saying so."""
    notes = []
    if config.training.precision == "fp16" and device.type == "cpu":
        notes.append("measured in fp32: its fp16 needs a GPU")
        training = config.training.model_copy(update={"precision": "fp32"})
        config = config.model_copy(update={"training": training})
    return config, notes


def measure(
    job: TrainJob,
    on_step: Callable[[], None] = nothing,
    on_excess: Callable[[], None] = nothing,
) -> dict[str, Any]:
    """Train a few steps in this process; JSON values.

    Args:
        job: What to train.
        on_step: Called after each step.
        on_excess: Called from another thread once memory on the CPU passes the limit.
    """
    device, meter = begin(job, on_excess)
    config = parse_config(RunConfig, job.config, where="the preset")
    alone = {"batch_size": job.batch, "accumulation": 1, "clips_per_step": 0}
    training = config.training.model_copy(update=alone)
    config = config.model_copy(update={"training": training})
    step = stepper(noise_stage(config, device), config)
    # The first step makes the optimizer's moments.
    return timed(step, job, device, meter, on_step, "step")


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
