"""Algorithm 1: what the network is asked, in which order, and with whose noise."""

from typing import NamedTuple

import pytest
import torch
from loop_overhead import loop_seconds, network_seconds
from tiny import CONFIG, tiny_model
from torch import Tensor, nn

from pvdm_cli.diffusion.samplers import ddim_sample, ddpm_sample
from pvdm_cli.diffusion.steps import SPACINGS, Spacing
from pvdm_cli.errors import ModelError, PvdmError
from pvdm_cli.guidance import predictor
from pvdm_cli.latents import unflatten
from pvdm_cli.model import Model, load_model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.rollout import rollout, rollout_latents
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import SAMPLERS, Sampler, Sampling, Steps, parse_interval


class Call(NamedTuple):
    """What the recorded denoiser was asked."""

    z_t: Tensor
    t: Tensor
    z_prefix: Tensor | None
    prefix_noise: Tensor | None


class Recorder(nn.Module):
    """A denoiser that remembers its calls; its answer depends on all it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def forward(
        self,
        z_t: Tensor,
        t: Tensor,
        z_prefix: Tensor | None = None,
        prefix_noise: Tensor | None = None,
    ) -> Tensor:
        self.calls.append(Call(z_t, t, z_prefix, prefix_noise))
        shift = 0.0 if z_prefix is None else 0.3 * z_prefix
        return (z_t * 0.9 + shift + t[:, None, None] / 100).sin()

    def normalise(self, z: Tensor) -> Tensor:
        return z

    def denormalise(self, z: Tensor) -> Tensor:
        return z


def recorded() -> tuple[Model, Recorder]:
    """A model with real sizes and a recorder for a denoiser."""
    denoiser = Recorder()
    autoencoder = Autoencoder(CONFIG).eval().requires_grad_(False)
    return Model(CONFIG, autoencoder, denoiser), denoiser  # type: ignore[arg-type]


def generators(*numbers: int) -> list[torch.Generator]:
    """The generators of these videos."""
    return [generator("cpu", 0, i) for i in numbers]


def run(model: Model, num_clips: int, *videos: int, **sampling: object) -> list[Tensor]:
    """All clips' latents."""
    settings = Sampling(**{"steps": Steps(5, 3), **sampling})  # type: ignore[arg-type]
    return list(
        rollout_latents(model, num_clips, generators=generators(*videos), sampling=settings)
    )


@pytest.mark.parametrize(
    ("text", "steps"), [("100/20", (100, 20)), ("50", (50, 50)), (" 7 / 3 ", (7, 3))]
)
def test_steps_are_read_from_n_slash_m(text: str, steps: tuple[int, int]) -> None:
    assert Steps.parse(text) == steps


@pytest.mark.parametrize("text", ["", "a", "10/", "/10", "0/5", "5/-1", "1.5", "1/2/3"])
def test_anything_else_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(PvdmError, match=r"^--steps .*100/20$"):
        Steps.parse(text)


def test_steps_are_written_as_they_are_read() -> None:
    assert str(Steps.parse("100/20")) == "100/20"
    assert str(Steps.parse("50")) == "50/50"


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "heun"])
def test_each_clip_is_asked_once_per_step_and_sees_the_clip_before(sampler: str) -> None:
    model, denoiser = recorded()
    first, second, third = run(model, 3, 0, 1, sampler=sampler)
    assert [len(call.z_t) for call in denoiser.calls] == [2] * (5 + 3 + 3)
    prefixes = [call.z_prefix for call in denoiser.calls]
    assert all(prefix is None for prefix in prefixes[:5])
    assert all(prefix is first for prefix in prefixes[5:8])
    assert all(prefix is second for prefix in prefixes[8:])
    assert third.shape == (2, 4, CONFIG.latent.flat)
    assert model.schedule is not None
    foretold = Sampling(steps=Steps(5, 3)).num_calls(model.schedule, 3)
    assert foretold == len(denoiser.calls)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [Steps(5, 3), Steps(1, 1), Steps(20, 20)])
