"""Kernels of ours for the CPU, each in place of several of torch's; inference only.

They are compiled from cpu/ by the machine's own C++ compiler at first use, in four seconds, and
kept in ~/.cache/pvdm for the next process. Where there is no compiler, or what it makes is not
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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.environment import compiler
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import atomic_file, cache_folder

SOURCES = Path(__file__).with_name("cpu")
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
NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
LARGEST_HEAD = 256  # numbers
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of one kernel, absolute
WHOLE = 32  # channels that go together, of the widest vectors
Ending = Literal["none", "add", "mul", "gelu", "geglu"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)  # in the order of cpu/product.hpp


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
    about = hashlib.sha256()
    for part in sorted(SOURCES.glob("*.[ch]pp")):
        about.update(part.read_bytes())
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
    sources = sorted(SOURCES.glob("*.cpp"))
    objects, made = [folder / f"{source.stem}.o" for source in sources], folder / "native.so"
    calls = [
        [*FLAGS, "-c", source, "-o", compiled]
        for source, compiled in zip(sources, objects, strict=True)
    ]
    with ThreadPoolExecutor() as pool:
        list(pool.map(_run_compiler, calls))
    _run_compiler(["-shared", *objects, "-o", made])
    return made


def _run_compiler(arguments: Sequence[str | Path]) -> None:
    """Run the machine's C++ compiler."""
    command = [compiler() or "c++", *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


@lru_cache(maxsize=4)
def can_fuse(dtype: torch.dtype) -> bool:
    """Try kernels on something small: whether they are there and give torch's results."""
    if dtype not in NAMES or loaded() is None:
        return False
    x = torch.linspace(-9, 9, 2 * 3 * 40 * 3 * 16).cos().to(dtype)
    q, k, v = x.view(2, 40, 3, 3, 16).permute(3, 0, 2, 1, 4)
    rows, norm = x.view(2, 90, 64), nn.GroupNorm(32, 64).requires_grad_(False)
    normed = norm(rows.float().transpose(1, 2)).transpose(1, 2)
    weights = rows[0, :64] / 8
    pairs = [
        (attend(q, k, v), F.scaled_dot_product_attention(q.float(), k.float(), v.float())),
        (group_norm(rows, norm.to(dtype), None, silu=False), normed),
    ]
    laid = [(rows, panels(weights))]
    if dtype != torch.float32:  # of layers, and of Winograd's tiles
        halved = panels(weights, halve=True)
        laid += [(rows, halved)] + [(rows.float(), halved)] * (halved.scales is not None)
    pairs += [(product(*each), rows.float() @ weights.float()) for each in laid]
    return all(
        torch.allclose(found.float(), wanted, rtol=0, atol=ROUNDING[dtype])
        for found, wanted in pairs
    )


@lru_cache(maxsize=4)
def can_multiply(dtype: torch.dtype) -> bool:
    """Whether products of ours are there and no slower than oneDNN's.

    In bf16 the processor's own products are, where it has fast ones: ours are made in fp32.
    """
    library = loaded()
    if library is None or not can_fuse(dtype):
        return False
    return dtype == torch.float32 or not library.has_fast_bfloat16()


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
    _call("attend", q.dtype, sizes, strides, *parts, *(rotary or (None, None)))
    return out


def can_attend(d: int) -> bool:
    """Whether heads of d numbers are of a size that `attend` takes."""
    return d % 8 == 0 and d <= LARGEST_HEAD


def group_norm(x: Tensor, norm: nn.GroupNorm, film: Tensor | None, *, silu: bool) -> Tensor:
    """Normalise x [b, ..., c] by groups of channels, then FiLM, then SiLU.

    Args:
        x: Features, of the dtype of the norm and of `film`.
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
    _call("group_norm", x.dtype, sizes, eps, x, out, weight, bias, film, int(silu))
    return out


class Panels(NamedTuple):
    """A linear map's weights as `product` reads them."""

    weights: Tensor  # [..., out / p, in, p]; of the dtype they had, or fp16
    scales: Tensor | None  # of fp16: powers of two that the weights of each output lack, [..., out]
    bias: Tensor | None  # [out], fp32


def panels(weights: Tensor, bias: Tensor | None = None, *, halve: bool = False) -> Panels:
    """Lay weights [..., in, out] and a bias [out] as `product` reads them.

    Args:
        weights: out is a multiple of `WHOLE`.
        bias: None: without.
        halve: As fp16, if the processor multiplies that faster.
    """
    library = loaded()
    assert library is not None
    width, scales = library.panel_width(), None
    if halve and library.has_fast_float16() and weights.shape[-1] % (2 * width) == 0:
        width *= 2
        largest = weights.abs().amax(-2).float()
        scales = torch.ldexp(torch.ones_like(largest), torch.frexp(largest)[1] - 4)
        weights = (weights / scales[..., None, :]).half()  # below 16, as cpu/product.hpp wants
    laid = weights.unflatten(-1, (-1, width)).movedim(-2, -3).contiguous()
    return Panels(laid, scales, None if bias is None else bias.float().clone())


def joined(parts: list[Panels]) -> Panels:
    """Join maps from the same numbers to more: outputs side by side; biases are not joined."""
    scales = [part.scales for part in parts if part.scales is not None]
    weights = torch.cat([part.weights for part in parts], dim=-3)
    return Panels(weights, torch.cat(scales, dim=-1) if scales else None, None)


def gated(gate: Panels, value: Panels) -> Panels:
    """Lay two maps of the same shape as `product` reads them for GEGLU: their panels take turns."""
    width = gate.weights.shape[-1]
    weights = torch.stack((gate.weights, value.weights), dim=1).flatten(0, 1)
    numbers = [
        None
        if one is None or other is None
        else torch.stack((one.view(-1, width), other.view(-1, width)), dim=1).flatten()
        for one, other in ((gate.scales, value.scales), (gate.bias, value.bias))
    ]
    return Panels(weights, *numbers)


def product(
    x: Tensor,
    panels: Panels,
    ending: Ending = "none",
    other: Tensor | None = None,
    norm: nn.LayerNorm | None = None,
) -> Tensor:
    """Multiply x [..., in] with weights, summing in fp32; add their bias; then what ends it.

    With weights of fp16 x is multiplied as fp16, and 128 products at a time are summed in that.

    Args:
        x: fp32 or bf16. With batched weights [n, rows, in], rows and in without gaps.
        panels: Of [in, out] or of [n, in, out], of the dtype of x or fp16.
        ending: add or mul: with `other`. gelu: apply it. geglu: of weights that are `gated`,
            multiply values with GELU of their gates.
        other: [..., out], of the dtype of x.
        norm: Normalise x first, over `in`; of the dtype of x.

    Returns:
        [..., out], where it is gated half of that, of the dtype of x.
    """
    weights, scales, bias = panels
    n = 1 if weights.dim() == 3 else weights.shape[0]
    x = x.contiguous() if weights.dim() == 3 else x
    depth, width = weights.shape[-2], weights.shape[-3] * weights.shape[-1]
    out = x.new_empty(*x.shape[:-1], width // 2 if ending == "geglu" else width)
    assert x.shape[-1] == depth  # else memory would be misread
    assert weights.dtype == (x.dtype if scales is None else torch.float16)
    assert other is None or (other.dtype, other.shape) == (out.dtype, out.shape)
    if not out.numel():
        return out
    other = None if other is None else other.contiguous()
    gain, shift, eps = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
    for each in () if norm is None else (gain, shift):  # without them it would not be made
        assert each is not None
        assert (each.dtype, each.shape) == (x.dtype, (depth,))
    rows = out.numel() // out.shape[-1] // n
    step = x.stride(0) if n > 1 else 0
    sizes = [n, rows, depth, width, step, rows * out.shape[-1]]
    name = "product" if scales is None else "product_by_float16"
    before = ENDINGS.index(ending), ctypes.c_float(eps)
    _call(name, x.dtype, sizes, *before, x, weights, scales, bias, other, gain, shift, out)
    return out


def winograd(
    images: list[Tensor], m: int, inputs: Tensor, outputs: Tensor, weights: Panels, bias: Tensor
) -> list[Tensor]:
    """Convolve each [b, H, W, c] in tiles of m x m outputs (`winograd.WinogradConv2d`).

    Args:
        images: fp32 or bf16; c is a multiple of `WHOLE`.
        m: 2 or 4; n is m + 2.
        inputs: What evaluates n inputs in a row, [n, n].
        outputs: What interpolates m outputs in a row, [m, n].
        weights: Of what tiles multiply, [n * n, c, out], fp32 or fp16.
        bias: [out], fp32.

    Returns:
        Each [b, H, W, out], of the dtype of the images; what lies between in memory is fp32.
    """
    counts = [len(x) * -(-x.shape[1] // m) * -(-x.shape[2] // m) for x in images]
    values = inputs.new_empty((m + 2) ** 2, sum(counts), weights.weights.shape[-2])
    places = [sum(counts[:i]) for i in range(len(counts))]
    for x, place in zip(images, places, strict=True):
        sizes = [*x.shape, values.stride(0), m]
        _call("tiles_of_images", x.dtype, sizes, x.contiguous(), inputs, values[0, place:])
    products = product(values, weights)
    found = [x.new_empty(*x.shape[:3], products.shape[-1]) for x in images]
    for out, place in zip(found, places, strict=True):
        sizes = [*out.shape, products.stride(0), m]
        _call("images_of_tiles", out.dtype, sizes, products[0, place:], outputs, bias, out)
    return found


def _call(name: str, dtype: torch.dtype, sizes: list[int], *arguments: object) -> None:
    """Call a kernel with as many threads as torch uses; tensors go as the place of their data."""
    kernel = getattr(loaded(), f"{name}_{NAMES[dtype]}")
    kernel(torch.get_num_threads(), _numbers(sizes), *map(_argument, arguments))


def _numbers(values: list[int]) -> ctypes.Array[ctypes.c_int64]:
    """Lay integers side by side."""
    return (ctypes.c_int64 * len(values))(*values)


def _argument(value: object) -> object:
    """Say a value as C takes it."""
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return _numbers(value) if isinstance(value, list) else value
