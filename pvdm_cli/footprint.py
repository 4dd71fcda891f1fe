"""Memory of a training step on a GPU, counted without running it.

The network's forward and backward pass run on the meta device, which has shapes but no memory, and
every tensor is counted from its birth to its end. Beside that a step holds weights, moments and
averages. What only the card knows comes on top: `SURPLUS` stands for what its kernels hold beside
these tensors, `RESERVE` for its context and the gaps between them.

Axes: b batch, c latent channels, n flat latent length, s frames, H x W pixels.
"""

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pvdm_cli.config import RunConfig
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.models.layers import recompute

FLOAT = 4  # bytes
RESERVE = 3 << 29  # 1.5 GiB
# Of what passes. A PVDM-S step in bf16 on an H100 took 0.190 GiB for each clip where 0.164 were
# counted; in fp32 on a CPU 0.229 and 0.225.
SURPLUS = 1.16
MANY = 16  # clips of the first count: of fewer the gradients would be most


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training step.

    Attributes:
        state: Weights, two moments, the average, and the frozen autoencoder of the second stage.
        kept: What the forward pass keeps for the backward pass.
        passing: The most that both passes hold at once, gradients of the weights included, times
            `SURPLUS`.
    """

    state: int
    kept: int
    passing: int

    @property
    def peak(self) -> int:
        """The most that tensors take."""
        return self.state + self.passing


@lru_cache(maxsize=16)
def count_step(config: RunConfig, batch: int, precision: str) -> Footprint:
    """Count one pass of `batch` clips, forward and backward.

    The networks of losses (LPIPS, discriminators) are not counted.

    Args:
        config: What is trained; its activation checkpointing counts.
        batch: Clips of the pass.
        precision: fp32 | bf16 | fp16 arithmetic.
    """
    settings, latent, clip = config.training, config.latent, config.clip
    model = config.model()
    with torch.device("meta"):
        autoencoder = Autoencoder(model)
        network = autoencoder if config.stage == "autoencoder" else Denoiser(model)
    recompute(network, settings.activation_checkpointing)
    state = (3 + bool(settings.ema_decay)) * _size(network)
    state += _size(autoencoder) * (config.stage == "diffusion")
    kernels = _Kernels(precision, keep_weights=settings.activation_checkpointing != "block")
    kernels.enter(network)
    with _Live(network) as live:
        if isinstance(network, Autoencoder):
            shape = (batch, 3, clip.frames, clip.height, clip.width)
            found = network(torch.empty(shape, device="meta"))
        else:
            z = torch.empty(batch, latent.c, latent.flat, device="meta")
            found = network(z, torch.zeros(batch, dtype=torch.int64, device="meta"), z)
        loss = found.float().square().mean()
        del found
        kernels.forget()
        kept = live.now
        loss.backward()
    return Footprint(state, kept, int(SURPLUS * live.most))


def largest_batch(config: RunConfig, precision: str, memory: int) -> int:
    """Predict the largest batch whose training step fits in `memory` bytes of a card.

    A first guess in proportion is counted, and corrected by the line through it and the batch it
    came from: what a step holds grows by as much for each clip, once clips are most of it.
    """
    room = memory - RESERVE
    batch = max(MANY, config.training.batch_size or 1)
    known = count_step(config, batch, precision)
    guess = max(1, batch * (room - known.state) // known.passing)
    if guess == batch:
        return batch
    found = count_step(config, guess, precision)
    clip = (found.peak - known.peak) / (guess - batch)
    return max(0, int(guess + (room - found.peak) / clip))


def _size(network: nn.Module) -> int:
    """Bytes of a network's weights."""
    return sum(FLOAT * parameter.numel() for parameter in network.parameters())


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and not yet gone.

    Args:
        network: Whose weights and buffers are there before; views of them are nothing new.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        held = [*network.parameters(), *network.buffers()]
        self.sizes = dict.fromkeys((each.untyped_storage()._cdata for each in held), 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                self._enter(tensor.untyped_storage())
        return found

    def _enter(self, storage: torch.UntypedStorage) -> None:
        """Count a storage, which several tensors may share, once."""
        key = storage._cdata
        if key in self.sizes:
            return
        self.sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


class _Kernels(TorchFunctionMode):
    """Gives the meta device what it lacks: autocast and fused attention, as GPUs have them."""

    LOW = frozenset(
        {F.linear, F.conv2d, F.conv3d, torch.matmul, torch.bmm, torch.einsum, Tensor.matmul}
    )
    HIGH = frozenset({F.layer_norm, F.group_norm, F.softmax, torch.rsqrt, torch.pow})

    def __init__(self, precision: str, *, keep_weights: bool) -> None:
        super().__init__()
        dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
        self.low, self.keep_weights = dtypes[precision], keep_weights
        self.weights: dict[int, Tensor] = {}

    def enter(self, network: nn.Module) -> None:
        """Act in the network's forward pass, and wherever it is computed again."""
        for module in network.modules():
            if module is network or getattr(module, "recomputed", False):
                module.forward = self._around(module.forward)

    def forget(self) -> None:
        """Forget rounded weights, as autocast does at its end."""
        self.weights.clear()

    def _around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*given: Any, **named: Any) -> Any:
            with self:
                return forward(*given, **named)

        return run

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        attends = func is F.scaled_dot_product_attention
        if attends or func in self.LOW:
            args = [self._rounded(each) for each in args]
            kwargs = {name: self._rounded(each) for name, each in kwargs.items()}
        elif func in self.HIGH:
            args = [each.float() if _is_low(each) else each for each in args]
        if attends:  # of the result only the values are of interest
            return torch.ops.aten._scaled_dot_product_flash_attention.default(*args)[0]
        return func(*args, **kwargs)

    def _rounded(self, value: Any) -> Any:
        """Round a float32 tensor; weights once."""
        if not isinstance(value, Tensor) or value.dtype != torch.float32:
            return value
        if not (isinstance(value, nn.Parameter) and self.keep_weights):
            return value.to(self.low)
        if id(value) not in self.weights:
            self.weights[id(value)] = value.to(self.low)
        return self.weights[id(value)]


def _is_low(value: Any) -> bool:
    """Tell tensors of half precision."""
    return isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