def test_the_calls_are_those_foretold_in_number_and_order(
    sampler: Sampler, spacing: Spacing, steps: Steps
) -> None:
    (model, denoiser), told = recorded(), []
    settings = Sampling(steps=steps, sampler=sampler, spacing=spacing)
    clips = rollout_latents(
        model,
        2,
        generators=generators(0),
        sampling=settings,
        on_step=lambda *call: told.append(call),
    )
    assert all(clip.isfinite().all() for clip in clips)
    assert model.schedule is not None
    assert len(denoiser.calls) == len(told) == settings.num_calls(model.schedule, 2)
    foretold = [t for first in (True, False) for t in settings.asked(model.schedule, first=first)]
    assert [int(call.t[0]) for call in denoiser.calls] == foretold


def test_a_noised_prefix_differs_from_clip_to_clip_and_the_network_is_told_how_much() -> None:
    assert CONFIG.diffusion is not None
    diffusion = CONFIG.diffusion.model_copy(update={"prefix_noise": 0.5})
    config = CONFIG.model_copy(update={"diffusion": diffusion})
    denoiser = Recorder()
    model = Model(config, Autoencoder(config), denoiser)  # type: ignore[arg-type]
    clips = run(model, 3, 0, 1, prefix_noise=0.4, guidance=1.0)
    assert denoiser.calls[0].prefix_noise is None
    for clip, calls in ((clips[0], denoiser.calls[5:8]), (clips[1], denoiser.calls[8:])):
        prefixes = [call.z_prefix for call in calls]
        assert all(torch.equal(prefix, prefixes[0]) for prefix in prefixes)  # type: ignore[arg-type]
        added = (prefixes[0][:2] - clip) / 0.4  # type: ignore[index]
        assert 0.8 < added.std() < 1.2
        assert (added[0] - added[1]).abs().mean() > 0.5
        assert [call.prefix_noise.tolist() for call in calls] == 3 * [  # type: ignore[union-attr]
            pytest.approx([0.4, 0.4, 0.0, 0.0])
        ]
    quiet = run(Model(config, model.autoencoder, Recorder()), 2, 0, 1)  # type: ignore[arg-type]
    assert torch.equal(quiet[0], clips[0])  # the first clip has no prefix
    assert not torch.equal(quiet[1], clips[1])


