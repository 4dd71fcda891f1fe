"""Kernels of ours for the CPU give torch's results, and where they cannot be had torch stays."""

import ctypes
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model
from torch import Tensor, nn

from pvdm_cli.acceleration import accelerate
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import cache_folder
from pvdm_cli.models import native
from pvdm_cli.models.blocks import GroupNorm
from pvdm_cli.models.layers import FeedForward, HeadAttention, rotate_pairs
from pvdm_cli.models.packed import (
    PackedConv2d,
    PackedFeedForward,
    PackedLinear,
    PanelFeedForward,
    PanelLinear,
    SizedConv2d,
    pack_conv,
    pack_feed_forward,
    pack_linear,
)
from pvdm_cli.models.timesformer import AxisAttention, frame_rotary, patch_rotary
from pvdm_cli.models.winograd import POINTS, WinogradConv2d

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 4e-3}  # relative, of one operation

# Not by asking whether they work: then they would never be found not to.
pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None or sys.platform != "linux", reason="needs g++ on Linux"
)


@pytest.fixture
def afresh() -> Iterator[None]:
    """Look for the kernels anew, now and afterwards; what is compiled here, in half the time."""
    flags = native.FLAGS
    native.FLAGS = ["-O1" if flag == "-O3" else flag for flag in flags]
    forget()
    yield
    native.FLAGS = flags
    forget()


def forget() -> None:
    native.loaded.cache_clear()
    native.can_fuse.cache_clear()
    native.can_multiply.cache_clear()


