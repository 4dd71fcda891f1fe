"""Videos that are stopped, killed and lengthened: what is drawn is what one go would have drawn."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from imageio_ffmpeg import get_ffmpeg_exe
from tiny import CONFIG, tiny_model

from pvdm_cli import api
from pvdm_cli.errors import PvdmError
from pvdm_cli.generation.request import SampleRequest
from pvdm_cli.generation.run import generate
from pvdm_cli.latents import Planes
from pvdm_cli.model import Model, save_model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.progress import Silent
from pvdm_cli.sampling import Sampling, Steps
from pvdm_cli.video import read, write
from pvdm_cli.video.synthetic import write_skies

QUICK = {"steps": "4/2", "device": "cpu", "format": "npz"}


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda overlap: f"overlap {overlap}")
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose clips share frames, or not."""
    assert CONFIG.diffusion is not None
    diffusion = CONFIG.diffusion.model_copy(update={"overlap": request.param})
    path = tmp_path_factory.mktemp("model") / "tiny"
    config = CONFIG.model_copy(update={"diffusion": diffusion})
    save_model(replace(tiny_model(), config=config), path)
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("plain") / "tiny"
    save_model(tiny_model(), path)
    return path


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model that knows classes and whose clips share a frame."""
    assert CONFIG.diffusion is not None
    assert CONFIG.denoiser is not None
    diffusion = CONFIG.diffusion.model_copy(update={"overlap": 1})
    denoiser = CONFIG.denoiser.model_copy(update={"classes": ("bow", "run", "walk")})
    config = CONFIG.model_copy(update={"diffusion": diffusion, "denoiser": denoiser})
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = Denoiser(config).eval().requires_grad_(False)
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("knowing") / "tiny"
    save_model(Model(config, tiny_model().autoencoder, network, fps=7), path)
    return path


class StopAt(Silent):
    """Interrupts at a network step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self, by: int = 1, **figures: object) -> None:
        self.left -= by
        if not self.left:
            raise KeyboardInterrupt


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def frames_of(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return np.asarray(file["frames"])


@pytest.mark.parametrize(
    ("sampler", "lengths"),
    [("ddim", (9, 23)), ("ddim", (1, 8, 16, 23)), ("heun", (22, 23))],
)
def test_a_longer_video_is_the_one_drawn_in_one_go(
    model: Path, tmp_path: Path, sampler: str, lengths: tuple[int, ...]
) -> None:
    for frames in lengths:
        done = api.sample(model, tmp_path / "a", num=2, frames=frames, sampler=sampler, **QUICK)
    assert (done.made, done.continued, done.frames) == (2, 2, 23)
    api.sample(model, tmp_path / "b", num=2, frames=23, sampler=sampler, **QUICK)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize(
    "how",
    [
        {"prefix": "VIDEO"},
        {"prefix": "VIDEO", "keep_prefix": True},
        {"prefix": "VIDEO", "keep_prefix": True, "format": "png"},
        {"init": "VIDEO", "strength": 0.5},
        {"between": (3, 8), "num": 3},
        {"seeds": (5, 1)},
        {"class_name": "run", "class_guidance": 1.0},
        {"class_name": "each", "num": 4},
        {"guidance": 0.5, "num": 2},  # classes by lot
    ],
    ids=lambda how: "-".join(how),
)
@pytest.mark.parametrize("lengths", [(3, 17), (1, 8, 9, 17)])
@pytest.mark.slow
def test_whatever_videos_start_from_longer_ones_are_those_drawn_in_one_go(
    knowing: Path, tmp_path: Path, how: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    if "VIDEO" in how.values():
        write_skies(tmp_path / "skies", 1, frames=11)
        video = next((tmp_path / "skies").glob("*.mp4"))
        how = {key: video if value == "VIDEO" else value for key, value in how.items()}
    run = {**QUICK, **how}
    for frames in lengths:
        done = api.sample(knowing, tmp_path / "a", frames=frames, **run)
    assert done.continued == done.made == len(done.videos)
    once = api.sample(knowing, tmp_path / "b", frames=17, **run)
    longer, whole = content(tmp_path / "a"), content(tmp_path / "b")
    assert longer.keys() == whole.keys()
    differ = {name for name in whole if longer[name] != whole[name]}
    # A png says of itself how many frames were asked for when it was drawn.
    assert not differ or all(name.endswith(".png") for name in differ)
    for pair in zip(done.videos, once.videos, strict=True):
        a, b = map(read_back, pair)
        assert np.array_equal(a, b)
        assert len(b) == 17 + (4 if "keep_prefix" in how else 0)
    again = api.sample(knowing, tmp_path / "a", frames=17, **run)
    assert again.made == 0


def read_back(video: Path) -> np.ndarray:
    """Frames of a lossless video."""
    return frames_of(video) if video.suffix == ".npz" else read.read(video)


def test_a_longer_video_starts_where_the_shorter_one_did(plain: Path, tmp_path: Path) -> None:
    short = frames_of(api.sample(plain, tmp_path, frames=10, **QUICK).videos[0])
    long = frames_of(api.sample(plain, tmp_path, frames=30, **QUICK).videos[0])
    assert np.array_equal(long[:10], short)
    with pytest.raises(PvdmError, match="frames 30 instead of 10"):
        api.sample(plain, tmp_path, frames=10, **QUICK)


@pytest.mark.parametrize("step", [6, 17])
def test_an_interrupted_run_keeps_what_it_drew_and_goes_on_with_it(
    model: Path, tmp_path: Path, step: int
) -> None:
    run = {**QUICK, "num": 3, "frames": 13, "batch_size": 1}
    with pytest.raises(KeyboardInterrupt):
        api.sample(model, tmp_path / "a", reporter=StopAt(step), **run)
    found = sorted((tmp_path / "a").glob("video-*.json"))
    kept = [json.loads(path.read_text())["settings"]["frames"] for path in found]
    assert kept
    assert min(kept) > 0
    assert len(frames_of(found[-1].with_suffix(".npz"))) == kept[-1]
    assert not list((tmp_path / "a").glob(".*"))
    again = api.sample(model, tmp_path / "a", **run)
    assert again.continued == (kept[-1] < 13)
    api.sample(model, tmp_path / "b", **run)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_model_that_is_being_trained_is_drawn_from_like_any_other(tmp_path: Path) -> None:
    model = tiny_model()
    assert model.denoiser is not None
    for network in (model.autoencoder, model.denoiser):
        network.requires_grad_(True)
    request = SampleRequest(frames=9, format="npz", sampling=Sampling(steps=Steps(2, 2)))
    generate(model, tmp_path, request)
    assert len(frames_of(tmp_path / "video-00000.npz")) == 9


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("clip", [1, 2])
def test_a_clip_whose_decoding_is_interrupted_is_kept_unless_that_comes_twice(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: int, times: int
) -> None:
    """On a CPU the thread that draws decodes too, and so is the one that is interrupted."""
    run = {**QUICK, "num": 2, "frames": 13, "batch_size": 2}
    decode, calls = Autoencoder.decode, []

    def interrupted(self: Autoencoder, z: Planes) -> torch.Tensor:
        calls.append(threading.current_thread())
        if clip <= len(calls) < clip + times:
            raise KeyboardInterrupt
        return decode(self, z)

    with monkeypatch.context() as patch:
        patch.setattr(Autoencoder, "decode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.sample(model, tmp_path / "a", **run)
    assert set(calls) == {threading.current_thread()}
    kept = sorted((tmp_path / "a").glob("video-*.npz"))
    assert len(kept) == (2 if times == 1 else 0)
    assert times == 1 or not list((tmp_path / "a").iterdir())
    again = api.sample(model, tmp_path / "a", **run)
    assert again.continued == (2 if times == 1 else 0)
    api.sample(model, tmp_path / "b", **run)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_an_interruption_that_comes_twice_leaves_no_video_that_is_not_whole(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a notebook both raise: the second one where the first one waits for what is drawn."""
    run = {**QUICK, "num": 4, "frames": 13, "batch_size": 2}
    join = threading.Thread.join

    def interrupted(self: threading.Thread, timeout: float | None = None) -> None:
        if self.name == "scribe":
            monkeypatch.setattr(threading.Thread, "join", join)
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        api.sample(plain, tmp_path / "a", reporter=StopAt(6), **run)
    assert list((tmp_path / "a").iterdir()) == []
    assert api.sample(plain, tmp_path / "a", **run).made == 4
    api.sample(plain, tmp_path / "b", **run)
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("kind", ["mp4", "webp", "png"])
def test_other_formats_go_on_without_losing_what_they_have(
    plain: Path, tmp_path: Path, kind: str
) -> None:
    run = {**QUICK, "format": kind}
    video = api.sample(plain, tmp_path / "a", frames=9, **run).videos[0]
    before = read.read(video)
    api.sample(plain, tmp_path / "a", frames=26, **run)
    whole = api.sample(plain, tmp_path / "b", frames=26, **run).videos[0]
    found = read.read(video)
    assert np.array_equal(found[:9], before)  # not compressed a second time
    expected = read.read(whole).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < (0.5 if kind == "png" else 6)
    if kind == "mp4":
        words = [get_ffmpeg_exe(), "-v", "warning", "-i", str(video), "-f", "null", "-"]
        told = subprocess.run(words, capture_output=True, text=True, check=True)
        assert told.stderr == ""


def test_a_longer_gif_is_drawn_anew(plain: Path, tmp_path: Path) -> None:
    run = {**QUICK, "format": "gif"}
    api.sample(plain, tmp_path / "a", frames=5, **run)
    again = api.sample(plain, tmp_path / "a", frames=9, **run)
    assert (again.made, again.continued) == (1, 0)
    api.sample(plain, tmp_path / "b", frames=9, **run)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    place = tmp_path / "a/video-00000.gif"
    with (
        pytest.raises(PvdmError, match="one palette for all its frames"),
        write.open_writer(place, fps=7, height=16, width=24, old=write.Old(place, 5)),
    ):
        pass


def test_what_cannot_be_continued_says_why(plain: Path, tmp_path: Path) -> None:
    api.sample(plain, tmp_path, frames=9, **QUICK)
    state = tmp_path / "state/video-00000.safetensors"
    saved = state.read_bytes()
    state.write_bytes(saved[:100])
    with pytest.raises(PvdmError, match=r"not a readable state"):
        api.sample(plain, tmp_path, frames=19, **QUICK)
    state.unlink()
    with pytest.raises(PvdmError, match="has 9 frames and no state"):
        api.sample(plain, tmp_path, frames=19, **QUICK)
    state.write_bytes(saved)
    shutil.copy(api.sample(plain, tmp_path / "c", frames=4, **QUICK).videos[0], tmp_path)
    with pytest.raises(PvdmError, match="changed since it was written"):
        api.sample(plain, tmp_path, frames=19, **QUICK)


def test_a_batch_that_does_not_fit_is_halved_until_it_does(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, asked = Denoiser.forward, []

    def small(self: Denoiser, z_t: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        asked.append(len(z_t))
        if len(z_t) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, z_t, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Denoiser, "forward", small)
    with pytest.raises(PvdmError, match="smaller --batch-size"):
        api.sample(plain, tmp_path, num=4, batch_size=2, frames=5, **QUICK)
    asked.clear()
    assert api.sample(plain, tmp_path, num=4, frames=5, **QUICK).made == 4
    assert asked == [4, 2] + [1] * 4 * 6


def command(model: Path, out: Path, *options: str) -> list[str]:
    words = ["sample", str(model), "--steps", "4/2", "--device", "cpu", "--out", str(out)]
    return [sys.executable, "-m", "pvdm_cli.cli.app", *words, *options]


def wait_for(folder: Path, pattern: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a file is there that holds something."""
    for _ in range(600):
        if any(path.stat().st_size for path in folder.glob(pattern)):
            return
        assert process.poll() is None
        time.sleep(0.05)
    raise AssertionError(f"{pattern} did not come")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143)],
)
def test_a_stopped_process_leaves_a_video_that_plays_and_goes_on(
    plain: Path, tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(command(plain, out, "--frames", "100000"))
    wait_for(out, ".video-00000.mp4.*", process)
    process.send_signal(sent)
    assert process.wait(30) == code
    assert sorted(path.name for path in out.iterdir()) == [
        "state", "video-00000.json", "video-00000.mp4",
    ]  # fmt: skip
    kept = json.loads((out / "video-00000.json").read_text())["settings"]["frames"]
    words = [get_ffmpeg_exe(), "-v", "warning", "-i", str(out / "video-00000.mp4")]
    ffmpeg = [*words, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    played = subprocess.run(ffmpeg, capture_output=True, check=True)
    assert played.stderr == b""
    assert len(played.stdout) == kept * 16 * 24 * 3
    longer = ["--frames", str(kept + 9), "-q"]
    subprocess.run(command(plain, out, *longer), check=True, capture_output=True)
    assert len(read.read(out / "video-00000.mp4")) == kept + 9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "format"), [(signal.SIGINT, "mp4"), (signal.SIGTERM, "npz")], ids=["SIGINT", "SIGTERM"]
)
def test_a_second_signal_ends_the_process_at_once_and_nothing_half_written_counts(
    tmp_path: Path, sent: signal.Signals, format: str
) -> None:
    """Eight videos of the demo model: their last clips take a while to be decoded."""
    out, options = tmp_path / "out", ["--num", "8", "--format", format, "--steps", "2/1"]
    words = command(Path("demo"), out, *options, "--frames", "2000")
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        wait_for(out, f".video-00000.{format}.*", process)
        process.send_signal(sent)
        told = ""
        while "once more quits at once" not in told:
            told += process.stderr.read(1)
        process.send_signal(sent)
        asked = time.monotonic()
        assert process.wait(30) == -sent  # 130 or 143 to a shell
        assert time.monotonic() - asked < 5
    assert list(out.glob("video-*.json")) == []
    again = command(Path("demo"), out, *options, "--frames", "20", "--json", "-q")
    done = subprocess.run(again, check=True, capture_output=True, text=True)
    assert json.loads(done.stdout)["made"] == 8
    assert list(out.glob(".*")) == []
    once = tmp_path / "once"
    api.sample("demo", once, num=8, frames=20, steps="2/1", format=format, device="cpu")
    assert content(out) == content(once)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 3])
