"""What stands in `metrics.jsonl`, and what of it survives a kill."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pvdm_cli.errors import ConfigError
from pvdm_cli.training.metrics import Metrics, tally
from pvdm_cli.training.saving import Troubles


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def add(metrics: Metrics, *losses: float) -> None:
    for loss in losses:
        metrics.add({"loss": torch.tensor(loss), "l1": torch.tensor(loss / 2)})


def test_a_line_holds_the_means_since_the_line_before(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m", since=0, clips_per_step=8)
    add(metrics, 1, 2, 6)
    assert metrics.log(3, lr=0.5) == {"loss": 3, "l1": 1.5}
    add(metrics, 10)
    metrics.log(4, lr=0.25)
    metrics.validation(4, {"val_loss": 7.0})
    first, second, third = lines(tmp_path / "m")
    for line in (first, second):
        rate = line.pop("steps_per_second")
        assert rate > 0
        assert line.pop("clips_per_second") == pytest.approx(8 * rate, rel=1e-3)
        assert 0 <= line.pop("data_wait") <= 1
    assert first == {"step": 3, "loss": 3, "l1": 1.5, "lr": 0.5}
    assert second == {"step": 4, "loss": 10, "l1": 5, "lr": 0.25}
    assert third == {"step": 4, "val_loss": 7}
    assert metrics.last["loss"] == 10
    assert metrics.last["val_loss"] == 7
    assert metrics.shown() == {"loss": "10.0000"}


def test_going_on_drops_what_comes_later_and_what_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "m"
    kept = ['{"step": 10, "loss": 3.0}', '{"step": 10, "val_loss": 2.0}', '{"step": 20, "a": 1}']
    torn = ['{"step": 20, "los', "\x00\x00", "[1]", "7", '{"a": 1}', '{"step": "x"}', ""]
    later = ['{"step": 21, "loss": 9.0}', '{"step": 30, "loss": 8.0}']
    path.write_text("\n".join([*kept[:2], torn[0], kept[2], *torn[1:], *later, '{"step": 4']))
    metrics = Metrics(path, since=20)
    assert path.read_text().splitlines() == kept
    assert metrics.last == {"loss": 3, "val_loss": 2, "a": 1}
    add(metrics, 5)
    metrics.log(21)
    assert [line["step"] for line in lines(path)] == [10, 10, 20, 21]


def test_starting_afresh_drops_everything(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text('{"step": 1, "loss": 3.0}\n')
    assert Metrics(path, since=0).last == {}
    assert path.read_text() == ""


def test_a_line_that_was_being_collected_goes_on_exactly(tmp_path: Path) -> None:
    losses = torch.rand(7, generator=torch.Generator().manual_seed(0)).tolist()
    whole = Metrics(tmp_path / "whole", since=0)
    add(whole, *losses)
    expected = whole.log(7)
    before = Metrics(tmp_path / "parts", since=0)
    add(before, *losses[:3])
    state = json.loads(json.dumps(before.state()))
    after = Metrics(tmp_path / "parts", since=3, state=state)
    add(after, *losses[3:])
    assert after.log(7) == expected
    assert lines(tmp_path / "parts")[0]["l1"] == lines(tmp_path / "whole")[0]["l1"]
    assert after.state() == {"tallies": {}, "steps": 0}


def test_what_cannot_be_written_is_said_once_and_written_later(tmp_path: Path) -> None:
    said: list[str] = []
    path = tmp_path / "gone" / "m"
    metrics = Metrics(path, since=0, troubles=Troubles(said.append))
    metrics.validation(1, {})
    metrics.validation(2, {})
    assert len(said) == 1
    assert said[0].startswith(f"warning: cannot write {path}: No such file or directory; its lines")
    path.parent.mkdir()
    metrics.validation(3, {})
    assert [line["step"] for line in lines(path)] == [1, 2, 3]
    shutil.rmtree(path.parent)
    metrics.validation(4, {})
    metrics.close()
    assert said[1:] == [
        said[0],
        f"warning: cannot write {path}: No such file or directory; its last 1 lines are lost",
    ]


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m", since=0, tensorboard=True)
    add(metrics, 4)
    metrics.log(1)
    metrics.validation(1, {"val_loss": 7.0})
    again = Metrics(tmp_path / "m", since=1, tensorboard=True)
    add(again, 2)
    again.log(2)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 4), (2, 2)]
    assert [e.value for e in events.Scalars("val_loss")] == [7]


def test_tensorboard_that_is_not_installed_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match="pip install tensorboard"):
        Metrics(tmp_path / "m", since=0, tensorboard=True)


def test_a_tally_is_a_mean_over_the_samples_that_are_meant(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m", since=0)
    for losses, t in (([1.0, 2.0, 6.0], [0, 1, 0]), ([5.0, 7.0, 9.0], [1, 1, 2])):
        terms = {f"loss_t{q}": tally(torch.tensor(losses), torch.tensor(t) == q) for q in range(4)}
        metrics.add(terms)
    assert metrics.log(2) == pytest.approx({"loss_t0": 3.5, "loss_t1": 14 / 3, "loss_t2": 9})


def test_no_network_is_said_to_do_more_than_the_device(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "m", since=0, cost=(1e9, 1.0))
    for step in (1, 2):
        add(metrics, 1)
        metrics.log(step)
    first, second = lines(tmp_path / "m")
    assert first["flop_utilisation"] == 1
    assert first["tflops"] > 0
    assert 0 < second["flop_utilisation"] <= 1
