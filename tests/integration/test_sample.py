"""Sampling runs with tiny true networks: files, sidecars, continuing, refusing."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tiny import CONFIG, tiny_model
from typer.testing import CliRunner

from pvdm_cli import api
from pvdm_cli.cli.app import app
from pvdm_cli.errors import PvdmError
from pvdm_cli.generation.request import FORMATS
from pvdm_cli.model import save_model
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.progress import Silent
from pvdm_cli.video import read, write

QUICK = {"frames": 10, "steps": "4/2", "device": "cpu"}  # 3 clips, the last one cut


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_model(), path)
    return path


def frames_of(path: Path) -> np.ndarray:
    """All frames of a written video [s, H, W, 3]."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            return np.asarray(file["frames"])
    return read.read(path)


def leftovers(folder: Path) -> list[str]:
    """What a run must not leave behind."""
    return sorted(path.name for path in folder.iterdir() if "partial" in path.name)


def test_a_video_has_the_frames_size_and_rate_asked_for(model: Path, tmp_path: Path) -> None:
    result = api.sample(model, tmp_path / "out", **QUICK)
    assert result.videos == [tmp_path / "out/video-00000.mp4"]
    with av.open(result.videos[0]) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width) == (16, 24)
        assert stream.average_rate == 7
        assert sum(1 for _ in container.decode(stream)) == 10
    assert (result.made, result.frames, result.fps, result.device) == (1, 10, 7.0, "cpu")
    assert result.frames_per_second == pytest.approx(10 / result.seconds)
    assert result.peak_memory is None or result.peak_memory > 2**20
    assert leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_holds_every_frame(model: Path, tmp_path: Path, kind: str) -> None:
    result = api.sample(model, tmp_path, format=kind, **QUICK)
    assert frames_of(result.videos[0]).shape == (10, 16, 24, 3)


def test_the_sidecar_says_how_to_make_the_video_again(model: Path, tmp_path: Path) -> None:
    first = api.sample(
        model, tmp_path / "a", format="npz", eta=0.5, guidance=0.5, seed=3, fps=5, **QUICK
    )
    told = json.loads((tmp_path / "a/video-00000.json").read_text())
    assert told["file"] == "video-00000.npz"
    assert told["config"] == CONFIG.model_dump(mode="json")
    assert {"version", "torch", "device", "dtype", "command", "settings"} <= told.keys()
    words = shlex.split(told["command"])
    assert words[:2] == ["pvdm", "sample"]
    again = CliRunner().invoke(app, [*words[1:], "--out", str(tmp_path / "b"), "-q"])
    assert again.exit_code == 0, again.output
    assert again.stdout.split() == [str(tmp_path / "b/video-00000.npz")]
    np.testing.assert_array_equal(
        frames_of(first.videos[0]), frames_of(tmp_path / "b/video-00000.npz")
    )
    assert json.loads((tmp_path / "b/video-00000.json").read_text()) == told


def test_a_video_of_lower_precision_is_another_video(model: Path, tmp_path: Path) -> None:
    quick = {**QUICK, "format": "npz"}
    full = api.sample(model, tmp_path / "a", **quick)
    assert "precision" not in json.loads((tmp_path / "a/video-00000.json").read_text())["settings"]
    with pytest.raises(PvdmError, match="precision unset instead of bf16"):
        api.sample(model, tmp_path / "a", precision="bf16", **quick)
    half = api.sample(model, tmp_path / "b", precision="bf16", **quick)
    told = json.loads((tmp_path / "b/video-00000.json").read_text())
    assert (told["settings"]["precision"], told["dtype"]) == ("bf16", "bfloat16")
    assert "--precision bf16" in told["command"]
    assert (frames_of(half.videos[0]) != frames_of(full.videos[0])).any()
    with pytest.raises(PvdmError, match="precision bf16 instead of unset"):
        api.sample(model, tmp_path / "b", precision="auto", **quick)  # auto is fp32 on a CPU


@pytest.mark.slow
def test_a_longer_video_of_lower_precision_is_the_one_drawn_in_one_go(
    model: Path, tmp_path: Path
) -> None:
    quick = {"steps": "4/2", "device": "cpu", "format": "npz", "precision": "bf16"}
    for frames in (4, 10):
        longer = api.sample(model, tmp_path / "a", frames=frames, **quick)
    whole = api.sample(model, tmp_path / "b", frames=10, **quick)
    np.testing.assert_array_equal(frames_of(longer.videos[0]), frames_of(whole.videos[0]))


