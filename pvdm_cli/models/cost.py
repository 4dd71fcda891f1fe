"""What a network costs: operations and numbers moved, counted without running it.

A multiply-add counts as two operations, as torch's counter and the tables of papers have it.

Axes: c latent channels, n flat latent length.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pvdm_cli.config import ModelConfig, RunConfig
from pvdm_cli.latents import unflatten
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser

BACKWARD = 2  # forward passes that a backward pass costs

Part = Literal["encode", "decode", "step"]


class Cost(NamedTuple):
    """Of one forward pass of one clip."""

    flops: int
    weights: int  # numbers that are read
    ends: int  # numbers that come in and go out
    between: int  # numbers that matrix products, convolutions and attention read and write


@lru_cache(maxsize=32)
def forward_cost(config: ModelConfig, part: Part) -> Cost:
    """Count one forward pass of one clip; a step's prefix costs nothing but reading it."""
    latent, clip = config.latent, config.clip
    # The meta device has no memory and no kernels of its own for attention but the plain one.
    with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        network = Denoiser(config) if part == "step" else Autoencoder(config)
        z = torch.empty(1, latent.c, latent.flat)
        x = torch.empty(1, 3, clip.frames, clip.height, clip.width)
        with FlopCounterMode(display=False) as counter, _Traffic() as traffic:
            if isinstance(network, Denoiser):
                network(z, torch.zeros(1, dtype=torch.int64))
            elif part == "encode":
                network.encode(x)
            else:
                network.decode(unflatten(z, latent))
    ends = 2 * z.numel() if part == "step" else x.numel() + z.numel()
    weights = sum(weight.numel() for weight in traffic.weights.values())
    return Cost(counter.get_total_flops(), weights, ends, traffic.numbers)


@lru_cache(maxsize=8)
def training_flops(config: RunConfig) -> int:
    """Operations that one clip costs the network in training: forward and backward.

    What is computed again for activation checkpointing is not counted, nor losses that have
    networks of their own, nor an autoencoder that encodes for the second stage.
    """
    parts: tuple[Part, ...] = ("encode", "decode") if config.stage == "autoencoder" else ("step",)
    return (1 + BACKWARD) * sum(forward_cost(config.model(), part).flops for part in parts)


class _Traffic(TorchFunctionMode):
    """Notes the weights that are used, and what the heavy operations read and write."""

    HEAVY = frozenset(
        {
            F.linear,
            F.conv1d,
            F.conv2d,
            F.conv3d,
            F.scaled_dot_product_attention,  # one operation: scores need not be stored
            torch.matmul,
            Tensor.matmul,
            Tensor.__matmul__,
            torch.bmm,
            torch.einsum,
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.weights: dict[int, nn.Parameter] = {}
        self.numbers = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        weights = [each for each in given if isinstance(each, nn.Parameter)]
        self.weights |= {id(weight): weight for weight in weights}
        if func in self.HEAVY:
            rest = [each for each in given if not isinstance(each, nn.Parameter)]
            self.numbers += sum(each.numel() for each in [*rest, found])
        return found
