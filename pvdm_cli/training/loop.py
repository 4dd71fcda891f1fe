"""The training loop of both stages.

One optimizer step is: draw, predict, loss, backward (a number of times), clip, step, average.
Everything random is keyed by (seed, step, sample), so a resumed run equals an uninterrupted one.
"""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pvdm_cli.config import RunConfig
from pvdm_cli.errors import PvdmError
from pvdm_cli.model import Model, list_checkpoints
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.training.checkpoint import load_checkpoint, remove_old, save_checkpoint
from pvdm_cli.training.metrics import Metrics
from pvdm_cli.training.optim import learning_rate, make_average, make_optimizer

BatchT = TypeVar("BatchT")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stage(Protocol[BatchT]):
    """What differs between the autoencoder and the denoiser.

    Attributes:
        weights_file: The network's file in a model folder.
    """

    weights_file: str

    @property
    def network(self) -> nn.Module:
        """The network in training, on its device."""

    def draw(self, step: int, micro: int) -> BatchT:
        """Draw the batch of an accumulation step; pure, called ahead of time from a thread."""

    def losses(self, network: nn.Module, batch: BatchT) -> dict[str, Tensor]:
        """Compute `loss` and its terms on a batch."""

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Measure on held-out videos; empty if nothing is held out."""

    def model(self, network: nn.Module) -> Model:
        """Make what is published: a whole model around the given weights."""

    def sample(self, network: nn.Module, path: Path) -> None:
        """Write videos that show how good the network is to files that start with `path`."""


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
    *,
    provenance: dict[str, Any] | None = None,
    reporter: Reporter = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train a stage in a run folder, going on from its last checkpoint if there is one.

    Args:
        stage: What to train.
        config: How.
        run: The run folder; exists.
        provenance: Kept in every model of this run, beside step and validation figures.
        reporter: Told of every step.
        stop: Asked after every step; True saves and returns.

    Raises:
        PvdmError: If the loss is no longer finite, or a checkpoint cannot be written or read.
    """
    settings = config.training
    network, device = stage.network, next(stage.network.parameters()).device
    optimizer = make_optimizer(network.parameters(), settings)
    average = make_average(network, settings)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    published = network if average is None else average.module
    step, best = 0, dict[str, float]()
    if checkpoints := list_checkpoints(run):
        state = load_checkpoint(checkpoints[-1], network, optimizer, average, stage.weights_file)
        step = state["step"]
        scaler.load_state_dict(state["scaler"])
        reporter.say(f"continuing {run} from step {step}")
    metrics = Metrics(run / "metrics.jsonl", since=step)
    began, saved = time.perf_counter(), step if checkpoints else -1

    def save() -> None:
        nonlocal saved
        state = {"scaler": scaler.state_dict()}
        model = stage.model(published)
        model.provenance |= {**(provenance or {}), "step": step, "metrics": dict(best)}
        save_checkpoint(run, step, model, network, optimizer, average, state)
        remove_old(run, settings.keep_last, settings.keep_every)
        saved = step

    reporter.start(f"training {config.stage}", settings.steps, "step")
    reporter.advance(step)
    batches = _ahead(stage, step, config)
    stopped = False
    while step < settings.steps and not stopped:
        rate = learning_rate(settings, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        terms = accumulate(stage, batches, scaler, device, config)
        norm = update(network, optimizer, scaler, settings.grad_clip)
        step += 1
        if average is not None and step % settings.ema_every == 0:
            average.update_parameters(network)
        metrics.add(terms)
        reporter.advance(1, **metrics.shown())
        if step % settings.log_every == 0 or step == settings.steps:
            loss = metrics.log(step, lr=rate, grad_norm=float(norm))
            if not _finite(loss):
                raise PvdmError(
                    f"{run}: the loss is {loss} at step {step}; lower training.lr, or set "
                    "training.grad_clip=1, and start again from the last checkpoint"
                )
        if step % settings.validate_every == 0 or step == settings.steps:
            with torch.no_grad():
                found = stage.validate(published)
            if found:
                best = metrics.validation(step, found)
                reporter.say(f"step {step}: " + _line(found))
        due = settings.sample_every and step % settings.sample_every == 0
        if due or step == settings.steps:
            with torch.no_grad():
                stage.sample(published, run / "samples" / f"step-{step:08d}")
        stopped = stop()
        if step % settings.checkpoint_every == 0 or step == settings.steps or stopped:
            save()
    batches.close()
    if saved != step:
        save()
    reporter.done()
    seconds = time.perf_counter() - began
    return TrainResult(run, step, step >= settings.steps, seconds, metrics.last)


def _ahead(stage: Stage[BatchT], step: int, config: RunConfig) -> Generator[BatchT, None, None]:
    """Yield the batches from `step` on, each drawn in threads while the ones before are used."""
    settings = config.training
    workers = max(1, config.data.num_workers)

    def keys() -> Iterator[tuple[int, int]]:
        for number in range(step, settings.steps):
            for micro in range(settings.accumulation):
                yield number, micro

    with ThreadPoolExecutor(workers) as pool:
        pending: list[Future[BatchT]] = []
        for key in keys():
            pending.append(pool.submit(stage.draw, *key))
            if len(pending) > workers:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def accumulate(
    stage: Stage[BatchT],
    batches: Iterator[BatchT],
    scaler: torch.amp.GradScaler,
    device: torch.device,
    config: RunConfig,
) -> dict[str, Tensor]:
    """Run forward and backward over one optimizer step's batches; mean of each loss term."""
    settings = config.training
    precision = PRECISIONS[settings.precision]
    totals: dict[str, Tensor] = {}
    for _ in range(settings.accumulation):
        batch = next(batches)
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            terms = stage.losses(stage.network, batch)
        scaler.scale(terms["loss"] / settings.accumulation).backward()
        for name, value in terms.items():
            share = value.detach() / settings.accumulation
            totals[name] = totals[name] + share if name in totals else share
    return totals


def update(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    grad_clip: float,
) -> Tensor:
    """Clip the gradient and take one optimizer step; return the norm before clipping."""
    scaler.unscale_(optimizer)
    most = grad_clip or float("inf")
    norm = nn.utils.clip_grad_norm_(network.parameters(), most)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _finite(value: float) -> bool:
    """Tell numbers from NaN and infinities."""
    return value - value == 0


def _line(values: dict[str, float]) -> str:
    """Write measured values as one line."""
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())
