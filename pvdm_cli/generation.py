"""Sampling runs: videos drawn, written as their clips become ready, and described by sidecars.

A run's folder holds `video-00000.mp4` and `video-00000.json` for each video. A sidecar is written
after its video is whole and says how it was made; the same run again makes what is missing.

Axes: b videos of a batch, s frames of a clip, H x W pixels.
"""

import json
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli.classes import NO_CLASS, draw_class, find_class
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import make_folder, write_json
from pvdm_cli.model import Model, fingerprint
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.rollout import rollout
from pvdm_cli.runtime import generator, peak_memory, reset_peak_memory
from pvdm_cli.sampling import PUBLISHED, Sampling
from pvdm_cli.video import pixels, read, write

FORMATS = ("mp4", "gif", "webp", "png", "npz")
GRID_FORMATS = ("mp4", "gif", "webp")
OPTIONS = (  # settings that are options of the command
    *("frames", "steps", "sampler", "spacing", "eta", "variance", "guidance", "guidance_interval"),
    *("prefix_noise", "seed", "format", "fps", "class", "class_guidance"),
)


@dataclass(frozen=True, kw_only=True)
class SampleRequest:
    """What to draw and how to write it.

    Attributes:
        frames: Frames of each video; the last clip is cut.
        num: Videos; video i depends on (seed, i) and the settings alone, not on num.
        sampling: Steps, sampler, eta, guidance.
        class_name: Name or number of the class of all videos, or "none". None draws the class of
            each by lot, by (seed, i), where the model knows classes.
        seed: Seed of the run.
        batch_size: Videos drawn at once; changes speed and memory, not the videos.
        format: mp4, gif, webp, png (a folder of frames) or npz.
        fps: Frame rate written; the model's own when None.
        grid: Also write all videos side by side as grid.mp4, grid.gif or grid.webp.
        overwrite: Replace what an earlier run left in the folder.
    """

    frames: int = 128
    num: int = 1
    sampling: Sampling = PUBLISHED
    class_name: str | None = None
    seed: int = 0
    batch_size: int = 4
    format: str = "mp4"
    fps: float | None = None
    grid: str | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Reject impossible values.

        Raises:
            PvdmError: Naming the option, its value and what is allowed.
        """
        for name in ("frames", "num", "batch_size"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise PvdmError(f"--{option} {getattr(self, name)}: expected 1 or more")
        if self.format not in FORMATS:
            raise PvdmError(f"--format {self.format!r}: choose {', '.join(FORMATS)}")
        if self.grid is not None and self.grid not in GRID_FORMATS:
            raise PvdmError(f"--grid {self.grid!r}: choose {', '.join(GRID_FORMATS)}")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise PvdmError(f"--fps {self.fps}: expected a number above 0, at most 1000")


@dataclass(frozen=True)
class SampleResult:
    """The videos of a run, those found from before included."""

    out: Path
    videos: list[Path]
    made: int
    grid: Path | None
    frames: int
    fps: float
    seconds: float
    peak_memory: int | None  # bytes, None where the system does not tell
    device: str

    @property
    def frames_per_second(self) -> float:
        """Speed of this run."""
        return self.made * self.frames / self.seconds if self.made else 0.0


def generate(
    model: Model,
    out: Path,
    request: SampleRequest,
    *,
    origin: Sequence[str] = ("MODEL",),
    reporter: Reporter = SILENT,
) -> SampleResult:
    """Draw the videos that are not there yet (Algorithm 1) and write them to a folder.

    Args:
        model: With a denoiser, on the device to sample on.
        out: Folder of the run, made when absent.
        request: What to draw.
        origin: How the model was named on the command line, e.g. ("runs/sky", "--checkpoint",
            "20000"): for messages and sidecars.
        reporter: Told about each network step.

    Raises:
        PvdmError: If the request is impossible, the folder holds videos made with other settings,
            nothing can be written there, or memory runs out.
    """
    request.check()
    model.require_denoiser(origin[0])
    assert model.config.diffusion is not None
    request.sampling.check(model.config.diffusion)
    request.sampling.check_labels(_labels(model, request, [0], origin[0]), model.config)
    fps = _frame_rate(model, request, origin[0])
    settings = run_settings(model, request, fps)
    make_folder(out)
    if request.overwrite:
        _clear(out)
    done = _finished(out, settings)
    missing = [i for i in range(request.num) if i not in done]
    reset_peak_memory(model.device)
    started = time.perf_counter()
    batches = [
        missing[k : k + request.batch_size] for k in range(0, len(missing), request.batch_size)
    ]
    clips = model.config.num_clips(request.frames)
    reporter.start(
        "sampling",
        total=len(batches) * request.sampling.num_calls(model.schedule, clips),
        unit="step",
    )
    try:
        for batch in batches:
            labels = _labels(model, request, batch, origin[0])
            _draw_batch(model, out, request, fps, batch, labels, reporter)
            for i in batch:
                write_json(_sidecar(out, i), _description(model, request, settings, origin, i))
    finally:
        reporter.done()
    seconds = time.perf_counter() - started
    videos = [_video(out, i, request.format) for i in range(request.num)]
    return SampleResult(
        out=out,
        videos=videos,
        made=len(missing),
        grid=_write_grid(out, videos, request.grid, fps) if request.grid else None,
        frames=request.frames,
        fps=fps,
        seconds=seconds,
        peak_memory=peak_memory(model.device),
        device=str(model.device),
    )


def run_settings(model: Model, request: SampleRequest, fps: float) -> dict[str, Any]:
    """Everything a video depends on besides its number; two runs may share a folder if equal."""
    assert model.denoiser is not None
    return {
        "autoencoder": model.fingerprint,
        "denoiser": fingerprint(model.denoiser),
        "frames": request.frames,
        "steps": str(request.sampling.steps),
        "sampler": request.sampling.sampler,
        **_sampler_settings(request.sampling),
        "guidance": float(request.sampling.guidance),
        "prefix_noise": float(request.sampling.prefix_noise),
        **_class_settings(model, request),
        "seed": request.seed,
        "format": request.format,
        "fps": fps,
    }


def _sampler_settings(sampling: Sampling) -> dict[str, Any]:
    """Settings of the sampler; newer ones only if used, so that older folders can be continued."""
    used: dict[str, Any] = {}
    if sampling.sampler in ("ddim", "ddpm"):
        used["eta"] = 1.0 if sampling.eta is None else float(sampling.eta)
    if sampling.spacing != "published":
        used["spacing"] = sampling.spacing
    if sampling.variance == "large":
        used["variance"] = sampling.variance
    if not sampling.guided_everywhere:
        used["guidance_interval"] = ",".join(f"{end:.12g}" for end in sampling.guidance_interval)
    return used


def _class_settings(model: Model, request: SampleRequest) -> dict[str, Any]:
    """Settings of a model that knows classes; the class is None where it is drawn by lot."""
    classes, name = model.config.classes, request.class_name
    if not classes:
        return {}
    if name is not None:
        name = _name(classes, find_class(classes, name, "this model"))
    return {"class": name, "class_guidance": float(request.sampling.class_guidance)}


def _labels(
    model: Model, request: SampleRequest, numbers: Sequence[int], name: str
) -> Tensor | None:
    """Label of each of these videos, int64 [b]; None for a model that knows no classes.

    Raises:
        PvdmError: If the class asked for is not one of the model's.
    """
    classes = model.config.classes
    if request.class_name is not None:
        label = find_class(classes, request.class_name, name)
        return torch.full((len(numbers),), label, device=model.device)
    if not classes:
        return None
    drawn = [draw_class(len(classes), request.seed, i) for i in numbers]
    return torch.tensor(drawn, device=model.device)


def _name(classes: Sequence[str], label: int) -> str:
    """Name of a label."""
    return NO_CLASS if label < 0 else classes[label]


def _frame_rate(model: Model, request: SampleRequest, name: str) -> float:
    """Return the frame rate asked for, or that of the videos the model was trained on."""
    fps = request.fps or model.fps
    if fps is None:
        raise PvdmError(f"{name} does not know the frame rate of its videos; give one with --fps")
    return float(fps)


def _draw_batch(
    model: Model,
    out: Path,
    request: SampleRequest,
    fps: float,
    numbers: Sequence[int],
    labels: Tensor | None,
    reporter: Reporter,
) -> None:
    """Draw the videos of these numbers together, each written as its clips become ready."""
    clip = model.config.clip
    left = request.frames
    stream = rollout(
        model,
        model.config.num_clips(request.frames),
        generators=[generator(model.device, request.seed, i) for i in numbers],
        sampling=request.sampling,
        labels=labels,
        on_step=lambda k, num_steps: reporter.advance(),
    )
    try:
        with ExitStack() as stack:
            writers = [
                stack.enter_context(
                    write.open_writer(
                        _video(out, i, request.format),
                        fps=fps,
                        height=clip.height,
                        width=clip.width,
                    )
                )
                for i in numbers
            ]
            for x in stream:
                frames = pixels.to_uint8(x[:, :, :left]).cpu().numpy()  # [b, s, H, W, 3]
                for writer, piece in zip(writers, frames, strict=True):
                    writer.write(piece)
                left -= frames.shape[1]
    except torch.OutOfMemoryError as error:
        raise PvdmError(
            f"{model.device} ran out of memory drawing {len(numbers)} videos at once; "
            "use a smaller --batch-size, or --device cpu"
        ) from error


def _description(
    model: Model,
    request: SampleRequest,
    settings: dict[str, Any],
    origin: Sequence[str],
    number: int,
) -> dict[str, Any]:
    """Say how one video was made: enough to make it again."""
    label = _labels(model, request, [number], origin[0])
    classes = model.config.classes
    return {
        "video": number,
        **({} if label is None else {"class": _name(classes, int(label))}),
        "file": _video(Path(), number, request.format).name,
        "command": _command(model, request, settings, origin),
        "settings": settings,
        "model": origin[0],
        "config": model.config.model_dump(mode="json"),
        "device": _device_name(model.device),
        "dtype": str(next(model.autoencoder.parameters()).dtype).removeprefix("torch."),
        "version": version("pvdm"),
        "torch": torch.__version__,
    }


def _command(
    model: Model, request: SampleRequest, settings: dict[str, Any], origin: Sequence[str]
) -> str:
    """Write the command that makes this run again."""
    words = ["pvdm", "sample", *origin, "--num", str(request.num)]
    for option in [key for key in OPTIONS if settings.get(key) is not None]:
        words += [f"--{option.replace('_', '-')}", f"{settings[option]}"]
    # The device belongs to it: CPU and CUDA generators draw different numbers from one seed.
    return shlex.join([*words, "--device", model.device.type])


def _device_name(device: torch.device) -> str:
    """Name the device and, where there is one, the card."""
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    )


def _video(out: Path, number: int, kind: str) -> Path:
    """Where a video goes; png is a folder of frames."""
    return out / (f"video-{number:05d}" if kind == "png" else f"video-{number:05d}.{kind}")


def _sidecar(out: Path, number: int) -> Path:
    """Where the description of a video goes."""
    return out / f"video-{number:05d}.json"


def _descriptions(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the sidecars of a folder; what is not one of ours is passed over."""
    for path in sorted(out.glob("video-*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and {"video", "file", "settings"} <= found.keys():
            yield path, found


def _finished(out: Path, settings: dict[str, Any]) -> set[int]:
    """Find the numbers of the videos that are there already.

    Raises:
        PvdmError: If one was made with other settings, naming those that differ.
    """
    done = set()
    for path, found in _descriptions(out):
        theirs = found["settings"]
        if theirs != settings:
            keys = [k for k in {**settings, **theirs} if theirs.get(k) != settings.get(k)]
            told = ", ".join(
                f"{key} {theirs.get(key, 'unset')} instead of {settings.get(key, 'unset')}"
                for key in keys
            )
            raise PvdmError(
                f"{path} was made with other settings ({told}); choose another --out, or replace "
                "it with --overwrite"
            )
        if (out / found["file"]).exists():
            done.add(int(found["video"]))
    return done


def _clear(out: Path) -> None:
    """Remove the videos of earlier runs with their sidecars; other files stay."""
    for path, found in list(_descriptions(out)):
        path.unlink()
        video = out / Path(found["file"]).name
        if video.is_dir():
            shutil.rmtree(video)
        else:
            video.unlink(missing_ok=True)


def _write_grid(out: Path, videos: Sequence[Path], kind: str, fps: float) -> Path:
    """Lay the videos side by side, read back frame by frame: memory does not grow with length."""
    path = out / f"grid.{kind}"
    with ExitStack() as stack:
        writer = None
        for frames in zip(*(_frames(video) for video in videos), strict=True):
            picture = write.grid([frame[None] for frame in frames])  # [1, H', W', 3]
            if writer is None:
                height, width = picture.shape[1:3]
                opened = write.open_writer(path, fps=fps, height=height, width=width)
                writer = stack.enter_context(opened)
            writer.write(picture)
    return path


def _frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Read the frames of a written video again, one by one."""
    if path.suffix == ".npz":
        with np.load(path) as file:
            yield from file["frames"]
    else:
        yield from read.stream(path)
