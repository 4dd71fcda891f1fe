"""What is trained: a stage, its network, and where there is one the rival it takes turns with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from pvdm_cli.config import RunConfig
from pvdm_cli.model import Model
from pvdm_cli.runtime import autocast, resolve_precision
from pvdm_cli.training.optim import make_optimizer

BatchT = TypeVar("BatchT")


class Stage(Protocol[BatchT]):
    """What differs between the autoencoder and the denoiser.

    Attributes:
        weights_file: The network's file in a model folder.
        rival_share: Factor of the weights of the terms that come from the rival.
        judged_by: What `validate` says of how good it is, and 1 if more is better, else -1.
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

    def draw(self, step: int, micro: int) -> BatchT:
        """Draw the batch of an accumulation step; pure, called ahead of time from a thread."""

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
    return [
        Player(
            **side._asdict(),
            optimizer=make_optimizer(side.network.parameters(), settings),
            scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
        )
        for side in sides
    ]


def accumulate(player: Player, batches: Iterator[Any], config: RunConfig) -> dict[str, Tensor]:
    """Run forward and backward over one optimizer step's batches; mean of each loss term."""
    settings = config.training
    device = next(player.network.parameters()).device
    precision = resolve_precision(settings.precision, device)
    totals: dict[str, Tensor] = {}
    for _ in range(settings.accumulation):
        batch = next(batches)
        keep_weights = settings.activation_checkpointing != "block"
        with autocast(device, precision, keep_weights=keep_weights):
            terms = player.losses(batch)
        player.scaler.scale(terms["loss"] / settings.accumulation).backward()
        for name, value in terms.items():
            share = value.detach()
            if share.ndim == 0:  # a mean; a tally is summed
                share = share / settings.accumulation
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
