"""The processes of one run, as far as one process tells."""

import pytest
import torch
import typer

from pvdm_cli import ranks
from pvdm_cli.cli import launch
from pvdm_cli.config import TrainingConfig
from pvdm_cli.errors import ConfigError
from pvdm_cli.ranks import PeerLostError, Ranks
from pvdm_cli.training.players import Portion


def test_alone_everything_is_as_it_was() -> None:
    here = ranks.here()
    assert (here.rank, here.size, here.main) == (0, 1, True)
    assert here.agree([True, False]) == [True, False]
    assert here.gather("x") == ["x"]
    assert here.first(lambda: 3) == 3
    assert list(here.tickets("work", 3)) == [0, 1, 2]
    values = torch.ones(2)
    assert here.sum(values) is values
    assert here.says("a line")
    assert not here.failed


def test_a_process_is_only_launched_with_all_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not ranks.launched()
    monkeypatch.setenv("WORLD_SIZE", "2")  # left in a shell, say
    assert not ranks.launched()
    for key in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(key, "0")
    assert ranks.launched()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not ranks.launched()


@pytest.mark.parametrize(
    ("batch", "accumulation", "size"),
    [(6, 1, 1), (6, 1, 2), (6, 1, 3), (4, 3, 2), (4, 3, 4), (4, 3, 6), (5, 2, 2), (1, 6, 2)],
)
def test_processes_share_all_samples_of_a_step_in_small_enough_passes(
    batch: int, accumulation: int, size: int
) -> None:
    settings = TrainingConfig(batch_size=batch, accumulation=accumulation)
    parts = [Portion.of(settings, Ranks(rank, size)) for rank in range(size)]
    samples = [i for part in parts for each in range(part.passes) for i in part.samples(each)]
    assert sorted(samples) == list(range(batch * accumulation))
    assert all(part.batch <= batch for part in parts)


def test_one_process_takes_the_passes_of_the_configuration() -> None:
    part = Portion.of(TrainingConfig(batch_size=4, accumulation=3), Ranks())
    assert (part.batch, part.passes) == (4, 3)
    assert part.samples(2) == range(8, 12)


def test_a_step_that_does_not_go_round_names_the_multiple() -> None:
    with pytest.raises(ConfigError, match=r"is 12 clips, which 5 processes .* multiple of 5"):
        Portion.of(TrainingConfig(batch_size=4, accumulation=3), Ranks(0, 5))


def test_a_broken_connection_is_said_in_a_sentence_and_other_failures_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranks, "_ending", False)  # what is set here does not outlive the test
    gloo = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Connection closed by peer"
    with pytest.raises(PeerLostError, match="another process of this run"), ranks.watching():
        raise RuntimeError(gloo)
    assert ranks.ending()
    with pytest.raises(RuntimeError, match="shapes"), ranks.watching():
        raise RuntimeError("shapes do not match")


@pytest.mark.parametrize(("given", "ends"), [("1", (1, 1)), ("4", (4, 4)), ("2:8", (2, 8))])
def test_numbers_of_machines(given: str, ends: tuple[int, int]) -> None:
    assert launch._nodes(given) == ends


@pytest.mark.parametrize("given", ["0", "3:2", "a", "1:x", "-1", ""])
def test_numbers_of_machines_that_make_no_sense(given: str) -> None:
    with pytest.raises(ConfigError, match="give a number from 1 on, or MIN:MAX"):
        launch._nodes(given)


@pytest.mark.parametrize("given", ["0", "x", "-2"])
def test_numbers_of_processes_that_make_no_sense(given: str) -> None:
    with pytest.raises(ConfigError, match="give a number from 1 on, or gpu"):
        launch.hand_over(given, "1", None, 0)


def test_gpu_asks_for_gpus() -> None:
    if torch.cuda.device_count():
        pytest.skip("there are GPUs here")
    with pytest.raises(ConfigError, match="sees no GPU here; give a number"):
        launch.hand_over("gpu", "1", None, 0)


def test_nothing_is_handed_over_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.hand_over(None, "1", None, 3)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "pvdm")  # a process of a launcher goes on itself
    launch.hand_over("2", "1", None, 3)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    monkeypatch.setattr(launch, "_launch", lambda *given: 143)
    with pytest.raises(typer.Exit) as left:
        launch.hand_over("2", "1", None, 3)
    assert left.value.exit_code == 143
