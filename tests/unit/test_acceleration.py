"""A model for inference alone gives the plain model's results, or stays the plain model."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from pvdm_cli.acceleration import accelerate
from pvdm_cli.decoding import decode_clips
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import PvdmError
from pvdm_cli.latents import flatten, unflatten
from pvdm_cli.model import Model, load_model
from pvdm_cli.models import layers, native
from pvdm_cli.models.graphed import GraphedForward
from pvdm_cli.models.layers import FeedForward
from pvdm_cli.models.packed import (
    PackedConv2d,
    PackedFeedForward,
    PackedLinear,
    can_pack,
    pack,
)
from pvdm_cli.rollout import rollout_latents
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import Sampling, Steps

ERRORS = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 3e-3}  # relative, of one pass of the demo model
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of one layer, absolute

needs_packing = pytest.mark.skipif(not can_pack(torch.float32), reason="no oneDNN operators here")


class Results(NamedTuple):
    """One pass of each kind through the networks."""

    z: Tensor
    x: Tensor
    eps: Tensor


@torch.inference_mode()
def results(model: Model) -> Results:
    assert model.denoiser is not None
    clip, latent = model.config.clip, model.config.latent
    draw = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(2, 3, clip.frames, clip.height, clip.width, generator=draw) - 1
    z = torch.randn(2, latent.c, latent.flat, generator=draw)
    return Results(
        flatten(model.autoencoder.encode(x)),
        model.autoencoder.decode(unflatten(z.tanh(), latent)),
        model.denoiser(z, torch.tensor([3, 15]), z.flip(0)),
    )


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def latents(model: Model, *videos: int) -> Tensor:
    """Two clips of each video, drawn as one batch: [clips, b, c, n]."""
    sampling = Sampling(steps=Steps(3, 2))
    draws = [generator("cpu", 0, video) for video in videos]
    return torch.stack(list(rollout_latents(model, 2, generators=draws, sampling=sampling)))


@pytest.fixture(scope="module")
def plain() -> Results:
    return results(load_model("demo", "cpu"))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 16), (2, 3, 4, 16), (0, 16)])
def test_a_packed_linear_map_is_the_plain_one(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
) -> None:
    if not can_pack(dtype):
        pytest.skip("no oneDNN operators here")
    layer = nn.Linear(16, 40, bias=bias, dtype=dtype).requires_grad_(False)
    x = torch.randn(*shape[:-1], 2 * shape[-1]).to(dtype)[..., ::2]  # a view with gaps
    torch.testing.assert_close(PackedLinear(layer)(x), layer(x), atol=ROUNDING[dtype], rtol=0)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(("kernel", "padding", "stride"), [(3, 1, 1), (1, 0, 1), (3, 0, 2)])
def test_a_packed_convolution_is_the_plain_one_and_keeps_channels_last(
    dtype: torch.dtype, kernel: int, padding: int, stride: int
) -> None:
    if not can_pack(dtype):
        pytest.skip("no oneDNN operators here")
    layer = nn.Conv2d(8, 24, kernel, padding=padding, stride=stride, dtype=dtype)
    layer = layer.requires_grad_(False).to(memory_format=torch.channels_last)
    images = torch.randn(2, 6, 5, 8).to(dtype).permute(0, 3, 1, 2)
    found = PackedConv2d(layer)(images)
    torch.testing.assert_close(found, layer(images), atol=ROUNDING[dtype], rtol=0)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("gaps", [True, False])
@torch.inference_mode()
def test_a_packed_feed_forward_is_the_plain_one(
    dtype: torch.dtype, gated: bool, gaps: bool
) -> None:
    if not can_pack(dtype):
        pytest.skip("no oneDNN operators here")
    layer = FeedForward(16, 40, gated=gated).to(dtype)
    x = torch.randn(2, 3, 16, 5).to(dtype).movedim(-1, 2)
    wanted = layer.float()(x.float())
    found = PackedFeedForward(layer.to(dtype))(x if gaps else x.contiguous())
    torch.testing.assert_close(found.float(), wanted, atol=ROUNDING[dtype], rtol=0)


@needs_packing
def test_a_bias_that_is_a_view_with_gaps_is_read_as_it_is() -> None:
    layer = nn.Linear(16, 40).requires_grad_(False)
    layer.bias = nn.Parameter(torch.randn(40, 3)[:, 1], requires_grad=False)
    x = torch.randn(5, 16)
    torch.testing.assert_close(PackedLinear(layer)(x), layer(x))


@needs_packing
def test_every_linear_map_and_convolution_of_both_networks_is_packed() -> None:
    model = accelerate(tiny_model())
    assert model.denoiser is not None
    kinds = {type(layer) for net in (model.autoencoder, model.denoiser) for layer in net.modules()}
    assert {PackedLinear, PackedConv2d, PackedFeedForward} <= kinds
    assert not {nn.Linear, nn.Conv2d, FeedForward} & kinds


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_demo_model_gives_what_it_gave(plain: Results, precision: str) -> None:
    found = results(accelerate(load_model("demo", "cpu"), precision))
    for ours, theirs in zip(found, plain, strict=True):
        assert ours.dtype == torch.float32
        assert distance(ours, theirs) < ERRORS[precision]
        assert precision == "fp32" or distance(ours, theirs) > ERRORS["fp32"]


@pytest.mark.slow
def test_the_demo_model_gives_nearly_what_it_gave_in_fp16(plain: Results) -> None:
    found = results(accelerate(load_model("demo", "cpu"), "fp16"))
    assert max(map(distance, found, plain)) < ERRORS["fp16"]


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_the_same_run_gives_the_same_bits_and_a_batch_nearly_these(precision: str) -> None:
    model = accelerate(tiny_model(), precision)
    found = latents(model, 0)
    assert torch.equal(latents(model, 0), found)
    assert torch.equal(latents(accelerate(tiny_model(), precision), 0), found)
    tolerance = 1e-4 if precision == "fp32" else 0.1
    for batch in ((0, 1, 2), range(8)):
        torch.testing.assert_close(latents(model, *batch)[:, :1], found, atol=tolerance, rtol=0)


def test_what_names_the_weights_is_that_of_before() -> None:
    model, before = tiny_model(), tiny_model()
    accelerate(model, "bf16")
    assert model.fingerprint == before.fingerprint
    assert model.denoiser_fingerprint == before.denoiser_fingerprint
    assert (model.precision, before.precision) == ("bf16", "fp32")


def test_statistics_of_the_latents_are_not_rounded() -> None:
    model = load_model("demo", "cpu")
    assert model.denoiser is not None
    assert model.denoiser.scale is not None
    before = model.denoiser.scale.std.clone()
    accelerate(model, "bf16")
    assert torch.equal(model.denoiser.scale.std, before)
    assert not torch.equal(before, before.bfloat16().float())


def test_lowered_weights_are_not_computed_with_under_autocast() -> None:
    model = accelerate(tiny_model(), "bf16")
    clip = model.config.clip
    frames = torch.randint(256, (2, clip.frames, clip.height, clip.width, 3)).byte().numpy()
    z = torch.from_numpy(encode_clips(model, frames, "bf16"))
    assert torch.equal(z, torch.from_numpy(encode_clips(model, frames)))
    assert (decode_clips(model, z, "bf16") == decode_clips(model, z)).all()


class _Without:
    """torch's oneDNN operators where one is missing, or gives something else."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        if name == self._missing:
            raise AttributeError(name)
        return getattr(torch.ops.mkldnn, name)


