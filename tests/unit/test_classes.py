"""Classes in the network, in training and in guidance."""

import numpy as np
import pytest
import torch
from tiny import CONFIG
from torch import Tensor, nn

from pvdm_cli.classes import draw_class, find_class
from pvdm_cli.config import ModelConfig, RunConfig
from pvdm_cli.data.cache import ClipRows
from pvdm_cli.data.cache_format import Manifest
from pvdm_cli.diffusion.objective import drop_labels
from pvdm_cli.errors import DataError, PvdmError
from pvdm_cli.models.denoiser import NULL_CLASS, Denoiser
from pvdm_cli.rollout import predictor
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import Sampling
from pvdm_cli.training.diffusion import DiffusionStage, labels_of

NAMES = ("bow", "run", "walk")


def with_classes(*names: str, class_dropout: float = 0.1) -> ModelConfig:
    """The tiny configuration with classes."""
    assert CONFIG.denoiser is not None
    assert CONFIG.diffusion is not None
    return CONFIG.model_copy(
        update={
            "denoiser": CONFIG.denoiser.model_copy(update={"classes": names}),
            "diffusion": CONFIG.diffusion.model_copy(update={"class_dropout": class_dropout}),
        }
    )


def denoiser(*names: str) -> Denoiser:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Denoiser(with_classes(*names)).eval().requires_grad_(False)


