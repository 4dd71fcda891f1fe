"""Training shared out over processes: their number does not change what is learned."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import train_in_child
from ranks_together import together
from safetensors.torch import load_file
from torch import nn
from training_runs import Place, series

from pvdm_cli.errors import ConfigError
from pvdm_cli.models.batchnorm import BatchNorm3d
from pvdm_cli.ranks import here

# A step of six clips, which one, two or three processes share; small steps, so that rounding stays.
STEP = ("training.batch_size=6", "training.lr=1e-4", "training.log_every=1")
FIRST = (*STEP, "training.validate_every=10", "training.sample_every=0")
SECOND = [
    *("adversarial.discriminator_channels=4", "adversarial.discriminator_layers=2"),
    *("training.validate_every=6", "loss.latent_noise=0.1"),
]


def train(place: Place, stage: str, out: Path, overrides: tuple[str, ...]) -> None:
    place.train(stage, out, *overrides)


def share(place: Place, size: int, stage: str, out: Path, *overrides: str) -> None:
    """Train in so many processes; alone in a process just like those."""
    if size == 1:
        assert train_in_child(place, stage, out, *overrides) == 0
    else:
        together(size, train, place, stage, out, overrides)


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Live weights of the newest checkpoint, and moments."""
    latest = (run / "latest").read_text().strip()
    return load_file(run / "checkpoints" / latest / "state" / "training.safetensors")


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one_for_fifty_steps(
    place: Place, tmp_path: Path
) -> None:
    keys = (*FIRST, "training.steps=50")
    share(place, 1, "diffusion", tmp_path / "one", *keys)
    share(place, 2, "diffusion", tmp_path / "two", *keys)
    for name in ("loss", "grad_norm", "val_loss", "val_loss_prefix"):
        ours, theirs = series(tmp_path / "two", name), series(tmp_path / "one", name)
        assert len(ours) >= 5
        np.testing.assert_allclose(ours, theirs, rtol=2e-5, err_msg=name)
    assert len(series(tmp_path / "two", "loss")) == 50


def test_the_autoencoder_and_its_discriminators_learn_alike_in_two_processes(
    place: Place, tmp_path: Path
) -> None:
    keys = (*FIRST, *SECOND, "training.steps=12")
    share(place, 1, "autoencoder", tmp_path / "one", *keys)
    share(place, 2, "autoencoder", tmp_path / "two", *keys)
    for name in ("l1", "features", "adversary_loss", "adversary_real_accuracy", "val_psnr"):
        ours, theirs = series(tmp_path / "two", name), series(tmp_path / "one", name)
        assert ours
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_three_processes_go_on_where_two_have_stopped(place: Place, tmp_path: Path) -> None:
    keys = (*FIRST, "training.checkpoint_every=4")
    share(place, 1, "diffusion", tmp_path / "one", *keys, "training.steps=12")
    share(place, 2, "diffusion", tmp_path / "run", *keys, "training.steps=7")
    share(place, 3, "diffusion", tmp_path / "run", *keys, "training.steps=12")
    ours, theirs = series(tmp_path / "run", "loss"), series(tmp_path / "one", "loss")
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_moments_shared_out_are_those_of_one_process_and_go_on_in_one(
    place: Place, tmp_path: Path
) -> None:
    keys = (*FIRST, "training.checkpoint_every=4")
    share(place, 2, "diffusion", tmp_path / "whole", *keys, "training.steps=8")
    share(place, 2, "diffusion", tmp_path / "zero", *keys, "training.steps=5", "training.zero=true")
    share(place, 2, "diffusion", tmp_path / "zero", *keys, "training.steps=8", "training.zero=true")
    for name, value in weights(tmp_path / "whole").items():
        torch.testing.assert_close(weights(tmp_path / "zero")[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.slow
def test_accumulation_is_shared_out_in_the_same_clips(place: Place, tmp_path: Path) -> None:
    keys = (*FIRST, "training.steps=4")
    share(place, 1, "diffusion", tmp_path / "one", *keys)
    few = ("training.batch_size=1", "training.accumulation=6")
    share(place, 2, "diffusion", tmp_path / "two", *keys, *few)
    ours, theirs = series(tmp_path / "two", "loss"), series(tmp_path / "one", "loss")
    np.testing.assert_allclose(ours, theirs, rtol=2e-5)


def refused(place: Place, out: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        place.train("diffusion", out, "training.batch_size=3")
    return str(caught.value)


def test_a_step_that_does_not_go_round_is_refused(place: Place, tmp_path: Path) -> None:
    said = together(2, refused, place, tmp_path / "run")
    assert said[0] == said[1]
    assert "is 3 clips, which 2 processes cannot share equally: make it a multiple of 2" in said[0]
    assert not (tmp_path / "run" / "config.yaml").exists()


def normalised(x: torch.Tensor) -> list[Any]:
    """Output, gradient and running statistics of this process's part of a batch."""
    size, rank = here().size, here().rank
    norm = BatchNorm3d(x.shape[1])
    part = x.chunk(size)[rank].clone().requires_grad_()
    y = norm(part)
    (y.pow(3) * torch.arange(y.numel()).view_as(y).cos()).sum().backward()
    assert part.grad is not None
    return [each.detach().numpy() for each in (y, part.grad, *norm.buffers())]


def test_batch_statistics_are_those_of_all_processes() -> None:
    x = torch.randn(4, 3, 2, 5, 6, generator=torch.Generator().manual_seed(0)) * 3 + 1
    parts = together(2, normalised, x)
    whole = nn.BatchNorm3d(3)
    given = x.clone().requires_grad_()
    y = whole(given)
    each = torch.arange(y[:2].numel()).view_as(y[:2]).cos()
    (y.pow(3) * torch.cat([each, each])).sum().backward()
    found = [np.concatenate([part[number] for part in parts]) for number in (0, 1)]
    np.testing.assert_allclose(found[0], y.detach(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[1], given.grad, rtol=1e-4, atol=1e-5)
    for part in parts:
        for ours, theirs in zip(part[2:], whole.buffers(), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def drawn(total: int) -> list[int]:
    return list(here().tickets("work", total))


def test_tickets_go_to_one_process_each() -> None:
    parts = together(2, drawn, 40)
    assert sorted(parts[0] + parts[1]) == list(range(40))
