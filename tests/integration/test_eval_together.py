"""`pvdm eval` in two processes of torch's launcher, with the real detector."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scoring import write_noise
from tiny import tiny_model

from pvdm_cli.model import save_model


@pytest.mark.slow
def test_a_model_is_scored_by_two_processes_as_by_one(tmp_path: Path, shared: Path) -> None:
    weights = shared / "reference" / "fvd" / "i3d_kinetics400.safetensors"
    asked = {"PVDM_I3D": str(weights), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    def scored(*words: object) -> dict[str, Any]:
        given = ["eval", "fvd", "--real", real, *words, "--device", "cpu", "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "pvdm_cli", *map(str, given)],
            env={**os.environ, **asked, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return json.loads(done.stdout)

    real = write_noise(tmp_path / "real", 16, 16, 16)
    save_model(tiny_model(), tmp_path / "model")
    out = tmp_path / "scored"
    drawn = ["--model", tmp_path / "model", "--num", 3, "--length", 16, "--steps", "1/1"]
    ours = scored(*drawn, "--out", out, "--nproc-per-node", 2)["columns"]["16f"]
    lines = (out / "metric-fvd3_16f.jsonl").read_text().splitlines()
    assert [json.loads(line)["score"]["fvd"] for line in lines] == [ours["fvd"]]
    assert len(list((tmp_path / "cache" / "pvdm" / "features").glob("*.npz"))) == 1
    theirs = scored("--fake", out, "--num", 3, "--fresh")
    assert ours["fvd"] == pytest.approx(theirs["fvd"], rel=1e-4)
    assert (ours["fake"]["clips"], ours["real"]["clips"]) == (3, 3)
