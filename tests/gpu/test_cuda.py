"""What only a GPU can show: pytest -m gpu. The same results as the CPU's, and what is CUDA's own."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model
from torch import Tensor, nn
from training_runs import Place, prepare

from pvdm_cli import api
from pvdm_cli.acceleration import accelerate
from pvdm_cli.benchmark.sample import bench_sample
from pvdm_cli.benchmark.train import bench_train
from pvdm_cli.data.cache import Cache
from pvdm_cli.latents import flatten, unflatten
from pvdm_cli.model import Model, load_model, save_model
from pvdm_cli.models import kernels
from pvdm_cli.models.denoiser import GroupNorm, norm_and_convolve
from pvdm_cli.models.graphed import MOST, GraphedForward
from pvdm_cli.models.layers import rotate_pairs
from pvdm_cli.models.timesformer import frame_rotary, patch_rotary
from pvdm_cli.rollout import rollout_latents
from pvdm_cli.runtime import generator, resolve_device
from pvdm_cli.sampling import Sampling, Steps

pytestmark = pytest.mark.gpu

ERRORS = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 3e-3}  # relative, of one pass of the demo model


ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}  # of one operation


def group_norm_layer(channels: int, dtype: torch.dtype) -> GroupNorm:
    """Of weights that are not 1 and 0."""
    norm = GroupNorm(channels).to("cuda", dtype).requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    return norm


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.cpu() - wanted).norm() / wanted.norm())


@torch.inference_mode()
def results(model: Model) -> list[Tensor]:
    """One pass of each kind through the networks, on the CPU."""
    assert model.denoiser is not None
    clip, latent, device = model.config.clip, model.config.latent, model.device
    draw = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(2, 3, clip.frames, clip.height, clip.width, generator=draw) - 1
    z = torch.randn(2, latent.c, latent.flat, generator=draw)
    found = [
        flatten(model.autoencoder.encode(x.to(device))),
        model.autoencoder.decode(unflatten(z.tanh().to(device), latent)),
        model.denoiser(z.to(device), torch.tensor([3, 15], device=device), z.flip(0).to(device)),
    ]
    return [each.cpu() for each in found]


def latents(model: Model, *videos: int, guidance: float = 0.0) -> Tensor:
    """Three clips of each video: [clips, b, c, n]."""
    sampling = Sampling(steps=Steps(4, 3), guidance=guidance)
    draws = [generator(model.device, 0, video) for video in videos]
    clips = rollout_latents(model, 3, generators=draws, sampling=sampling)
    return torch.stack([clip.cpu() for clip in clips])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Presets, videos, and a cache made on the CPU."""
    return prepare(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("shape", [(2, 70, 96), (4, 512, 1536), (1, 2048, 512)])
@pytest.mark.parametrize(("rows", "silu"), [(0, False), (0, True), (1, False), (1, True)])
def test_the_kernel_is_group_normalisation(
    shape: tuple[int, ...], dtype: torch.dtype, rows: int, silu: bool
) -> None:
    x = (3 * torch.randn(shape, device="cuda") + 1).to(dtype)
    norm = group_norm_layer(shape[-1], dtype)
    film = None
    if rows:  # a view with gaps, as the denoiser's are
        film = torch.randn(rows, 3 * shape[-1], device="cuda").to(dtype)[:, shape[-1] :]
    found = kernels.group_norm(x, norm, film, silu=silu)
    assert found is not None
    assert found.dtype == dtype
    with torch.no_grad():
        wanted = norm.double()(x.double(), None if film is None else film.double(), silu=silu)
    assert distance(found, wanted.cpu()) < ROUNDING[dtype]


@pytest.mark.parametrize(("b", "height", "width"), [(1, 8, 8), (4, 5, 7), (2, 16, 32)])
def test_taps_are_what_a_convolution_reads(b: int, height: int, width: int) -> None:
    x = torch.randn(b, height, width, 96, device="cuda")
    resolve_device("cuda")  # without TF32
    norm = group_norm_layer(96, torch.float32)
    conv = nn.Conv2d(96, 40, 3, padding=1, device="cuda").requires_grad_(False)
    norm.fused = True
    found = norm_and_convolve(norm, conv, x)
    norm.fused = False
    assert distance(found, norm_and_convolve(norm, conv, x).cpu()) < 1e-5


def test_groups_too_large_for_one_program_are_left_to_torch() -> None:
    x = torch.randn(1, 8192, 1024, device="cuda")
    assert kernels.group_norm(x, group_norm_layer(1024, torch.float32)) is None


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("over_frames", [False, True])
@pytest.mark.parametrize(("m", "d"), [(8, 64), (3, 20)])
def test_the_kernel_turns_pairs(m: int, d: int, over_frames: bool, dtype: torch.dtype) -> None:
    qkv = torch.randn(2, 5, 12, 3, m, d, device="cuda").to(dtype)
    rotary = frame_rotary(5, d, qkv.device) if over_frames else patch_rotary(3, 4, d, qkv.device)
    tables = [table.double()[:, None, None, None] for table in rotary]  # [n, 1, 1, 1, d]
    tables = tables if over_frames else [table.movedim(1, 0) for table in tables]
    wanted = qkv.double()
    wanted[..., :2, :, :] = rotate_pairs(wanted[..., :2, :, :], *tables)
    kernels.rotate_(qkv, *rotary, over_frames=over_frames)
    assert distance(qkv, wanted.cpu()) < ROUNDING[dtype]


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("width", [24, 1536, 5000])
def test_the_kernel_is_a_gated_gelu(width: int, dtype: torch.dtype) -> None:
    hidden = torch.randn(3, 7, 2 * width, device="cuda").to(dtype)
    value, gate = hidden.double().chunk(2, dim=-1)
    wanted = value * F.gelu(gate)
    assert distance(kernels.geglu(hidden), wanted.cpu()) < ROUNDING[dtype]


@pytest.mark.parametrize("precision", ERRORS)
def test_the_demo_model_gives_what_it_gives_on_the_cpu(precision: str) -> None:
    wanted = results(load_model("demo", "cpu"))
    found = results(accelerate(load_model("demo", "cuda"), precision))
    assert max(map(distance, found, wanted)) < ERRORS[precision]


def test_plain_networks_give_what_they_give_on_the_cpu() -> None:
    found, wanted = results(load_model("demo", "cuda")), results(load_model("demo", "cpu"))
    assert max(map(distance, found, wanted)) < ERRORS["fp32"]


def test_a_graph_gives_what_the_network_gives_for_every_kind_of_call() -> None:
    plain, model = load_model("demo", "cuda"), accelerate(load_model("demo", "cuda"))
    assert plain.denoiser is not None
    assert model.denoiser is not None
    assert isinstance(model.denoiser.forward, GraphedForward)
    for again in range(2):
        for batch in range(1, MOST // 2 + 2):  # more kinds than graphs are kept for
            z = torch.randn(batch, 4, model.config.latent.flat, device="cuda")
            t = torch.randint(1000, (batch,), device="cuda")
            for prefix in (None, torch.randn_like(z)):
                with torch.inference_mode():
                    wanted = plain.denoiser(z, t, prefix)
                    found = model.denoiser(z, t, prefix)
                assert distance(found, wanted.cpu()) < ERRORS["fp32"], (again, batch)
    assert len(model.denoiser.forward.captured) == MOST


@pytest.mark.parametrize("guidance", [0.0, 1.5])
def test_a_roll_out_is_the_plain_networks_and_the_same_each_time(guidance: float) -> None:
    wanted = latents(load_model("demo", "cuda"), 0, 1, guidance=guidance)
    model = accelerate(load_model("demo", "cuda"))
    found = latents(model, 0, 1, guidance=guidance)
    assert distance(found, wanted) < 1e-4
    assert torch.equal(latents(model, 0, 1, guidance=guidance), found)
    again = latents(accelerate(load_model("demo", "cuda")), 0, 1, guidance=guidance)
    assert torch.equal(again, found)
    assert distance(latents(model, 0, guidance=guidance)[:, 0], found[:, 0]) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_videos_are_made_and_made_again_with_the_same_bytes(precision: str, tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "tiny")
    files = []
    for name in ("a", "b"):
        made = api.sample(
            tmp_path / "tiny", tmp_path / name, frames=10, steps="4/2", num=3, batch_size=2,
            device="cuda", precision=precision,
        )  # fmt: skip
        assert made.device.startswith("cuda")
        assert made.peak_memory
        files.append([path.read_bytes() for path in made.videos])
    assert files[0] == files[1]


def test_a_cache_of_the_gpu_holds_the_latents_of_the_cpu(place: Place, tmp_path: Path) -> None:
    api.encode(place.videos, tmp_path / "cache", autoencoder=str(place.first_stage), device="cuda")
    ours, theirs = (
        cache.read(range(len(cache)), dtype=torch.float32)
        for cache in (Cache.open(tmp_path / "cache"), Cache.open(place.cache))
    )
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_both_stages_train_and_go_on(
    stage: str, precision: str, place: Place, tmp_path: Path
) -> None:
    changes = [f"training.precision={precision}"]
    place.train(stage, tmp_path / "run", *changes, "training.steps=6", device="cuda")
    result = place.train(stage, tmp_path / "run", *changes, device="cuda")
    assert result.step == 12
    if precision == "fp32":
        on_cpu = place.train(stage, tmp_path / "cpu", *changes)
        assert result.metrics["loss"] == pytest.approx(on_cpu.metrics["loss"], rel=0.1)


def test_the_batch_is_found_by_trying(place: Place, tmp_path: Path) -> None:
    found = place.train(
        "diffusion", tmp_path / "run", "training.batch_size=auto", "training.clips_per_step=8",
        device="cuda",
    )  # fmt: skip
    assert found.step == 12


def test_a_benchmark_tells_the_memory_of_the_card() -> None:
    (figure,) = bench_sample(["demo"], steps="4/2", frames=[16], repeats=2, device="cuda").figures
    assert figure.state == "done"
    assert figure.peak is not None
    assert figure.peak.counted == "allocated"
    assert figure.peak.bytes is not None
    assert figure.peak.reserved_bytes is not None
    assert figure.peak.reserved_bytes >= figure.peak.bytes > 2**20
    assert figure.share is not None
    assert 0 < figure.share < 1


def test_the_largest_batch_keeps_within_a_limit_below_the_card() -> None:
    limit = 2 * 2**30
    (figure,) = bench_train(
        ["demo/diffusion"], memory_limit=limit, max_batch=64, repeats=2, device="cuda"
    ).figures
    assert figure.search is not None
    assert figure.batch >= 1
    assert figure.peak is not None
    assert figure.peak.bytes is not None
    assert figure.peak.bytes <= limit
