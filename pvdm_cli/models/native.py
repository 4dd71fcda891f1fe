"""Kernels of ours for the CPU, each in place of several of torch's; inference only.

They are compiled from native.cpp by the machine's own C++ compiler at first use, in three seconds,
and kept in ~/.cache/pvdm for the next process. Where there is no compiler, or what it makes is not
right, torch's operations stay: the plain modules, which are what the kernels are tested against.
`PVDM_NATIVE=0` asks for those.

Axes: b batch, n tokens, m heads, d head size, c channels, H and W of an image.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import suppress
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.environment import compiler
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import atomic_file, cache_folder

SOURCE = Path(__file__).with_suffix(".cpp")
# Vectors as wide as the processor has; a product and a sum may be one operation.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fPIC",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-Wno-psabi",
]
ATTEND = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}
LARGEST_HEAD = 256  # numbers
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of one attention, absolute
WHOLE = 16  # channels that go together, of the widest vectors


@lru_cache(maxsize=1)
def loaded() -> ctypes.CDLL | None:
    """Load the kernels, compiling them where no earlier process did; None where that cannot be."""
    if os.environ.get("PVDM_NATIVE") == "0":
        return None
    try:
        file = f"{_key()}.so"
        with suppress(PvdmError, OSError):  # no home; not there, damaged, not to be executed
            return ctypes.CDLL(str(cache_folder() / "native" / file))
        with tempfile.TemporaryDirectory() as folder:
            made = _compile(Path(folder))
            found = ctypes.CDLL(str(made))
            with suppress(PvdmError), atomic_file(cache_folder() / "native" / file) as partial:
                shutil.copy(made, partial)  # unless there is no room, or it is not ours
            return found
    except (OSError, subprocess.SubprocessError):
        return None


def _key() -> str:
    """Name what the kernels are made of and the processor that they are made for."""
    about = hashlib.sha256(SOURCE.read_bytes())
    about.update(" ".join((*FLAGS, platform.machine())).encode())
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        lines = listed.read_bytes().splitlines()
        about.update(
            next((line for line in lines if line[:5].lower() in (b"flags", b"featu")), b"")
        )
    return about.hexdigest()[:16]


def _compile(folder: Path) -> Path:
    """Make the library in a folder.

    Its calls of OpenMP are left open, so that they find torch's when it is loaded: with one of its
    own there would be two sets of threads.

    Raises:
        OSError: If there is no compiler.
        subprocess.SubprocessError: If it fails or takes minutes.
    """
    compiled, made = folder / "native.o", folder / "native.so"
    for arguments in (
        [*FLAGS, "-c", str(SOURCE), "-o", str(compiled)],
        ["-shared", str(compiled), "-o", str(made)],
    ):
        subprocess.run(
            [compiler() or "c++", *arguments], check=True, capture_output=True, timeout=300
        )
    return made


@lru_cache(maxsize=4)
def can_fuse(dtype: torch.dtype) -> bool:
    """Try kernels on something small: whether they are there and give torch's results."""
    if dtype not in ATTEND or loaded() is None:
        return False
    x = torch.linspace(-9, 9, 2 * 3 * 40 * 3 * 16).cos().to(dtype)
    q, k, v = x.view(2, 40, 3, 3, 16).permute(3, 0, 2, 1, 4)
    mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float())
    rows, norm = x.float().view(2, 90, 64), nn.GroupNorm(32, 64).requires_grad_(False)
    normed = norm(rows.transpose(1, 2)).transpose(1, 2)
    return torch.allclose(
        attend(q, k, v).float(), mixed, rtol=0, atol=ROUNDING[dtype]
    ) and torch.allclose(group_norm(rows, norm, None, silu=False), normed, atol=1e-5)