def test_a_killed_run_of_forty_makes_exactly_what_is_missing(
    plain: Path, tmp_path: Path, size: int
) -> None:
    options = ["--num", "40", "--frames", "25", "--batch-size", str(size), "--format", "npz", "-q"]
    subprocess.run(command(plain, tmp_path / "whole", *options), check=True, capture_output=True)
    out = tmp_path / "out"
    for wanted in ("video-00004.json", "video-00019.json"):
        process = subprocess.Popen(command(plain, out, *options), stdout=subprocess.DEVNULL)
        wait_for(out, wanted, process)
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("video-*.json")}
    last = subprocess.run(
        command(plain, out, *options, "--json"), check=True, capture_output=True, text=True
    )
    assert json.loads(last.stdout)["made"] == 40 - len(before)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("video-*.json")}
    assert {name: after[name] for name in before} == before
    found, whole = content(out), content(tmp_path / "whole")
    assert found.keys() == whole.keys()
    assert len(whole) == 120
    differ = {Path(name).stem for name in whole if found[name] != whole[name]}
    assert len(differ) <= 2 * (size - 1)  # two batches were at their ends when they were killed
    for name in differ:
        again, once = (frames_of(where / f"{name}.npz") for where in (out, tmp_path / "whole"))
        assert np.abs(again.astype(int) - once).max() <= 1  # float rounding


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    peaks = []
    for frames in ("128", "2500"):  # of 12 KiB each: 30 MB more
        out = tmp_path / frames
        words = command(Path("demo"), out, "--frames", frames, "--steps", "1/1", "--json")
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks.append(json.loads(done.stdout)["peak_memory_bytes"])
    assert peaks[1] < peaks[0] + 12 * 2**20
