"""What only a GPU can show: pytest -m gpu. The same results as the CPU's, and what is CUDA's own."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch import Tensor
from training_runs import Place, prepare

from pvdm_cli import api
from pvdm_cli.acceleration import accelerate
from pvdm_cli.benchmark.sample import bench_sample
from pvdm_cli.benchmark.train import bench_train
from pvdm_cli.data.cache import Cache
from pvdm_cli.latents import flatten, unflatten
from pvdm_cli.model import Model, load_model, save_model
from pvdm_cli.models.graphed import MOST, GraphedForward
from pvdm_cli.rollout import rollout_latents
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import Sampling, Steps

pytestmark = pytest.mark.gpu

ERRORS = {"fp32": 1e-5, "bf16": 2e-2, "fp16": 3e-3}  # relative, of one pass of the demo model


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
