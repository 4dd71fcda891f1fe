"""What is trained: a stage, its network, and where there is one the rival it takes turns with."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pvdm_cli.config import RunConfig, TrainingConfig
from pvdm_cli.errors import ConfigError
from pvdm_cli.model import Model
from pvdm_cli.ranks import Ranks, here, watching
from pvdm_cli.runtime import autocast, resolve_precision
from pvdm_cli.training.optim import make_optimizer

BatchT = TypeVar("BatchT")


class Stage(Protocol[BatchT]):
    """What differs between the autoencoder and the denoiser.

    Attributes:
        weights_file: The network's file in a model folder.
        rival_share: Factor of the weights of the terms that come from the rival.
        judged_by: What `validate` or `score` says of how good it is; 1 if more is better, else -1.
    """

    weights_file: str
    judged_by: tuple[str, int]
    rival_share: float

    @property
    def network(self) -> nn.Module:
        """The network in training, on its device."""

    @property
    def rival(self) -> "Rival | None":
        """What takes turns with the network, if anything does."""

    def draw(self, step: int, samples: range) -> BatchT:
        """Draw some samples of a step; pure, called ahead of time from a thread."""

    def losses(self, network: nn.Module, batch: BatchT) -> dict[str, Tensor]:
        """Compute `loss` and its terms on a batch: means, or tallies (`metrics.tally`)."""

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Measure on held-out videos; empty if nothing is held out."""

    def score(self, network: nn.Module) -> dict[str, float]:
        """Measure what the network draws; empty if that is not asked for."""

    def model(self, network: nn.Module) -> Model:
        """Make what is published: a whole model around the given weights."""

    def sample(self, network: nn.Module, path: Path) -> None:
        """Write videos that show how good the network is to files that start with `path`."""


class Rival(NamedTuple):
    """A second network that is trained in turn with a stage's own."""

    name: str  # leads the names of its terms and tensors
    network: nn.Module
    losses: Callable[[Any], dict[str, Tensor]]  # batch -> `loss` and its terms
    grad_clip: float


@dataclass(frozen=True)
class Portion:
    """What this process computes of each optimizer step.

    A step is `batch_size * accumulation` clips however many processes share it: their number does
    not change what is learned.

    Attributes:
        ranks: This process among those that share a step.
        batch: Clips of a forward pass.
        passes: Forward passes.
    """

    ranks: Ranks
    batch: int
    passes: int

    @classmethod
    def of(cls, settings: TrainingConfig, ranks: Ranks) -> "Portion":
        """Share out a step in forward passes of at most batch_size clips.

        Raises:
            ConfigError: If the clips of a step do not go round.
        """
        clips = settings.batch_size * settings.accumulation
        if clips % ranks.size:
            raise ConfigError(
                f"a step of training.batch_size={settings.batch_size} times accumulation="
                f"{settings.accumulation} is {clips} clips, which {ranks.size} processes cannot "
                f"share equally: make it a multiple of {ranks.size}"
            )
        mine = clips // ranks.size
        least = -(-mine // settings.batch_size)
        passes = next(number for number in range(least, mine + 1) if mine % number == 0)
        return cls(ranks, mine // passes, passes)

    def samples(self, number: int) -> range:
        """Return which samples of a step forward pass `number` is made of."""
        first = (number * self.ranks.size + self.ranks.rank) * self.batch
        return range(first, first + self.batch)


@dataclass
class Player:
    """Something that is trained: a network with its optimizer. Two of them take turns.

    Attributes:
        name: Empty for the network itself; it leads the names of the other's terms and tensors.
    """

    name: str
    network: nn.Module
    losses: Callable[[Any], dict[str, Tensor]]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    grad_clip: float
    alone: Callable[[], AbstractContextManager[object]] = nullcontext  # gradients stay here

    def term(self, name: str) -> str:
        """Name one of its terms in `metrics.jsonl`."""
        return f"{self.name}_{name}" if self.name else name


def make_players(stage: Stage[Any], config: RunConfig) -> list[Player]:
    """Give the network, and its rival where there is one, what training needs."""
    settings = config.training
    device = next(stage.network.parameters()).device
    precision = resolve_precision(settings.precision, device)

    losses = partial(stage.losses, stage.network)
    sides = [Rival("", stage.network, losses, settings.grad_clip)]
    if stage.rival is not None:
        sides.append(stage.rival)
    players = [
        Player(
            **side._asdict(),
            optimizer=make_optimizer(side.network.parameters(), settings),
            scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        )
        for side in sides
    ]
    if here().size > 1:
        for player in players:
            _share_gradients(player)
    return players


class _Losses(nn.Module):
    """A network seen through its losses, the one call that DistributedDataParallel wants."""

    def __init__(self, network: nn.Module, losses: Callable[[Any], dict[str, Tensor]]) -> None:
        super().__init__()
        self.network, self.losses = network, losses

    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Compute `loss` and its terms."""
        return self.losses(batch)


def _share_gradients(player: Player) -> None:
    """Let every process step by the mean gradient of all; it is summed while it is computed."""
    network = _Losses(player.network, player.losses)
    # All processes start from equal weights and average equal statistics: no buffer is sent.
    named = signature(DistributedDataParallel).parameters  # torch has given it another name
    option = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
    settings: dict[str, Any] = {option: False}
    parallel = DistributedDataParallel(network, **settings)
    player.losses, player.alone = parallel, parallel.no_sync


def accumulate(
    player: Player, batches: Iterator[Any], config: RunConfig, passes: int
) -> dict[str, Tensor]:
    """Run forward and backward over one optimizer step's batches; mean of each loss term.

    Several processes exchange gradients in the last pass only.
    """
    settings = config.training
    device = next(player.network.parameters()).device
    precision = resolve_precision(settings.precision, device)
    totals: dict[str, Tensor] = {}
    for number in range(passes):
        batch = next(batches)
        keep_weights = settings.activation_checkpointing != "block"
        with watching(), nullcontext() if number == passes - 1 else player.alone():
            with autocast(device, precision, keep_weights=keep_weights):
                terms = player.losses(batch)
            player.scaler.scale(terms["loss"] / passes).backward()
        for name, value in terms.items():
            share = value.detach()
            if share.ndim == 0:  # a mean; a tally is summed
                share = share / passes
            totals[name] = totals[name] + share if name in totals else share
    return totals


def update(player: Player) -> Tensor:
    """Clip the gradient and take one optimizer step; return the norm before clipping."""
    player.scaler.unscale_(player.optimizer)
    most = player.grad_clip or float("inf")
    norm = nn.utils.clip_grad_norm_(player.network.parameters(), most)
    player.scaler.step(player.optimizer)
    player.scaler.update()
    player.optimizer.zero_grad(set_to_none=True)
    return norm
