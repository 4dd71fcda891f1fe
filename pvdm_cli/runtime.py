"""Devices, random generators and allocator settings of one process."""

import ctypes
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from pvdm_cli.errors import PvdmError


def resolve_device(name: str) -> torch.device:
    """Turn cpu | cuda | cuda:N | mps | auto into a device; auto prefers an accelerator.

    Of several processes on a machine each takes the GPU of its own number.

    Raises:
        PvdmError: If the device is unknown or not present here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu" and torch.backends.mps.is_available():
            name = "mps"
    kind = name.partition(":")[0]
    if kind not in {"cpu", "cuda", "mps"}:
        raise PvdmError(f"unknown device {name!r}: use cpu, cuda, cuda:N, mps or auto")
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if kind == "cuda" and not torch.cuda.is_available():
        raise PvdmError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise PvdmError("--device mps: torch sees no Metal device here; use --device cpu or auto")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise PvdmError(f"unknown device {name!r}: use cpu, cuda, cuda:N, mps or auto") from None
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise PvdmError(
            f"--device {name}: only {torch.cuda.device_count()} CUDA devices here; of several "
            "processes each needs one of its own"
        )
    if kind == "cuda":
        device = torch.device("cuda", device.index or 0)
        make_current(device)
        torch.backends.cudnn.allow_tf32 = False  # fp32 is fp32; who wants speed asks for bf16
    if kind == "cpu":
        keep_freed_memory()
    return device


def make_current(device: torch.device) -> None:
    """Let this thread work on a device: graphs and kernels of ours go to a thread's current GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch compute in this thread alone, without a team of threads.

    A second team on the same cores makes libgomp give up waiting by spinning: every operation of the
    first one then takes longer, as long as both are there (a PVDM-S step 0.32 s instead of 0.26).
    Threads that begin meanwhile compute alone too.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed activations instead of returning them to the system.

    By default every large tensor is a fresh mmap whose pages fault in one by one: a linear layer
    [8192, 256] -> 1024 ran at 70 GFLOP/s with it and at 279 without, on 2 cores.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return
    m_trim_threshold, m_mmap_threshold = -1, -3
    mallopt(m_mmap_threshold, 1 << 30)
    mallopt(m_trim_threshold, (1 << 31) - 1)


def generator(device: torch.device | str, *key: int) -> torch.Generator:
    """Return a generator that depends on the key alone, e.g. (seed, video) or (seed, step).

    Keyed by numpy's SeedSequence, so neighbouring keys give unrelated streams.
    """
    word = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
    return torch.Generator(device).manual_seed(word >> 1)


def resolve_precision(name: str, device: torch.device) -> str:
    """Turn fp32 | bf16 | fp16 | auto into one of the first three.

    auto is bf16 on GPUs with bf16 matrix units (it needs no loss scaling), else fp32: on CPUs
    without AMX bf16 is slower.
    """
    if name != "auto":
        return name
    native = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if native else "fp32"


def autocast(
    device: torch.device, precision: str, *, keep_weights: bool = True
) -> AbstractContextManager[object]:
    """Lower the precision of matrix products to bf16 or fp16; nothing for fp32.

    Args:
        device: Where the work is done.
        precision: fp32 | bf16 | fp16.
        keep_weights: Keep the rounded copy of each weight until the end. Where activations are
            computed again block by block these copies are most of what is kept.
    """
    if precision == "fp32":
        return nullcontext()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    return torch.autocast(device.type, dtype, cache_enabled=keep_weights)


@lru_cache(maxsize=8)
def matrix_rate(device: torch.device, precision: str) -> float:
    """Measure how many operations a second the device does in a large matrix product.

    The yardstick of how well a network uses it; takes some tenths of a second, once.
    """
    side = 1024 if device.type == "cpu" else 8192
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a = torch.randn(side, side, device=device, dtype=dtype)  # of ones it would go faster
    return 2 * side**3 / least_seconds(lambda: a @ a)


@lru_cache(maxsize=8)
def copy_rate(device: torch.device) -> float:
    """Measure how many bytes a second the device reads and writes in a large copy.

    The blocks are larger than most caches; takes some tenths of a second, once.
    """
    source = torch.ones(1 << (26 if device.type == "cpu" else 28), device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / least_seconds(lambda: target.copy_(source))


def least_seconds(work: Callable[[], torch.Tensor], budget: float = 0.3) -> float:
    """Time work again and again, three times or as long as the budget lasts: the shortest."""
    best, end = float("inf"), 0.0
    with torch.inference_mode():
        for count in itertools.count():
            began = time.perf_counter()
            work().flatten()[0].item()  # asking for a value waits for the device
            now = time.perf_counter()
            if not count:  # the first one warms up
                end = now + budget
                continue
            best = min(best, now - began)
            if count >= 3 and now > end:
                break
    return best


def ran_out(error: BaseException) -> bool:
    """Tell want of memory from other failures; the CPU's allocator raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "can't allocate memory" in said or "not enough memory" in said or "out of memory" in said
    )


def reset_peak_memory(device: torch.device) -> None:
    """Start counting the device's peak memory anew; a CPU process has one peak for its life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Return the largest memory used, in bytes: allocated on CUDA, resident on CPU; else None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    if sys.platform.startswith("linux"):  # ru_maxrss would begin at the parent's peak
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
