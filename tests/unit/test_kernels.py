"""Kernels of ours against torch's operations: on a GPU, or by Triton's interpreter.

pip install triton; TRITON_INTERPRET=1 pytest -m slow tests/unit/test_kernels.py
"""

import os

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.models import kernels
from pvdm_cli.models.blocks import GroupNorm, norm_and_convolve
from pvdm_cli.models.layers import rotate_pairs
from pvdm_cli.models.timesformer import frame_rotary, patch_rotary
from pvdm_cli.runtime import resolve_device

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of one operation

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        kernels.triton is None or (DEVICE == "cpu" and "TRITON_INTERPRET" not in os.environ),
        reason="needs a GPU, or triton and TRITON_INTERPRET=1",
    ),
    # Triton's interpreter reads one-element arrays as numbers.
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),
]


def group_norm_layer(channels: int, dtype: torch.dtype) -> GroupNorm:
    """Of weights that are not 1 and 0."""
    norm = GroupNorm(channels).to(DEVICE, dtype).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    return norm


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(2, 70, 96), (4, 30, 480), (1, 1024, 256)])
@pytest.mark.parametrize(("rows", "silu"), [(0, False), (0, True), (1, True)])
def test_the_kernel_is_group_normalisation(
    shape: tuple[int, ...], dtype: torch.dtype, rows: int, silu: bool
) -> None:
    x = (3 * torch.randn(shape, device=DEVICE) + 1).to(dtype)
    norm = group_norm_layer(shape[-1], dtype)
    film = None
    if rows:  # a view with gaps, as the denoiser's are
        film = torch.randn(rows, 3 * shape[-1], device=DEVICE).to(dtype)[:, shape[-1] :]
    found = kernels.group_norm(x, norm, film, silu=silu)
    assert found is not None
    assert found.dtype == dtype
    with torch.no_grad():
        wanted = norm.double()(x.double(), None if film is None else film.double(), silu=silu)
    assert distance(found, wanted) < ROUNDING[dtype]


@pytest.mark.parametrize(("b", "height", "width"), [(1, 8, 8), (4, 5, 7), (1, 16, 32)])
def test_taps_are_what_a_convolution_reads(b: int, height: int, width: int) -> None:
    resolve_device(DEVICE)  # without TF32
    x = torch.randn(b, height, width, 96, device=DEVICE)
    norm = group_norm_layer(96, torch.float32)
    conv = nn.Conv2d(96, 40, 3, padding=1, device=DEVICE).requires_grad_(False)
    norm.fused = True
    (found,) = norm_and_convolve(norm, conv, [x])
    norm.fused = False
    assert distance(found, *norm_and_convolve(norm, conv, [x])) < 1e-5


def test_groups_too_large_for_one_program_are_left_to_torch() -> None:
    x = torch.randn(1, 8192, 1024, device=DEVICE)
    assert kernels.group_norm(x, group_norm_layer(1024, torch.float32)) is None


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("over_frames", [False, True])
@pytest.mark.parametrize(("m", "d"), [(8, 64), (3, 20)])
def test_the_kernel_turns_pairs(m: int, d: int, over_frames: bool, dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 5, 12, 3, m, d, device=DEVICE).to(dtype)
    rotary = frame_rotary(5, d, qkv.device) if over_frames else patch_rotary(3, 4, d, qkv.device)
    tables = [table.double()[:, None, None, None] for table in rotary]  # [n, 1, 1, 1, d]
    tables = tables if over_frames else [table.movedim(1, 0) for table in tables]
    wanted = qkv.double()
    wanted[..., :2, :, :] = rotate_pairs(wanted[..., :2, :, :], *tables)
    kernels.rotate_(qkv, *rotary, over_frames=over_frames)
    assert distance(qkv, wanted) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("width", [24, 1536, 5000])
def test_the_kernel_is_a_gated_gelu(width: int, dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 7, 2 * width, device=DEVICE).to(dtype)
    value, gate = hidden.double().chunk(2, dim=-1)
    wanted = value * F.gelu(gate)
    assert distance(kernels.geglu(hidden), wanted) < ROUNDING[dtype]