def shaken(network: Denoiser) -> Denoiser:
    """Random weights everywhere, none of them zero."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(1)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


Z = noise(4, 4, CONFIG.latent.flat)
T = torch.tensor([3, 17, 3, 17])


# The network -------------------------------------------------------------------------------


def test_classes_add_an_embedding_with_a_null_row_and_change_no_other_weight() -> None:
    without, found = denoiser(), denoiser(*NAMES)
    assert without.class_embedding is None
    weights = found.state_dict()
    assert weights["class_embedding.codes.weight"].shape == (4, 32)
    assert weights["class_embedding.map.weight"].shape == (128, 32)
    for key, value in without.state_dict().items():
        assert torch.equal(weights[key], value), key
    assert weights.keys() - without.state_dict().keys() == {
        "class_embedding.codes.weight",
        "class_embedding.map.weight",
    }


def test_at_first_no_class_is_told_from_another_and_later_all_are() -> None:
    label = torch.tensor([0, 1, 2, NULL_CLASS])
    network, plain = denoiser(*NAMES), denoiser()
    same = Z[:1].expand(4, -1, -1), T[:1].expand(4)
    network.conv_out.weight.copy_(shaken(plain).conv_out.weight)  # so that anything shows
    films = torch.cat(network.films(same[1], None, label), dim=1)
    assert torch.equal(films, films[:1].expand_as(films))
    found = shaken(network)(*same, None, None, label)
    for i in range(4):
        for j in range(i):
            assert (found[i] - found[j]).abs().mean() > 1e-3
    assert torch.equal(found, network(*same, label=label))


def test_no_label_is_the_null_class_and_a_network_without_classes_hears_of_none() -> None:
    network, deaf = shaken(denoiser(*NAMES)), shaken(denoiser())
    null = torch.full((4,), NULL_CLASS)
    assert torch.equal(network(Z, T), network(Z, T, label=null))
    assert torch.equal(deaf(Z, T), deaf(Z, T, label=torch.tensor([0, 1, 2, 0])))


# Training ----------------------------------------------------------------------------------


class Rows(ClipRows):
    """Rows of noise with these labels, none of which continues another."""

    path = "cache"

    def __init__(self, names: tuple[str, ...], labels: list[int]) -> None:
        latent, clip = CONFIG.latent, CONFIG.clip
        self.index = torch.tensor([(video, 0, label) for video, label in enumerate(labels)])
        self.z = noise(len(labels), latent.c, latent.flat)
        self.videos: list[object] = []
        self.manifest = Manifest(
            fingerprint="0" * 64, clip=clip, patch=8, channels=4, window_stride=clip.frames,
            labels=names,
        )  # fmt: skip

    def read(self, rows: Tensor, *, dtype: torch.dtype) -> Tensor:
        return self.z[rows].to(dtype)


def stage(
    rows: Rows, *names: str, class_dropout: float = 0.1, seed: int = 0, batch_size: int = 64
) -> DiffusionStage:
    config = RunConfig.model_validate(
        {
            **with_classes(*names, class_dropout=class_dropout).model_dump(),
            "stage": "diffusion",
            "training": {"seed": seed, "batch_size": batch_size},
            "data": {"labels": True, "holdout": 0},
        }
    )
    network = Denoiser(config.model())
    return DiffusionStage(config, network, nn.Identity(), rows, lambda *shown: None)  # type: ignore[arg-type]


def test_labels_are_matched_by_name_and_rows_without_one_train_the_null_class() -> None:
    rows = Rows(("walk", "gone", "bow"), [0, -1, 2, 0])
    assert labels_of(rows, NAMES).tolist() == [2, -1, 0, 2]  # type: ignore[arg-type]
    assert labels_of(rows, ()).tolist() == [-1] * 4  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"cache has the class 'bow', which denoiser\.classes"):
        labels_of(rows, ("run", "walk"))  # type: ignore[arg-type]


def test_the_class_is_dropped_as_often_as_asked_whatever_the_other_draws() -> None:
    rows = Rows(NAMES, [0, 1, 2, 1, -1])
    for dropout in (0.0, 0.3, 1.0):
        learner = stage(rows, *NAMES, class_dropout=dropout)
        batches = [learner.draw(step, range(64)) for step in range(40)]
        shown = torch.cat([batch.label for batch in batches])
        z0 = torch.cat([batch.z0 for batch in batches])
        true = torch.tensor([learner.labels[(rows.z == z).all((1, 2))].item() for z in z0])
        told = true != NULL_CLASS
        dropped = shown[told] == NULL_CLASS
        assert dropped.float().mean() == pytest.approx(dropout, abs=0.04)  # of about 2048
        assert torch.equal(shown[told][~dropped], true[told][~dropped])
        assert (shown[~told] == NULL_CLASS).all()


def test_the_coin_of_a_sample_depends_on_seed_step_and_sample_and_moves_no_other_draw() -> None:
    rows = Rows(NAMES, [0, 1, 2, 1])
    whole, plain = stage(rows, *NAMES, class_dropout=0.5), stage(rows)
    halves = stage(rows, *NAMES, class_dropout=0.5, batch_size=32)
    batch, without = whole.draw(3, range(64)), plain.draw(3, range(64))
    shared = torch.cat([halves.draw(3, part).label for part in (range(32), range(32, 64))])
    assert torch.equal(batch.label, shared)
    assert not torch.equal(batch.label, whole.draw(4, range(64)).label)
    other = stage(rows, *NAMES, class_dropout=0.5, seed=1)
    assert not torch.equal(batch.label, other.draw(3, range(64)).label)
    for name in ("z0", "t", "eps", "keep"):
        assert torch.equal(getattr(batch, name), getattr(without, name))
    assert (without.label == NULL_CLASS).all()


def test_dropping_takes_one_number_from_each_generator() -> None:
    labels = torch.tensor([5, 6, 7])
    draws = [generator("cpu", 0, i) for i in range(3)]
    coins = torch.stack([torch.rand((), generator=generator("cpu", 0, i)) for i in range(3)])
    found = drop_labels(labels, float(coins.median()), NULL_CLASS, draws)
    assert torch.equal(found == NULL_CLASS, coins < coins.median())


class Spy(nn.Module):
    """Remembers the labels it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor | None] = []

    def forward(
        self, z_t: Tensor, t: Tensor, z_prefix: Tensor, prefix_noise: Tensor,
        label: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        self.seen.append(label)
        return z_t


def test_the_network_is_told_the_labels_and_validation_drops_none() -> None:
    rows, spy = Rows(NAMES, [0, 1, 2, 1]), Spy()
    learner = stage(rows, *NAMES, class_dropout=1.0)
    learner.losses(spy, learner.draw(0, range(64)))
    assert spy.seen[-1] is not None
    assert (spy.seen[-1] == NULL_CLASS).all()
    learner.held_out = torch.arange(4)
    learner.validate(spy)
    assert {value for label in spy.seen[1:] for value in label.tolist()} == {0, 1, 2}  # type: ignore[union-attr]
    plain = stage(rows)
    plain.losses(spy, plain.draw(0, range(64)))
    assert spy.seen[-1] is None


# Guidance ----------------------------------------------------------------------------------


class Linear(nn.Module):
    """A denoiser whose answers are known: a number for each condition."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(
        self, z_t: Tensor, t: Tensor, z_prefix: Tensor | None = None,
        prefix_noise: Tensor | None = None, label: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        self.batches.append(len(z_t))
        answer = z_t + 10 * (0 if z_prefix is None else z_prefix)
        return answer + (0 if label is None else 100 * (label + 1)[:, None, None])


PREFIX = noise(4, 4, 7, seed=1)
LABEL = torch.tensor([2, 0, 1, 1])


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("class_weight", [0.0, 2.0])
@pytest.mark.parametrize("prefix", [None, PREFIX])
@pytest.mark.parametrize("label", [None, LABEL])
def test_guidance_leads_away_from_the_null_prefix_and_from_the_null_class(
    weight: float, class_weight: float, prefix: Tensor | None, label: Tensor | None
) -> None:
    network, z_t, t = Linear(), noise(4, 4, 7), torch.zeros(4, dtype=torch.int64)
    found = predictor(network, prefix, weight, 0.0, label, class_weight)(z_t, t)  # type: ignore[arg-type]
    expected = z_t.clone()
    if prefix is not None:  # (1 + v + w) - w of it
        expected += 10 * (1 + weight) * prefix
    if label is not None:  # (1 + v + w) - v of it
        expected += 100 * (1 + class_weight) * (label + 1)[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    branches = 1 + bool(weight and prefix is not None) + bool(class_weight and label is not None)
    assert network.batches == [4 * branches]


def test_a_rollout_refuses_labels_and_guidance_that_mean_nothing() -> None:
    known, unknown = with_classes(*NAMES), CONFIG
    towards, none = Sampling(class_guidance=1.0), torch.tensor([0, -1])
    for labels, config in ((None, known), (none, known), (None, unknown)):
        with pytest.raises(PvdmError, match=r"--class-guidance 1\.0: there is no class to follow"):
            towards.check_labels(labels, config)
    towards.check_labels(torch.tensor([2]), known)
    Sampling().check_labels(none, known)
    Sampling().check_labels(None, with_classes(*NAMES, class_dropout=0.0))  # to measure its speed
    for sampling, labels in ((towards, torch.tensor([1])), (Sampling(), none)):
        with pytest.raises(PvdmError, match="class_dropout=0"):
            sampling.check_labels(labels, with_classes(*NAMES, class_dropout=0.0))
    for wrong, config in ((3, known), (-2, known), (0, unknown)):
        with pytest.raises(ValueError, match="classes"):
            Sampling().check_labels(torch.tensor([wrong]), config)


# Names -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "label"), [("run", 1), ("2", 2), ("none", -1), ("walk", 2), ("0", 0)]
)
def test_a_class_is_found_by_name_or_number(word: str, label: int) -> None:
    assert find_class(NAMES, word, "m") == label


def test_a_name_comes_before_a_number_and_before_none() -> None:
    assert find_class(("5", "0", "none"), "0", "m") == 1
    assert find_class(("5", "0", "none"), "none", "m") == 2


@pytest.mark.parametrize(
    ("classes", "word", "said"),
    [
        (NAMES, "walking", r"m has no such class; did you mean 'walk'\? \(known: bow, run, walk\)"),
        (NAMES, "3", "m has no such class"),
        (NAMES, "-1", "m has no such class"),
        (tuple(f"c{i}" for i in range(101)), "x", r"c11, \.\.\. 101 in all, see `pvdm info`\)"),
        ((), "walk", "m was trained without classes; leave the option out, or train"),
    ],
)
def test_a_wrong_class_is_one_sentence(classes: tuple[str, ...], word: str, said: str) -> None:
    with pytest.raises(PvdmError, match=said):
        find_class(classes, word, "m")


def test_the_lot_is_even_and_depends_on_seed_and_video_alone() -> None:
    drawn = [draw_class(4, 0, video) for video in range(2000)]
    assert np.bincount(drawn) == pytest.approx([500] * 4, abs=60)
    assert drawn[:50] == [draw_class(4, 0, video) for video in range(50)]
    assert drawn[:50] != [draw_class(4, 1, video) for video in range(50)]