def fastest(call: Callable[[], object]) -> float:
    """Seconds of the fastest of ten calls."""
    taken = []
    for _ in range(10):
        start = perf_counter()
        call()
        taken.append(perf_counter() - start)
    return min(taken)


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def heads(b: int, n: int, m: int, d: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Queries, keys and values [b, m, n, d] as a linear map leaves them."""
    qkv = 1.5 * torch.randn(b, n, m, 3, d)
    return qkv.to(dtype).permute(3, 0, 2, 1, 4).unbind(0)


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.double(), k.double(), v.double())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("b", "n", "m", "d"),
    [(1, 2048, 2, 16), (2, 200, 3, 32), (3, 65, 2, 64), (2, 33, 4, 48), (1, 61, 1, 256)]
    + [(2, n, 1, 8) for n in (1, 3, 16, 17, 64)],
)
def test_the_kernel_is_attention(dtype: torch.dtype, b: int, n: int, m: int, d: int) -> None:
    q, k, v = heads(b, n, m, d, dtype)
    found = native.attend(q, k, v)
    assert found.dtype == dtype
    assert distance(found, plain(q, k, v)) < 1.5 * ROUNDING[dtype]  # scores may be summed in fp16
    assert found.transpose(1, 2).is_contiguous()


def test_one_query_reads_many_keys_and_rows_with_gaps_are_read_as_they_are() -> None:
    q, k, v = heads(2, 33, 4, 48, torch.float32)
    assert distance(native.attend(q[:, :, :1], k, v), plain(q, k, v)[:, :, :1]) < 2e-6
    q = torch.randn(2, 4, 33, 48, 2)[..., 1]
    assert distance(native.attend(q, k, v), plain(q, k, v)) < 2e-6


def test_nothing_gives_nothing() -> None:
    assert native.attend(*heads(0, 20, 2, 16, torch.float32)).shape == (0, 2, 20, 16)
    norm = GroupNorm(64).requires_grad_(False)
    film = torch.zeros(0, 128)
    weights = native.panels(torch.zeros(9, 64))
    assert native.product(torch.zeros(0, 5, 9), weights).shape == (0, 5, 64)
    assert native.group_norm(torch.zeros(0, 9, 64), norm, film, silu=True).shape == (0, 9, 64)
    assert native.group_norm(torch.zeros(0, 9, 64), norm, None, silu=True).shape == (0, 9, 64)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_any_number_of_threads_gives_the_same_bits(threads: int) -> None:
    q, k, v = heads(1, 300, 3, 16, torch.float32)
    x, norm = torch.randn(3, 50, 96), GroupNorm(96).requires_grad_(False)
    weights = torch.randn(96, 128)
    panels, halves = native.panels(weights), native.panels(weights, halve=True)
    before, wanted = torch.get_num_threads(), []
    for count in (2, threads):
        torch.set_num_threads(count)
        normed = native.group_norm(x, norm, None, silu=True)
        products = native.product(x, panels), native.product(x, halves, "geglu")
        attended = native.attend(q, k, v), native.attend(*(each.bfloat16() for each in (q, k, v)))
        wanted.append((*attended, normed, *products))
    torch.set_num_threads(before)
    for one, other in zip(*wanted, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_scores_of_any_size_neither_overflow_nor_vanish(dtype: torch.dtype) -> None:
    q, k, v = heads(1, 130, 2, 16, dtype)
    step = {torch.float32: 1e-5, torch.bfloat16: 5e-3}[dtype]
    for scale in (1e-6, 1.0, 30.0, 1e4):  # in bf16 the last of them are left to fp32
        found = native.attend(scale * q, k, v)
        assert distance(found, plain(scale * q, k, v)) < min(0.1, step * max(1.0, scale))
    assert native.attend(1e30 * q, k, v).isfinite().all()


def test_values_of_any_size_are_mixed_as_well() -> None:
    q, k, v = heads(1, 130, 2, 16, torch.bfloat16)
    for scale in (1e-30, 1e-7, 1e7, 1e30):
        assert distance(native.attend(q, k, scale * v), plain(q, k, scale * v)) < 4e-3


def test_keys_of_no_weight_take_no_longer() -> None:
    q, k, v = heads(1, 300, 8, 32, torch.bfloat16)
    times = {
        scale: fastest(lambda scale=scale: native.attend(scale * q, k, v)) for scale in (1, 9e4)
    }
    assert times[9e4] < 8 * times[1]  # 50 times, were they multiplied as numbers below the normal


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_what_is_not_a_number_stays_so(dtype: torch.dtype, part: str) -> None:
    q, k, v = (each.contiguous() for each in heads(1, 140, 2, 16, dtype))
    {"q": q, "k": k, "v": v}[part][:, :, 7] = torch.nan
    found = native.attend(q, k, v).isnan()
    assert (found[:, :, 7] if part == "q" else found).all()
    assert found.sum() == found.numel() / (140 if part == "q" else 1)


def test_what_is_not_a_number_hides_no_number_that_is_too_large_for_fp16() -> None:
    q, k, v = (each.contiguous() for each in heads(1, 140, 1, 16, torch.bfloat16))
    q[:, :, 7], q[:, :, 23, 0] = torch.nan, 3e6
    found, wanted = native.attend(q, k, v)[:, :, 23], plain(q, k, v)[:, :, 23]
    assert distance(found, wanted) < 0.1


def test_a_group_with_what_is_not_a_number_is_none() -> None:
    x = torch.randn(2, 40, 64)
    x[1, 7, 5] = torch.nan
    found = native.group_norm(x, GroupNorm(64).requires_grad_(False), None, silu=True)
    assert found[1, :, 4:6].isnan().all()
    assert not found[0].isnan().any()


@pytest.mark.parametrize("over_frames", [False, True])
@pytest.mark.parametrize("d", [8, 64])
@torch.inference_mode()
def test_attention_over_an_axis_turns_and_attends_in_place(d: int, over_frames: bool) -> None:
    layer = AxisAttention(96, 3, d, over_frames=over_frames)
    x = torch.randn(2, 5, 12, 96)
    rotary = frame_rotary(5, d, x.device) if over_frames else patch_rotary(3, 4, d, x.device)
    wanted = layer.double()(x.double(), rotary)
    layer.float().native = True
    assert distance(layer(x, rotary) - x, wanted - x) < 2e-6


def test_keys_turn_by_tables_whose_pairs_disagree() -> None:
    q, k, v = heads(2, 24, 2, 16, torch.float32)
    cos, sin = frame_rotary(24, 16, torch.device("cpu"))
    turned = [rotate_pairs(each.double(), cos.double(), sin.double()) for each in (q, k)]
    assert distance(native.attend(q, k, v, rotary=(cos, sin)), plain(*turned, v)) < 2e-6


def test_heads_of_other_sizes_are_left_to_torch() -> None:
    assert [d for d in range(1, 300) if native.can_attend(d)] == list(range(8, 257, 8))
    layer = HeadAttention()
    layer.native = True
    q, k, v = heads(1, 9, 2, 12, torch.float32)
    wanted = plain(q, k, v).transpose(1, 2).flatten(2)
    assert distance(layer.attend(q, k, v), wanted) < 2e-6


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(2, 70, 96), (4, 5, 6, 480), (1, 1024, 256), (3, 1, 32)])
@pytest.mark.parametrize(("rows", "silu"), [(0, False), (0, True), (1, True)])
@pytest.mark.parametrize("offset", [1.0, 300.0])
def test_the_kernel_is_group_normalisation(
    shape: tuple[int, ...], rows: int, silu: bool, offset: float, dtype: torch.dtype
) -> None:
    x = (3 * torch.randn(shape) + offset).to(dtype)
    norm = GroupNorm(shape[-1]).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    norm.to(dtype)
    # A view with gaps, as the denoiser's are.
    film = torch.randn(rows, 3 * shape[-1]).to(dtype)[:, shape[-1] :] if rows else None
    found = native.group_norm(x, norm, film, silu=silu)
    wanted = norm.double()(x.double(), None if film is None else film.double(), silu=silu)
    assert found.dtype == dtype
    assert distance(found, wanted) < max(1e-6 * offset, ROUNDING[dtype])


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("halve", [False, True])
@pytest.mark.parametrize("rows", [1, 13, 14, 15, 57, 300])
@pytest.mark.parametrize(
    ("depth", "width"), [(4, 32), (129, 96), (384, 64), (385, 32), (1000, 256)]
)
def test_the_kernel_is_a_product(
    dtype: torch.dtype, halve: bool, rows: int, depth: int, width: int
) -> None:
    x, weights = torch.randn(rows, depth).to(dtype), torch.randn(depth, width).to(dtype)
    found = native.product(x, native.panels(weights, halve=halve))
    assert found.dtype == dtype
    rounding = ROUNDING[torch.bfloat16 if halve else dtype]
    assert distance(found, x.double() @ weights.double()) < rounding


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("halve", [False, True])
@pytest.mark.parametrize("ending", native.ENDINGS)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("depth", [40, 800])
def test_a_product_has_what_comes_before_and_after_it(
    dtype: torch.dtype, halve: bool, ending: native.Ending, bias: bool, normed: bool, depth: int
) -> None:
    width = 64
    x = (torch.randn(2, 33, depth) + 5).to(dtype)
    weights, added = [torch.randn(depth, width).to(dtype) / 9 for _ in range(2)], torch.randn(2, 64)
    norm = nn.LayerNorm(depth).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    norm.to(dtype)
    other = torch.randn(2, 64, 33).to(dtype).transpose(1, 2)  # with gaps
    first, second = (
        native.panels(each, more if bias else None, halve=halve)
        for each, more in zip(weights, added, strict=True)
    )
    panels = native.gated(first, second) if ending == "geglu" else first
    found = native.product(x, panels, ending, other, norm if normed else None)
    exact = F.layer_norm(x.double(), (depth,), norm.weight.double(), norm.bias.double())
    wanted, gated = (
        (exact if normed else x.double()) @ each.double() + (more.double() if bias else 0)
        for each, more in zip(weights, added, strict=True)
    )
    ends = {
        "none": wanted,
        "add": wanted + other.double(),
        "mul": wanted * other.double(),
        "gelu": F.gelu(wanted),
        "geglu": gated * F.gelu(wanted),
    }
    assert found.dtype == dtype
    rounding = 1.5 * ROUNDING[torch.bfloat16] if halve else ROUNDING[dtype]
    assert distance(found, ends[ending]) < rounding


@pytest.mark.parametrize("dtype", ROUNDING)
def test_numbers_of_any_size_are_multiplied_in_fp16(dtype: torch.dtype) -> None:
    x, weights = torch.randn(40, 300), torch.randn(300, 128)
    x *= torch.logspace(-30, 15, 40)[:, None]
    weights *= torch.logspace(-7, 18, 128)
    x[3], weights[:, 5], weights[:, 6] = 0, 0, 1e-43  # no weight, and one below the normal numbers
    x[7, 11] *= 1000
    x, weights = x.to(dtype), weights.to(dtype)
    found = native.product(x, native.panels(weights, halve=True)).double()
    wanted = x.double() @ weights.double()
    assert not found[3].any()
    assert not found[:, 5].any()
    assert found.isfinite().all()
    sides = x.double().norm(dim=1, keepdim=True) * weights.double().norm(dim=0)
    normal = (sides > 1e-37) & (sides < 1e37)  # of fp32, which the results are
    assert normal.sum() > 4000
    errors = ((found - wanted) / sides.clamp(min=1e-300))[normal]
    assert errors.abs().max() < 4e-3
    assert errors.square().mean().sqrt() < 4e-3 / 300**0.5  # of sums as large as random ones


def test_the_most_that_fp16_may_sum_is_a_number() -> None:
    x, weights = torch.full((20, 900), 15.99), torch.full((900, 64), -15.99)
    found = native.product(x, native.panels(weights, halve=True))
    assert distance(found, x.double() @ weights.double()) < 4e-3


def test_a_batch_of_products_may_lie_apart() -> None:
    x, weights = torch.randn(5, 40, 96)[:, 3:30], torch.randn(5, 96, 64)
    found = native.product(x, native.panels(weights))
    assert distance(found, x.double() @ weights.double()) < 2e-6


def test_gelu_is_exact_everywhere() -> None:
    x = torch.linspace(-20, 20, 4001)[:, None]
    weights = torch.ones(1, 32)
    found = native.product(x, native.panels(weights), "gelu")[:, 0]
    assert (found.double() - F.gelu(x[:, 0].double())).abs().max() < 2e-6
    assert (found[x[:, 0] > 6] == x[:, 0][x[:, 0] > 6]).all()
    assert native.product(x * torch.nan, native.panels(weights), "gelu").isnan().all()


@pytest.mark.parametrize("dtype", ROUNDING)
def test_a_row_with_what_is_not_a_number_stays_one(dtype: torch.dtype) -> None:
    x, weights = torch.randn(40, 50).to(dtype), torch.randn(50, 64).to(dtype)
    x[9, 3] = torch.nan
    for halve in (False, True):
        found = native.product(x, native.panels(weights, halve=halve)).isnan()
        assert found[9].all()
        assert found.sum() == 64


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 4, 16), (0, 16)])
def test_a_linear_map_in_panels_is_the_plain_one(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
) -> None:
    layer = nn.Linear(16, 96, bias=bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]  # a view with gaps
    other, panels = torch.randn(*shape[:-1], 96).to(dtype), PanelLinear(layer)
    norm = nn.LayerNorm(16, dtype=dtype).requires_grad_(False)
    normed = panels.map_normed(x, norm)
    wanted = layer.double()(x.double())
    for found, exact in (
        (panels(x), wanted),
        (normed, layer(norm.double()(x.double()))),
        (panels.join(x, other, "add"), wanted + other),
        (panels.join(x, other, "mul"), wanted * other),
    ):
        assert found.dtype == dtype
        assert not len(x) or distance(found, exact) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("width", "hidden"), [(64, 96), (96, 256), (40, 64)])
@torch.inference_mode()
def test_a_packed_feed_forward_is_the_plain_one(
    dtype: torch.dtype, gated: bool, width: int, hidden: int
) -> None:
    layer = FeedForward(width, hidden, gated=gated)
    layer.norm.weight.normal_()
    layer.to(dtype)
    x = torch.randn(3, 7, width).to(dtype)
    packed = pack_feed_forward(layer)
    assert type(packed) is (PanelFeedForward if width % 32 == 0 else PackedFeedForward)
    found = packed(x)
    assert distance(found, layer.double()(x.double())) < ROUNDING[dtype]


@pytest.mark.parametrize("fast", [0, 1])
def test_bf16_is_left_to_processors_that_are_fast_at_it(
    fast: int, afresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = native.loaded()
    monkeypatch.setattr(native, "loaded", lambda: library)
    monkeypatch.setattr(library, "has_fast_bfloat16", lambda: fast)
    kinds = [
        {type(pack_linear(nn.Linear(32, width).to(dtype))) for width in (32, 64)}
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert kinds == [{PanelLinear}, {PackedLinear if fast else PanelLinear}]
    forward = pack_feed_forward(FeedForward(64, 64, gated=True).bfloat16())
    assert type(forward) is (PackedFeedForward if fast else PanelFeedForward)
    conv = pack_conv(nn.Conv2d(64, 64, 3, padding=1).bfloat16())
    assert type(conv) is (PackedConv2d if fast else SizedConv2d)
    assert type(pack_conv(nn.Conv2d(64, 72, 3, padding=1).bfloat16())) is PackedConv2d
    assert type(pack_linear(nn.Linear(32, 40))) is PackedLinear  # not whole panels


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("m", POINTS)
def test_images_convolved_together_are_those_convolved_alone(
    m: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = nn.Conv2d(64, 96, 3, padding=1).to(dtype).requires_grad_(False)
    layers = [WinogradConv2d(conv, m)]
    assert isinstance(layers[0].weights, native.Panels)
    if dtype == torch.float32:  # else torch's operations would round what is between
        monkeypatch.setattr(native, "can_fuse", lambda dtype: False)
        layers.append(WinogradConv2d(conv, m))
        assert isinstance(layers[1].weights, Tensor)
    images = [torch.randn(2, 9, 6, 64), torch.randn(1, 8, 8, 64), torch.randn(1, 1, 3, 64)]
    images, conv = [image.to(dtype) for image in images], conv.double()
    for layer in layers:
        for found, image in zip(layer.convolve(images), images, strict=True):
            wanted = conv(image.double().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            assert found.dtype == dtype
            assert distance(found, wanted) < 2 * ROUNDING[dtype]


def test_an_accelerated_model_uses_them() -> None:
    model = accelerate(tiny_model())
    assert model.denoiser is not None
    for network in (model.autoencoder, model.denoiser):
        users = [module for module in network.modules() if hasattr(module, "native")]
        assert users
        assert all(module.native for module in users)


@pytest.mark.parametrize(
    "why", ["asked for", "no compiler", "it fails", "it makes nothing", "another OpenMP"]
)
def test_without_kernels_torch_stays(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, afresh: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if why == "asked for":
        monkeypatch.setenv("PVDM_NATIVE", "0")
    elif why == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
    elif why == "another OpenMP":  # calls that torch's cannot answer, as of another compiler
        (tmp_path / "other.cpp").write_text(
            'extern "C" { void __kmpc_none(); void f() { __kmpc_none(); } }'
        )
        monkeypatch.setattr(native, "SOURCES", tmp_path)
    else:
        monkeypatch.setenv("CXX", "false" if why == "it fails" else "true")
    assert native.loaded() is None
    model = accelerate(tiny_model())
    assert not any(getattr(module, "native", False) for module in model.autoencoder.modules())
    assert not list(tmp_path.rglob("*.so"))


def test_they_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, afresh: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.loaded() is not None
    (kept,) = tmp_path.rglob("*.so")
    before = kept.stat().st_mtime_ns
    forget()
    monkeypatch.setenv("PATH", str(tmp_path))  # no compiler any more
    assert native.can_fuse(torch.float32)
    assert kept.stat().st_mtime_ns == before
    assert not [path for path in kept.parent.iterdir() if path != kept]


def test_a_damaged_file_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, afresh: None
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "pvdm" / "native" / f"{native._key()}.so"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"not a library")
    assert native.can_fuse(torch.float32)
    assert kept.stat().st_size > 10_000


def test_without_room_for_them_they_are_made_for_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, afresh: None
) -> None:
    (tmp_path / "pvdm").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert native.can_fuse(torch.float32)
    q, k, v = heads(1, 20, 1, 16, torch.float32)
    assert distance(native.attend(q, k, v), plain(q, k, v)) < 2e-6


def test_without_a_home_they_are_made_for_the_process(
    monkeypatch: pytest.MonkeyPatch, afresh: None
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert native.can_fuse(torch.float32)
    with pytest.raises(PvdmError, match="XDG_CACHE_HOME"):
        cache_folder()


def test_other_sources_and_processors_have_files_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {native._key()}
    monkeypatch.setattr(native.platform, "machine", lambda: "another")
    keys.add(native._key())
    (tmp_path / "kernels.cpp").write_text("// another")
    monkeypatch.setattr(native, "SOURCES", tmp_path)
    keys.add(native._key())
    assert len(keys) == 3


@pytest.mark.slow  # it compiles
@pytest.mark.parametrize(
    ("vectors", "needs"),
    [
        ("-march=cooperlake", "avx512_bf16"),  # no fp16
        ("-march=skylake-avx512", "avx512vl"),  # no bf16 either
        ("-mavx2 -mfma", "fma"),
        ("-mno-avx", "sse2"),
    ],
)
@pytest.mark.skipif(native.platform.machine() != "x86_64", reason="names x86's vectors")
def test_other_vectors_give_the_same(
    vectors: str, needs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if f" {needs} " not in Path("/proc/cpuinfo").read_text().replace("\n", " "):
        pytest.skip(f"this processor has no {needs}")
    flags = [*(flag for flag in native.FLAGS if "march" not in flag), *vectors.split()]
    monkeypatch.setattr(native, "FLAGS", flags)
    library = ctypes.CDLL(str(native._compile(tmp_path)))
    monkeypatch.setattr(native, "loaded", lambda: library)
    q, k, v = heads(2, 75, 2, 48, torch.float32)
    assert distance(native.attend(q, k, v), plain(q, k, v)) < 2e-6
    x, norm = torch.randn(2, 30, 96), GroupNorm(96).requires_grad_(False)
    found = native.group_norm(x, norm, None, silu=True)
    assert distance(found, norm.double()(x.double(), silu=True)) < 1e-6
    assert not library.has_fast_float16()
    for dtype in ROUNDING:
        test_the_kernel_is_a_product(dtype, True, 57, 129, 64)
        test_a_product_has_what_comes_before_and_after_it(dtype, True, "geglu", True, True, 800)
    test_gelu_is_exact_everywhere()
    test_images_convolved_together_are_those_convolved_alone(4, torch.float32, monkeypatch)