def test_the_first_clip_is_plain_ddim_from_the_videos_own_noise() -> None:
    model, denoiser = recorded()
    (found,) = run(model, 1, 3, eta=0.5)
    source, shape = generator("cpu", 0, 3), (4, CONFIG.latent.flat)
    noise = [torch.randn(shape, generator=source)[None] for _ in range(5)]
    assert model.schedule is not None
    expected = ddim_sample(
        lambda z, t: denoiser(z, t), noise[0], model.schedule,
        num_steps=5, eta=0.5, draw=lambda k: noise[k],
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_z0_is_held_in_the_latents_range_unless_one_says_otherwise() -> None:
    model, denoiser = recorded()
    held, free = run(model, 1, 0), run(model, 1, 0, clamp=False)
    assert held[0].abs().max() <= 1
    assert free[0].abs().max() > 1
    assert torch.equal(denoiser.calls[5].z_t, denoiser.calls[0].z_t)  # the first step of each


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_as_many_ddim_steps_as_were_trained_mean_ancestral_sampling(eta: float) -> None:
    model, denoiser = recorded()
    (found,) = run(model, 1, 0, steps=Steps(20, 20), eta=eta)
    source, shape = generator("cpu", 0, 0), (4, CONFIG.latent.flat)
    z_T = torch.randn(shape, generator=source)[None]
    assert model.schedule is not None
    expected = ddpm_sample(
        lambda z, t: denoiser(z, t), z_T, model.schedule,
        draw=lambda k: torch.randn(shape, generator=source)[None],
    )  # fmt: skip
    assert torch.equal(found, expected)


def test_guidance_asks_for_prefix_and_null_in_one_call() -> None:
    model, denoiser = recorded()
    first, _ = run(model, 2, 0, guidance=1.5)
    assert [len(call.z_t) for call in denoiser.calls] == [1] * 5 + [2] * 3
    call = denoiser.calls[-1]
    assert call.z_prefix is not None
    assert torch.equal(call.z_prefix, torch.cat([first, torch.zeros_like(first)]))
    assert torch.equal(call.z_t[0], call.z_t[1])


def test_guidance_mixes_with_weights_one_plus_w_and_minus_w() -> None:
    denoiser = Recorder()
    z_t, prefix = torch.randn(2, 4, 7), torch.randn(2, 4, 7)
    t = torch.tensor([3, 9])
    given, null = denoiser(z_t, t, prefix), denoiser(z_t, t, torch.zeros_like(prefix))
    torch.testing.assert_close(predictor(denoiser, prefix, 2.0)(z_t, t), 3 * given - 2 * null)
    assert torch.equal(predictor(denoiser, prefix, 0.0)(z_t, t), given)
    assert torch.equal(predictor(denoiser, None, 2.0)(z_t, t), denoiser(z_t, t))


@pytest.mark.parametrize("sampler", ["ddpm", "heun"])
def test_guidance_holds_within_its_interval_of_the_noise_levels(sampler: Sampler) -> None:
    model, denoiser = recorded()
    steps = Steps(2, 10)  # levels 1.0, 0.9, ..., 0.1
    run(model, 2, 0, steps=steps, sampler=sampler, guidance=1.5, guidance_interval=(0.3, 0.5))
    following = denoiser.calls[3 if sampler == "heun" else 2 :]
    for call in following:
        assert len(call.z_t) == (2 if 0.3 <= (int(call.t[0]) + 1) / 20 <= 0.5 else 1)
    assert sum(len(call.z_t) == 2 for call in following) == (6 if sampler == "heun" else 3)


def test_guidance_over_all_levels_is_guidance_without_an_interval() -> None:
    always, plain = recorded()[0], recorded()[0]
    settings = {"guidance": 1.5, "sampler": "dpm++"}
    whole = run(always, 2, 0, guidance_interval=(0.0, 1.0), **settings)
    almost = run(plain, 2, 0, guidance_interval=(0.0, 0.9), **settings)
    assert torch.equal(whole[1], run(recorded()[0], 2, 0, **settings)[1])
    assert not torch.equal(whole[1], almost[1])


@pytest.mark.parametrize("text", ["", "0.5", "a,b", "0,1,1"])
def test_an_interval_that_is_none_is_refused_in_one_sentence(text: str) -> None:
    assert parse_interval("0.2, 0.8") == (0.2, 0.8)
    with pytest.raises(PvdmError, match=r"^--guidance-interval .*like 0\.2,0\.8$"):
        parse_interval(text)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_video_is_the_same_in_any_batch(sampler: str) -> None:
    model = tiny_model()
    together = run(model, 2, 0, 1, 2, sampler=sampler)
    alone = run(model, 2, 1, sampler=sampler)
    for clips, clip in zip(together, alone, strict=True):
        assert (clips[1:2] - clip).norm() < 1e-4 * clip.norm()
        assert (clips[0] - clips[1]).abs().mean() > 0.1  # and videos differ


def test_clips_are_decoded_as_soon_as_each_latent_is_ready() -> None:
    model, denoiser = recorded()
    settings = Sampling(steps=Steps(5, 3))
    clips = rollout(model, 2, generators=generators(0), sampling=settings)
    assert denoiser.calls == []
    x = next(clips)
    assert len(denoiser.calls) == 5
    assert x.shape == (1, 3, 4, 16, 24)
    (z0,) = run(recorded_with(model), 1, 0)
    torch.testing.assert_close(x, model.autoencoder.decode(unflatten(z0, CONFIG.latent)))
    assert next(clips).shape == x.shape
    assert len(denoiser.calls) == 8


def with_overlap(overlap: int) -> Model:
    """A model that draws the last frames of each clip again, with a recorder for a denoiser."""
    assert CONFIG.diffusion is not None
    diffusion = CONFIG.diffusion.model_copy(update={"overlap": overlap})
    config = CONFIG.model_copy(update={"diffusion": diffusion})
    return Model(config, recorded()[0].autoencoder, Recorder())  # type: ignore[arg-type]


@pytest.mark.parametrize("overlap", [1, 2])
def test_clips_fade_into_each_other_where_they_share_frames(overlap: int) -> None:
    model = with_overlap(overlap)
    settings = Sampling(steps=Steps(5, 3))
    pieces = list(rollout(model, 3, generators=generators(0, 1), sampling=settings))
    assert [piece.shape[2] for piece in pieces] == [4 - overlap] * 3 + [overlap]
    x = torch.cat(pieces, dim=2)
    clips = [model.autoencoder.decode(unflatten(z0, CONFIG.latent)) for z0 in run(model, 3, 0, 1)]
    kept = 4 - overlap
    for i, clip in enumerate(clips):  # what no other clip shares is as decoded
        start, stop = overlap if i else 0, kept if i < 2 else 4
        torch.testing.assert_close(
            x[:, :, i * kept + start : i * kept + stop], clip[:, :, start:stop]
        )
    for j in range(overlap):
        weight = (j + 1) / (overlap + 1)
        mixed = (1 - weight) * clips[0][:, :, kept + j] + weight * clips[1][:, :, j]
        torch.testing.assert_close(x[:, :, kept + j], mixed)


@pytest.mark.parametrize("overlap", [0, 1, 2])
@pytest.mark.parametrize("frames", [1, 3, 4, 5, 7, 8, 13])
def test_a_rollout_has_as_many_clips_as_its_frames_need(overlap: int, frames: int) -> None:
    config = with_overlap(overlap).config
    clips = config.num_clips(frames)
    assert 4 + (clips - 1) * (4 - overlap) >= frames
    assert clips == 1 or 4 + (clips - 2) * (4 - overlap) < frames


def recorded_with(model: Model) -> Model:
    """The same autoencoder with a fresh recorder."""
    return Model(CONFIG, model.autoencoder, Recorder())  # type: ignore[arg-type]


def test_a_given_prefix_is_continued_with_the_steps_of_following_clips() -> None:
    model, denoiser = recorded()
    prefix = torch.rand(1, 4, CONFIG.latent.flat)
    told: list[tuple[int, int]] = []
    clips = rollout_latents(
        model, 1, generators=generators(0), sampling=Sampling(steps=Steps(5, 3)),
        z_prefix=prefix, on_step=lambda k, n: told.append((k, n)),
    )  # fmt: skip
    list(clips)
    assert [call.z_prefix is prefix for call in denoiser.calls] == [True] * 3
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_sampling_builds_no_graph() -> None:
    model = tiny_model()
    assert model.denoiser is not None
    model.denoiser.requires_grad_(True)
    (z0,) = run(model, 1, 0)
    assert not z0.requires_grad
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": Steps(21, 5)}, "--steps 21/5: the model was trained with 20 timesteps"),
        ({"steps": Steps(5, 0)}, "--steps 5/0"),
        ({"eta": 1.2}, "--eta 1.2: expected a number from 0 to 1"),
        ({"guidance": -1.0}, "--guidance -1.0"),
        (
            {"prefix_noise": 0.1},
            "--prefix-noise 0.1: the model was trained with diffusion.prefix_noise=0",
        ),
        ({"sampler": "plms"}, "--sampler 'plms': choose ddim, ddpm, dpm++, unipc, euler or heun"),
        ({"spacing": "even"}, "--spacing 'even': choose published, leading, trailing or karras"),
        ({"variance": "huge", "sampler": "ddpm"}, "--variance 'huge': choose small or large"),
        ({"variance": "small"}, "--variance small belongs to --sampler ddpm; leave it out"),
        ({"sampler": "heun", "eta": 0.0}, "--eta 0.0 belongs to --sampler ddim; leave it out"),
        ({"sampler": "ddpm", "eta": 0.5}, "--eta 0.5 belongs to --sampler ddim; leave it out"),
        (
            {"guidance": 1.0, "guidance_interval": (0.8, 0.2)},
            "--guidance-interval 0.8,0.2: expected two rising numbers from 0 to 1",
        ),
        (
            {"guidance_interval": (0.2, 0.8)},
            "--guidance-interval 0.2,0.8 needs --guidance or --class-guidance above 0",
        ),
    ],
)
def test_impossible_settings_are_refused_before_any_work(
    settings: dict[str, object], message: str
) -> None:
    model, denoiser = recorded()
    with pytest.raises(PvdmError) as caught:
        rollout(model, 1, generators=generators(0), sampling=Sampling(**{"steps": Steps(5, 3), **settings}))  # type: ignore[arg-type]  # fmt: skip
    assert str(caught.value).startswith(message)
    assert denoiser.calls == []


def test_a_model_without_a_denoiser_says_how_to_get_one() -> None:
    model = Model(CONFIG, Autoencoder(CONFIG))
    with pytest.raises(ModelError, match="autoencoder only"):
        rollout(model, 1, generators=generators(0))


@pytest.mark.parametrize("sampler", ["ddim", "unipc"])
def test_the_loop_costs_less_than_three_percent_of_the_network(sampler: Sampler) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = load_model("demo", "cpu")
        assert loop_seconds(model, sampler) < 0.03 * network_seconds(model)
    finally:
        torch.set_num_threads(threads)
