"""The floor: the least time the hardware needs, by what must be computed and what must be moved.

Operations are those of matrix products, convolutions and attention, counted by torch, at the rate
of a large matrix product measured beside them, torch's or ours. Bytes are the weights, read once
per network call, and what the call takes and gives, at the measured rate of a large copy. What
passes between layers is told too, but is no part of the floor: caches may hold it. Neither is what
any implementation could leave out, such as weights stored in a wider type than the arithmetic has.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch

from pvdm_cli.benchmark import child
from pvdm_cli.config import ModelConfig, RunConfig
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.model import DTYPES
from pvdm_cli.models import native
from pvdm_cli.models.cost import BACKWARD, Cost, Part, forward_cost, training_flops
from pvdm_cli.runtime import copy_rate, least_seconds, matrix_rate, resolve_device
from pvdm_cli.sampling import Sampling

SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}  # bytes of a number
# A step reads the weights forward and backward and writes gradients; AdamW reads weights, gradients
# and two moments and writes all but the gradients.
TRAINING_PASSES = 10


class Call(NamedTuple):
    """A network call, and how often it is made."""

    cost: Cost
    times: int


class Work(NamedTuple):
    """What must be done, whatever does it."""

    flops: int
    bytes: int
    activation_bytes: int  # between layers, forward; no part of the floor

    @classmethod
    def of(cls, calls: Iterable[Call], batch: int, dtype: str) -> "Work":
        """Add up network calls of `batch` clips each."""
        flops = size = between = 0
        for cost, times in calls:
            flops += times * batch * cost.flops
            size += times * (cost.weights + batch * cost.ends)
            between += times * batch * cost.between
        return cls(flops, size * SIZES[dtype], between * SIZES[dtype])


@dataclass(frozen=True)
class Floor:
    """The least time for some work on a device.

    Attributes:
        seconds: The longer of computing and moving, which may go on side by side.
        flops: Operations to compute; a multiply-add is two.
        bytes: To read and write.
        activation_bytes: Read and written between layers by matrix products, convolutions and
            attention; not counted in `seconds`.
        flops_per_second: Measured on a large matrix product.
        bytes_per_second: Measured on a large copy, reading and writing.
        bound: What takes longer: compute or memory.
    """

    seconds: float
    flops: int
    bytes: int
    activation_bytes: int
    flops_per_second: float
    bytes_per_second: float
    bound: str

    @classmethod
    def of(cls, work: Work, rates: "Rates") -> "Floor":
        """Divide what must be done by what the device can do in a second."""
        computed = work.flops / rates.flops_per_second
        moved = work.bytes / rates.bytes_per_second
        bound = "compute" if computed > moved else "memory"
        return cls(max(computed, moved), *work, *rates, bound)


class Rates(NamedTuple):
    """What a device can do in a second."""

    flops_per_second: float
    bytes_per_second: float


@lru_cache(maxsize=16)
def rates(device: str, dtype: str, threads: int) -> Rates:
    """Measure a device, once, in a process that ends and leaves it empty."""
    job = {"device": device, "dtype": dtype, "threads": threads}
    return Rates(**child.measure("rates", job).figures)


def measure_rates(device: str, dtype: str) -> dict[str, float]:
    """Measure the device in this process."""
    target = resolve_device(device)
    products = matrix_rate(target, dtype)
    if target.type == "cpu":
        products = max(products, _kernel_rate(dtype))
    return Rates(products, copy_rate(target))._asdict()


def _kernel_rate(precision: str) -> float:
    """Measure a large product as `matrix_rate` does, of the CPU kernel of ours; 0 without it.

    In bf16 torch's may be several times slower than what the processor can do.
    """
    dtype = DTYPES[precision]
    if not native.can_multiply(dtype):
        return 0.0
    side = 1024
    x = torch.randn(side, side, dtype=dtype)
    panels = native.panels(x, halve=dtype != torch.float32)
    return 2 * side**3 / least_seconds(lambda: native.product(x, panels))


def sampling_work(
    config: ModelConfig, sampling: Sampling, num_clips: int, batch: int, dtype: str
) -> Work:
    """Count one roll-out of `batch` videos, decoding included."""
    assert config.diffusion is not None
    steps = sampling.num_calls(Schedule.from_config(config.diffusion), num_clips)
    calls = [
        Call(forward_cost(config, "step"), steps),
        Call(forward_cost(config, "decode"), num_clips),
    ]
    return Work.of(calls, batch, dtype)


def coding_work(config: ModelConfig, part: Part, batch: int, dtype: str) -> Work:
    """Count encoding or decoding of `batch` clips."""
    return Work.of([Call(forward_cost(config, part), 1)], batch, dtype)


def training_work(config: RunConfig, batch: int, dtype: str) -> Work:
    """Count one step of a stage's own network; not the networks of its losses."""
    part: tuple[Part, ...] = ("step",)
    if config.stage == "autoencoder":
        part = ("encode", "decode")
    costs = [forward_cost(config.model(), each) for each in part]
    weights, ends = sum(c.weights for c in costs), sum(c.ends for c in costs)
    between = batch * sum(cost.between for cost in costs)
    size = TRAINING_PASSES * weights * SIZES["fp32"] + batch * ends * SIZES[dtype]
    flops = batch * training_flops(config)
    return Work(flops, size, (1 + BACKWARD) * between * SIZES[dtype])
