"""Learning rates by their closed forms, the average of the weights by a loop written out."""

import math

import pytest
import torch
from torch import nn

from pvdm_cli.config import TrainingConfig
from pvdm_cli.training.optim import learning_rate, make_average, make_optimizer


def test_warm_up_rises_in_equal_steps_to_the_constant_rate() -> None:
    config = TrainingConfig(steps=100, lr=8e-4, warmup_steps=4)
    found = [learning_rate(config, step) for step in range(6)]
    assert found == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4])
    assert learning_rate(config, 10_000) == 8e-4


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(TrainingConfig(lr=3e-3), 0) == 3e-3


def test_the_cosine_starts_after_the_warm_up_and_ends_at_zero() -> None:
    config = TrainingConfig(steps=110, lr=2.0, lr_schedule="cosine", warmup_steps=10)
    assert learning_rate(config, 9) == learning_rate(config, 10) == 2.0
    assert learning_rate(config, 10 + 50) == pytest.approx(1.0)
    assert learning_rate(config, 10 + 25) == pytest.approx(1 + math.cos(math.pi / 4))
    assert learning_rate(config, 109) > 0
    assert [learning_rate(config, step) for step in (110, 500)] == [0, 0]
    later = [learning_rate(config, step) for step in range(10, 111)]
    assert later == sorted(later, reverse=True)


def test_a_warm_up_longer_than_the_run_only_rises() -> None:
    config = TrainingConfig(steps=3, lr=1.0, lr_schedule="cosine", warmup_steps=5)
    assert [learning_rate(config, step) for step in range(3)] == pytest.approx([0.2, 0.4, 0.6])


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_follows_the_published_warm_up_from_the_initial_weights(decay: float) -> None:
    network = nn.Linear(3, 2)
    average = make_average(network, TrainingConfig(ema_decay=decay))
    assert average is not None
    expected = network.weight.detach().double()
    for n in range(1, 31):
        with torch.no_grad():
            network.weight.normal_(generator=torch.Generator().manual_seed(n))
        average.update_parameters(network)
        keep = min(decay, (1 + n) / (10 + n))
        expected = keep * expected + (1 - keep) * network.weight.detach().double()
        torch.testing.assert_close(average.module.weight.double(), expected, rtol=1e-5, atol=1e-6)


def test_no_average_is_made_when_it_is_off() -> None:
    assert make_average(nn.Linear(1, 1), TrainingConfig(ema_decay=0)) is None


def test_the_optimizer_has_the_configured_settings() -> None:
    config = TrainingConfig(lr=0.25, betas=(0.5, 0.75), weight_decay=0.125)
    (group,) = make_optimizer(nn.Linear(1, 1).parameters(), config).param_groups
    found = (group["lr"], group["betas"], group["weight_decay"])
    assert found == (0.25, (0.5, 0.75), 0.125)