def fuse(network: nn.Module) -> bool:
    """Let the modules of a network on the CPU that know a kernel of ours use it.

    Returns:
        Whether it was done.
    """
    can = can_fuse(next(network.parameters()).dtype)
    for module in network.modules():
        if can and hasattr(module, "native"):
            module.native = True  # type: ignore[assignment]
    return can


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor | None = None,
    rotary: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attend softmax(q k^T / sqrt(d)) v over [..., m, n, d], as they lie.

    Args:
        q: One or two axes of a batch, heads, tokens; numbers of a head lie side by side.
        k: Likewise, of as many tokens as v.
        v: Likewise.
        out: Where to write. None: new memory in the order [..., n, m, d], of which the result is
            a view: heads are joined without a copy.
        rotary: Cosine and sine [n, d], contiguous, fp32, by which to turn q and k first
            (`layers.rotate_pairs`).

    Returns:
        [..., m, n, d], of the dtype of q.
    """
    if out is None:
        *batch, m, n, d = q.shape
        out = q.new_empty(*batch, n, m, d).transpose(-2, -3)
    if not out.numel():
        return out
    parts = [part if part.stride(-1) == 1 else part.contiguous() for part in (q, k, v)]
    parts = [part if part.dim() == 5 else part[None] for part in (*parts, out)]
    sizes = [*parts[0].shape[:4], parts[1].shape[3], parts[0].shape[4]]
    strides = [stride for part in parts for stride in part.stride()[:4]]
    _call(ATTEND[q.dtype], sizes, strides, *parts, *(rotary or (None, None)))
    return out


def can_attend(d: int) -> bool:
    """Whether heads of d numbers are of a size that `attend` takes."""
    return d % 8 == 0 and d <= LARGEST_HEAD


def group_norm(x: Tensor, norm: nn.GroupNorm, film: Tensor | None, *, silu: bool) -> Tensor:
    """Normalise x [b, ..., c] by groups of channels, then FiLM, then SiLU; fp32.

    Args:
        x: Features.
        norm: Number of groups, weight and bias [c], eps.
        film: Scale and shift [b / k, 2c]; each row serves k neighbours of x. None: without.
        silu: Apply v * sigmoid(v) in the end.
    """
    x, weight, bias = x.contiguous(), norm.weight.contiguous(), norm.bias.contiguous()
    b, c = x.shape[0], x.shape[-1]
    out = torch.empty_like(x)
    if not out.numel():
        return out
    if film is not None and film.stride(1) != 1:
        film = film.contiguous()
    step, repeat = (0, 1) if film is None else (film.stride(0), b // len(film))
    sizes = [b, prod(x.shape[1:-1]), c, norm.num_groups, step, repeat]
    eps = ctypes.c_float(norm.eps)
    _call("group_norm_float32", sizes, eps, x, out, weight, bias, film, int(silu))
    return out


def winograd(
    images: list[Tensor], m: int, inputs: Tensor, outputs: Tensor, weights: Tensor, bias: Tensor
) -> list[Tensor]:
    """Convolve each [b, H, W, c] in tiles of m x m outputs (`winograd.WinogradConv2d`); fp32.

    Args:
        images: c is a multiple of `WHOLE`.
        m: 2 or 4; n is m + 2.
        inputs: What evaluates n inputs in a row, [n, n].
        outputs: What interpolates m outputs in a row, [m, n].
        weights: As tiles multiply them, [n * n, c, out]; out is a multiple of `WHOLE`.
        bias: [out].
    """
    counts = [len(x) * -(-x.shape[1] // m) * -(-x.shape[2] // m) for x in images]
    points, c, width = weights.shape
    values = weights.new_empty(points, sum(counts), c)
    places = [sum(counts[:i]) for i in range(len(counts))]
    for x, place in zip(images, places, strict=True):
        sizes = [*x.shape, values.stride(0), m]
        _call("tiles_of_images", sizes, x.contiguous(), inputs, values[0, place:])
    products = torch.bmm(values, weights)
    found = [x.new_empty(*x.shape[:3], width) for x in images]
    for out, place in zip(found, places, strict=True):
        sizes = [*out.shape, products.stride(0), m]
        _call("images_of_tiles", sizes, products[0, place:], outputs, bias, out)
    return found


def _call(name: str, sizes: list[int], *arguments: object) -> None:
    """Call a kernel with as many threads as torch uses; tensors go as the place of their data."""
    found = loaded()
    assert found is not None
    getattr(found, name)(torch.get_num_threads(), _numbers(sizes), *map(_argument, arguments))


def _numbers(values: list[int]) -> ctypes.Array[ctypes.c_int64]:
    """Lay integers side by side."""
    return (ctypes.c_int64 * len(values))(*values)


def _argument(value: object) -> object:
    """Say a value as C takes it."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return _numbers(value) if isinstance(value, list) else value