@pytest.mark.parametrize(
    ("settings", "told", "absent"),
    [
        ({}, {"eta": 1.0}, {"spacing", "variance", "guidance_interval"}),
        ({"sampler": "ddpm"}, {"eta": 1.0}, {"spacing", "variance", "guidance_interval"}),
        ({"sampler": "ddpm", "variance": "large"}, {"eta": 1.0, "variance": "large"}, {"spacing"}),
        ({"sampler": "dpm++", "spacing": "karras"}, {"spacing": "karras"}, {"eta", "variance"}),
        (
            {"sampler": "heun", "guidance": 1.0, "guidance_interval": "0.2,0.8"},
            {"guidance_interval": "0.2,0.8"},
            {"eta", "variance", "spacing"},
        ),
    ],
)
def test_the_sidecar_names_what_the_sampler_used_and_nothing_else(
    model: Path,
    tmp_path: Path,
    settings: dict[str, str],
    told: dict[str, object],
    absent: set[str],
) -> None:
    api.sample(model, tmp_path / "a", format="npz", **QUICK, **settings)
    sidecar = (tmp_path / "a/video-00000.json").read_text()
    found = json.loads(sidecar)["settings"]
    assert told.items() <= found.items()
    assert not absent & found.keys()
    words = shlex.split(json.loads(sidecar)["command"])
    again = CliRunner().invoke(app, [*words[1:], "--out", str(tmp_path / "b"), "-q"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "b/video-00000.json").read_text() == sidecar


def test_a_video_does_not_depend_on_how_many_are_drawn_at_once(model: Path, tmp_path: Path) -> None:
    one = api.sample(model, tmp_path / "one", num=3, batch_size=1, format="npz", **QUICK)
    all_ = api.sample(model, tmp_path / "all", num=3, batch_size=3, format="npz", **QUICK)
    videos = []
    for alone, together in zip(one.videos, all_.videos, strict=True):
        videos.append(frames_of(alone).astype(int))
        assert np.abs(videos[-1] - frames_of(together)).max() <= 1  # float rounding
    assert np.abs(videos[0] - videos[1]).mean() > 2  # and videos differ
    assert np.abs(videos[0][:4] - videos[0][4:8]).mean() > 0.1  # and clips


def test_the_same_command_again_makes_only_what_is_missing(model: Path, tmp_path: Path) -> None:
    first = api.sample(model, tmp_path, num=2, **QUICK)
    before = [path.stat().st_mtime_ns for path in first.videos]
    (tmp_path / "video-00001.mp4").unlink()
    again = api.sample(model, tmp_path, num=4, batch_size=2, **QUICK)
    assert again.made == 3
    assert [path.exists() for path in again.videos] == [True] * 4
    assert again.videos[0].stat().st_mtime_ns == before[0]
    nothing = api.sample(model, tmp_path, num=4, **QUICK)
    assert (nothing.made, nothing.videos) == (0, again.videos)
    assert nothing.frames_per_second == 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"steps": "5/2"}, "steps 4/2 instead of 5/2"),
        ({"eta": 0.0}, "eta 1.0 instead of 0.0"),
        ({"sampler": "unipc"}, "sampler ddim instead of unipc, eta 1.0 instead of unset"),
        ({"spacing": "karras"}, "spacing unset instead of karras"),
        ({"seed": 1, "fps": 9.0}, "seed 0 instead of 1, fps 7.0 instead of 9.0"),
        ({"format": "npz"}, "format mp4 instead of npz"),
    ],
)
def test_other_settings_are_refused_by_name_and_overwrite_replaces(
    model: Path, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    api.sample(model, tmp_path, num=2, **QUICK)
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(PvdmError, match="--overwrite") as caught:
        api.sample(model, tmp_path, **{**QUICK, **change})
    assert told in str(caught.value)
    result = api.sample(model, tmp_path, overwrite=True, **{**QUICK, **change})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(["mine.txt", "state", "video-00000.json", result.videos[0].name])
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["video-00000.safetensors"]


def test_another_model_is_another_setting(model: Path, tmp_path: Path) -> None:
    api.sample(model, tmp_path / "out", **QUICK)
    other = tiny_model()
    assert other.denoiser is not None
    next(other.denoiser.parameters()).add_(0.01)
    save_model(other, tmp_path / "other")
    with pytest.raises(PvdmError, match="denoiser"):
        api.sample(tmp_path / "other", tmp_path / "out", **QUICK)


def test_frames_reach_the_file_as_soon_as_their_clip_is_ready(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []

    class Steps(Silent):
        def advance(self, by: int = 1, **figures: object) -> None:
            events.append("step")

    write_frames = write.Writer.write

    def noted(self: write.Writer, frames: np.ndarray) -> None:
        events.append(f"{len(frames)} frames")
        write_frames(self, frames)

    monkeypatch.setattr(write.Writer, "write", noted)
    api.sample(model, tmp_path, reporter=Steps(), **{**QUICK, "frames": 28})
    steps = [place for place, event in enumerate(events) if event == "step"]
    frames = [place for place, event in enumerate(events) if event == "4 frames"]
    first_steps = [steps[k] for k in (0, *range(4, 16, 2))]
    assert (len(frames), len(steps)) == (7, 16)
    for clip, written in enumerate(frames[:4]):  # one is written, one waits, one is drawn
        assert written < first_steps[clip + 3]


@pytest.mark.parametrize("kind", ["gif", "mp4"])
def test_a_grid_shows_all_videos_side_by_side(model: Path, tmp_path: Path, kind: str) -> None:
    result = api.sample(model, tmp_path, num=3, grid=kind, **QUICK)
    assert result.grid == tmp_path / f"grid.{kind}"
    assert frames_of(result.grid).shape == (10, 16 + 2 + 16, 24 + 2 + 24, 3)
    again = api.sample(model, tmp_path, num=2, grid=kind, **QUICK)
    assert again.grid is not None
    assert frames_of(again.grid).shape == (10, 16, 24 + 2 + 24, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": "many"}, "--steps 'many': expected N or N/M"),
        ({"steps": "30/2"}, "--steps 30/2: the model was trained with 20 timesteps"),
        ({"frames": 0}, "--frames 0: expected 1 or more"),
        ({"num": 0}, "--num 0: expected 1 or more"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"format": "avi"}, "--format 'avi': choose mp4, gif, webp, png, npz"),
        ({"grid": "npz"}, "--grid 'npz'"),
        ({"fps": -1.0}, "--fps -1.0"),
        ({"eta": 2.0}, "--eta 2.0"),
    ],
)
def test_impossible_options_are_one_sentence_and_leave_no_folder(
    model: Path, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(PvdmError) as caught:
        api.sample(model, tmp_path / "out", **{**QUICK, **options})
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_frame_rate_asks_for_one(tmp_path: Path) -> None:
    save_model(tiny_model(fps=None), tmp_path / "model")
    with pytest.raises(PvdmError, match="give one with --fps"):
        api.sample(tmp_path / "model", tmp_path / "out", **QUICK)
    result = api.sample(tmp_path / "model", tmp_path / "out", fps=12.5, **QUICK)
    assert result.fps == 12.5


def test_an_autoencoder_alone_cannot_be_sampled_and_says_why(tmp_path: Path) -> None:
    save_model(tiny_model(with_denoiser=False), tmp_path / "model")
    with pytest.raises(PvdmError, match="autoencoder only"):
        api.sample(tmp_path / "model", tmp_path / "out", **QUICK)


def test_a_file_in_the_way_of_the_folder_is_one_sentence(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("here")
    with pytest.raises(PvdmError, match=r"cannot write .*out"):
        api.sample(model, tmp_path / "out", **QUICK)


def test_running_out_of_memory_advises_a_smaller_batch(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Denoiser, "forward", full)
    with pytest.raises(PvdmError, match="smaller --batch-size"):
        api.sample(model, tmp_path, **QUICK)


def test_the_command_prints_json_on_stdout(model: Path, tmp_path: Path) -> None:
    options = ["--frames", "5", "--steps", "3", "--device", "cpu", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["sample", str(model), *options, "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["videos"] == [str(tmp_path / "out/video-00000.mp4")]
    assert (told["frames"], told["made"], told["device"]) == (5, 1, "cpu")


def test_a_wrong_path_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pvdm_cli.cli.app", "sample", str(tmp_path / "absent")]
    lost = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (lost.returncode, lost.stdout) == (1, "")
    assert len(lost.stderr.splitlines()) == 1
    assert "absent" in lost.stderr
