"""Each start of a run leaves a line: by which command, on what."""

import json
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_model
from training_runs import Heard, Place

from pvdm_cli import api
from pvdm_cli.model import save_model
from pvdm_cli.report.records import read_record
from pvdm_cli.report.settings import origin


def starts(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "starts.jsonl").read_text().splitlines()]


def test_a_run_that_goes_on_tells_both_of_its_starts(place: Place, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick = ["training.log_every=1", "training.sample_every=0"]
    place.train("autoencoder", run, "training.steps=1", *quick)
    place.train("autoencoder", run, "training.steps=2", *quick)
    first, second = starts(run)
    assert (first["step"], second["step"]) == (0, 1)
    assert first["device"] == "cpu"
    assert first["environment"]["cores"] >= 1
    command = place.command("autoencoder", run, "training.steps=2", *quick)[:-2]
    assert second["command"] == ["pvdm", *command]
    page = "".join(origin(read_record(run, "run")))
    assert first["environment"]["torch"] in page
    assert "Starts of the run" in page

    place.train("autoencoder", run, "training.steps=1", *quick, overwrite=True)
    assert [line["step"] for line in starts(run)] == [0]


def test_the_preset_of_a_run_is_known_before_its_first_checkpoint(
    place: Place, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    place.train("autoencoder", run, "training.steps=1", "training.sample_every=0")
    record = read_record(run, "run")
    record.provenance = {}
    assert record.preset == place.preset("autoencoder")


def test_starting_afresh_is_not_done_again_when_a_process_has_died(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, keys = tmp_path / "run", ("training.sample_every=0", "training.lr_schedule=constant")
    place.train("diffusion", run, *keys, "training.steps=5")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # as its launcher says it
    heard = Heard()
    place.train("diffusion", run, *keys, "training.steps=7", overwrite=True, reporter=heard)
    assert f"continuing {run} from step 5" in heard.lines


def test_videos_are_not_drawn_again_from_the_first_when_a_process_has_died(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_model(), tmp_path / "model")
    asked: dict[str, Any] = {
        "frames": 4,
        "steps": "2/2",
        "format": "npz",
        "device": "cpu",
        "overwrite": True,
    }
    assert api.sample(tmp_path / "model", tmp_path / "out", num=2, **asked).made == 2
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert api.sample(tmp_path / "model", tmp_path / "out", num=3, **asked).made == 1
