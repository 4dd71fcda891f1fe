"""Videos shared out over processes: the same ones, each drawn once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ranks_together import together
from tiny import tiny_model

from pvdm_cli import api
from pvdm_cli.model import save_model
from pvdm_cli.ranks import here

NUM = 7


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model"
    save_model(tiny_model(), path)
    return path


def draw(model: Path, out: Path, num: int) -> tuple[int, int, int]:
    found = api.sample(
        model,
        out,
        num=num,
        frames=10,
        steps="4/3",
        batch_size=2,
        format="npz",
        grid="gif",
        device="cpu",
    )
    return here().rank, found.made, found.frames_drawn


def frames(path: Path) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    with np.load(path) as file:
        return file["frames"]


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_draws_the_videos_of_one(
    model: Path, tmp_path: Path, size: int
) -> None:
    draw(model, tmp_path / "one", NUM)
    found = together(size, draw, model, tmp_path / "many", NUM)
    assert [(made, drawn) for _, made, drawn in found] == [(NUM, NUM * 10)] * size
    names = sorted(path.name for path in (tmp_path / "one").glob("video-*"))
    assert names == sorted(path.name for path in (tmp_path / "many").glob("video-*"))
    for name in (name for name in names if name.endswith(".npz")):
        ours, theirs = frames(tmp_path / "many" / name), frames(tmp_path / "one" / name)
        difference = ours.astype(int) - theirs.astype(int)
        assert np.abs(difference).max() <= 1, name  # a rounding that falls on the other side
    assert (tmp_path / "many" / "grid.gif").exists()


def test_what_is_there_is_not_drawn_again(model: Path, tmp_path: Path) -> None:
    draw(model, tmp_path / "out", 3)
    kept = (tmp_path / "out" / "video-00001.npz").read_bytes()
    found = together(2, draw, model, tmp_path / "out", NUM)
    assert {made for _, made, _ in found} == {NUM - 3}
    assert (tmp_path / "out" / "video-00001.npz").read_bytes() == kept


@pytest.mark.slow
def test_a_process_that_is_killed_leaves_whole_videos_and_all_are_made_in_the_end(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code = "from pvdm_cli.cli.app import main; main()"
    words = ["sample", str(model), "--num", "16", "--frames", "20", "--steps", "18/18"]
    words += ["--batch-size", "2", "--format", "npz", "--out", str(out), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words, "--nproc-per-node", "2", "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    while len(list(out.glob("video-*.json"))) < 4:
        assert process.poll() is None
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if b"pvdm_cli" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(int(workers[1]), signal.SIGKILL)
    out_text, _ = process.communicate(timeout=200)
    assert process.returncode == 0
    assert 0 < json.loads(out_text)["made"] < 16  # by those that were started again
    api.sample(model, tmp_path / "one", num=16, frames=20, steps="18/18", batch_size=2,
               format="npz", device="cpu")  # fmt: skip
    for path in sorted((tmp_path / "one").glob("video-*.npz")):
        difference = frames(out / path.name).astype(int) - frames(path).astype(int)
        assert np.abs(difference).max() <= 1, path.name


@pytest.mark.slow
def test_ctrl_c_reaches_each_process_twice_and_still_keeps_what_is_drawn(
    model: Path, tmp_path: Path
) -> None:
    """A terminal sends it to all processes, and their launcher passes it on."""
    out = tmp_path / "out"
    words = ["sample", str(model), "--num", "4", "--batch-size", "2", "--format", "npz"]
    words += ["--steps", "2/2", "--out", str(out), "--device", "cpu"]
    command = [sys.executable, "-m", "pvdm_cli", *words]
    with subprocess.Popen(
        [*command, "--frames", "100000", "--nproc-per-node", "2", "-q"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        started = time.monotonic()
        while sum(path.stat().st_size > 0 for path in out.glob(".video-*")) < 4:
            assert process.poll() is None
            assert time.monotonic() - started < 100
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(60) == 130, said
    kept = [json.loads(path.read_text()) for path in sorted(out.glob("video-*.json"))]
    assert len(kept) == 4, said
    for told in kept:
        assert len(frames(out / told["file"])) == told["settings"]["frames"] > 0
    longest = max(told["settings"]["frames"] for told in kept)
    done = subprocess.run(
        [*command, "--frames", str(longest + 5), "--json"], capture_output=True, check=True
    )
    assert json.loads(done.stdout)["continued"] == 4
