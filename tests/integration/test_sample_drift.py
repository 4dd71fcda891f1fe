"""What `pvdm sample --drift` measures, and that `pvdm report` shows what it wrote."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from tiny import CONFIG, tiny_model

from pvdm_cli import api
from pvdm_cli.errors import PvdmError
from pvdm_cli.generation import drift
from pvdm_cli.generation.pipeline import Clip
from pvdm_cli.model import save_model
from pvdm_cli.report.drift import PANELS, TITLES
from pvdm_cli.report.evaluation import drift_series

QUICK = {"steps": "2/1", "device": "cpu", "format": "npz", "drift": True}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose clips share a frame."""
    assert CONFIG.diffusion is not None
    diffusion = CONFIG.diffusion.model_copy(update={"overlap": 1})
    path = tmp_path_factory.mktemp("model") / "tiny"
    config = CONFIG.model_copy(update={"diffusion": diffusion})
    save_model(replace(tiny_model(), config=config), path)
    return path


def test_a_change_of_colour_and_a_jump_between_clips_are_seen() -> None:
    meter = drift.Meter(1, overlap=0)
    rng = np.random.default_rng(0)
    still = rng.integers(100, 120, (1, 4, 16, 24, 3), np.uint8)
    still[:] = still[:, :1]  # nothing moves inside a clip
    bright = still + 100
    for number, frames in enumerate((still, still, bright)):
        z0 = torch.full((1, 4, 10), float(number))
        z0[:, :, ::2] += 1
        meter(Clip(number, z0, frames))
    first, same, jumped = meter.rows[0]
    assert [row["clip"] for row in meter.rows[0]] == [1, 2, 3]
    assert first["psnr_border"] is None
    assert same["psnr_border"] == same["psnr_inside"] > 90
    assert jumped["psnr_border"] == pytest.approx(20 * np.log10(255 / 100), abs=0.01)
    assert (same["colour_distance"], jumped["colour_distance"]) == (0, 1)
    assert jumped["latent_mean"] == pytest.approx(2.5)
    assert jumped["latent_std"] == pytest.approx(0.506, abs=0.001)


def test_figures_of_all_clips_are_written_as_json_and_as_a_picture(
    model: Path, tmp_path: Path
) -> None:
    made = api.sample(model, tmp_path, num=3, batch_size=2, **QUICK)
    overlap = 1
    assert made.frames == 64 * (4 - overlap)
    assert made.drift == tmp_path / "drift.json"
    told = json.loads(made.drift.read_text())
    rows = told["clips"]
    assert [row["clip"] for row in rows] == list(range(1, 65))
    assert told["videos"] == 3
    each = [json.loads(path.read_text())["drift"] for path in sorted(tmp_path.glob("video-*.json"))]
    mean = np.mean([of_video[9]["latent_std"] for of_video in each])
    assert rows[9]["latent_std"] == pytest.approx(mean)
    with np.load(made.videos[0]) as file:
        frames = file["frames"].astype(float)
    seams = [frames[k] - frames[k - 1] for k in range(4 - overlap, 4 - overlap + overlap + 1)]
    found = np.mean([10 * np.log10(255**2 / np.mean(d**2)) for d in seams])
    assert each[0][1]["psnr_border"] == pytest.approx(found, abs=0.01)
    ElementTree.fromstring((tmp_path / "drift.svg").read_text())
    assert {name for name, _, _ in drift_series(told)} == set(TITLES)
    again = api.sample(model, tmp_path, num=3, **QUICK)
    assert (again.made, json.loads(made.drift.read_text())) == (0, told)


def test_the_report_of_a_run_shows_the_drift_of_its_videos(tmp_path: Path) -> None:
    save_model(tiny_model(), tmp_path / "model")
    run = tmp_path / "run"
    api.sample(tmp_path / "model", run / "drift", frames=20, **QUICK)
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert api.report([run], tmp_path / "page.html").drift
    page = (tmp_path / "page.html").read_text()
    for panel in PANELS:
        assert re.search(re.escape(panel.title), page)


def test_videos_not_measured_when_they_were_drawn_are_refused(model: Path, tmp_path: Path) -> None:
    settings = {**QUICK, "drift": False, "frames": 12}
    api.sample(model, tmp_path, **settings)
    with pytest.raises(PvdmError, match="was drawn without --drift"):
        api.sample(model, tmp_path, **{**settings, "drift": True})
    with pytest.raises(PvdmError, match="--drift measures videos from their first clip on"):
        api.sample(model, tmp_path, **{**settings, "drift": True, "frames": 20})
