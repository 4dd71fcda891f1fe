"""Each start of a run leaves a line: by which command, on what."""

import json
from pathlib import Path
from typing import Any

from training_runs import Place

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