@pytest.fixture(params=["_linear_pointwise", "_reorder_linear_weight", "_convolution_pointwise"])
def without(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """One of the private operators is gone."""
    can_pack.cache_clear()
    monkeypatch.setattr(native, "can_fuse", lambda dtype: False)  # nor are there others
    monkeypatch.setattr("torch.ops.mkldnn", _Without(request.param))
    yield request.param
    monkeypatch.undo()
    can_pack.cache_clear()


def test_without_the_operators_the_layers_stay_as_they_are(without: str) -> None:
    model = tiny_model()
    before = results(model)
    after = results(accelerate(model))
    assert all(map(torch.equal, before, after))
    assert not pack(model.autoencoder)


def test_an_operator_that_gives_something_else_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    can_pack.cache_clear()
    monkeypatch.setattr(
        PackedLinear,
        "forward",
        lambda layer, x: layer.product(x, layer.packed, None, "none", [], ""),
    )
    assert not can_pack(torch.float32)
    can_pack.cache_clear()


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(PvdmError, match="--precision 'int8': choose fp32, bf16, fp16 or auto"):
        accelerate(tiny_model(), "int8")


def test_what_cannot_be_captured_is_launched_kernel_by_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def fail(self: GraphedForward, inputs: Any) -> None:
        asked.append(inputs)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(GraphedForward, "_capture", fail)
    graphed = GraphedForward(lambda z_t, t, *more: z_t + t[:, None, None])
    z, t = torch.ones(2, 4, 6), torch.tensor([3, 5])
    for _ in range(2):
        assert torch.equal(graphed(z, t), z + t[:, None, None])
    assert len(asked) == 1  # and not tried again


def test_want_of_memory_for_a_graph_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: GraphedForward, inputs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(GraphedForward, "_capture", fail)
    with pytest.raises(torch.OutOfMemoryError):
        GraphedForward(lambda z_t, *more: z_t)(torch.ones(1, 4, 6), torch.tensor([3]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_model_gives_what_it_gave() -> None:
    before = results(tiny_model())
    after = results(accelerate(tiny_model(), compiled=True))
    assert max(map(distance, after, before)) < 1e-5


def test_inputs_are_done_together_or_while_a_graph_is_captured_each_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[list[int]] = []

    def work(some: list[int]) -> list[Tensor]:
        calls.append(some)
        return [torch.tensor(10 * each) for each in some]

    assert [int(each) for each in layers.side_by_side(work, [1, 2, 3])] == [10, 20, 30]
    assert calls == [[1, 2, 3]]
    calls.clear()
    stream = MagicMock()
    monkeypatch.setattr(layers, "_capturing", lambda: True)
    monkeypatch.setattr(layers, "_branch", lambda device, i: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda branch: nullcontext())
    assert [int(each) for each in layers.side_by_side(work, [1, 2, 3])] == [10, 20, 30]
    assert sorted(calls) == [[1], [2], [3]]
