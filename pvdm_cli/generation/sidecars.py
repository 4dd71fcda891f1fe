"""What lies beside a video: `NAME.json` says how it was made, `state/NAME.safetensors` goes on.

A sidecar is written after its video is whole; the same run again makes what is missing.
"""

import json
import os
import shlex
import shutil
from collections.abc import Collection, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from pvdm_cli.classes import NO_CLASS, find_class, in_turn
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import LEFTOVER
from pvdm_cli.generation.request import QUALITY, Item, SampleRequest
from pvdm_cli.model import Model
from pvdm_cli.sampling import Sampling

OPTIONS = (  # settings that are options of the command
    *("frames", "steps", "sampler", "spacing", "eta", "variance", "guidance", "guidance_interval"),
    *("prefix_noise", "no_clamp", "seed", "seeds", "between", "prefix", "keep_prefix", "init"),
    *("strength", "format", "quality", "fps", "class", "class_guidance", "precision"),
)


def run_settings(
    model: Model, request: SampleRequest, fps: float, digest: str | None
) -> dict[str, Any]:
    """Everything a video depends on besides its place in the run.

    Two runs may share a folder if these are equal; of two numbers of frames the smaller is a
    beginning of the larger.

    Args:
        model: What draws.
        request: What is asked for.
        fps: Frame rate written.
        digest: Hash of the clip that the videos start from, if there is one.
    """
    return {
        "autoencoder": model.fingerprint,
        "denoiser": model.denoiser_fingerprint,
        "frames": request.frames,
        "steps": str(request.sampling.steps),
        "sampler": request.sampling.sampler,
        **_sampler_settings(request.sampling),
        "guidance": float(request.sampling.guidance),
        "prefix_noise": float(request.sampling.prefix_noise),
        **_class_settings(model, request),
        **_start_settings(request, digest),
        "format": request.format,
        **({} if request.quality == QUALITY else {"quality": request.quality}),
        "fps": fps,
        # Videos that do not say are fp32: of before there was a choice.
        **({} if model.precision == "fp32" else {"precision": model.precision}),
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
    if not sampling.clamp:
        used["no_clamp"] = True
    return used


def _class_settings(model: Model, request: SampleRequest) -> dict[str, Any]:
    """Settings of a model that knows classes; the class is None where it is drawn by lot."""
    classes, name = model.config.classes, request.class_name
    if not classes:
        return {}
    if name is not None and not in_turn(classes, name):
        name = class_of(classes, find_class(classes, name, "this model"))
    return {"class": name, "class_guidance": float(request.sampling.class_guidance)}


def _start_settings(request: SampleRequest, digest: str | None) -> dict[str, Any]:
    """What the videos start from; a list of seeds is none: each video has its own."""
    used: dict[str, Any] = {}
    if request.between:
        used |= {"between": ",".join(map(str, request.between)), "num": request.num}
    elif not request.seeds:
        used["seed"] = request.seed
    if request.prefix is not None:
        used |= {"prefix": request.prefix, "keep_prefix": request.keep_prefix}
    if request.init is not None:
        used |= {"init": request.init, "strength": float(request.sampling.strength)}
    return used if digest is None else {**used, "start_sha256": digest}


def class_of(classes: Sequence[str], label: int) -> str:
    """Name of a label."""
    return NO_CLASS if label < 0 else classes[label]


def describe(
    model: Model,
    request: SampleRequest,
    settings: dict[str, Any],
    origin: Sequence[str],
    item: Item,
    label: int | None,
) -> dict[str, Any]:
    """Say how one video was made: enough to make it again."""
    return {
        "video": item.number,
        **({"seed": item.seed} if request.seeds else {}),
        **({"fraction": item.fraction} if request.between else {}),
        **({} if label is None else {"class": class_of(model.config.classes, label)}),
        "file": video_path(Path(), item, request.format).name,
        "command": _command(model, request, settings, origin),
        "settings": settings,
        "model": origin[0],
        "config": model.config.model_dump(mode="json"),
        "device": _device_name(model.device),
        "dtype": str(model.autoencoder.dtype).removeprefix("torch."),
        "version": version("pvdm"),
        "torch": torch.__version__,
    }


def about(description: dict[str, Any]) -> str:
    """What goes into the file itself, as JSON in ASCII: the sidecar without the configuration."""
    return json.dumps({key: value for key, value in description.items() if key != "config"})


def _command(
    model: Model, request: SampleRequest, settings: dict[str, Any], origin: Sequence[str]
) -> str:
    """Write the command that makes this run again."""
    words = ["pvdm", "sample", *origin]
    if request.seeds:
        words += ["--seeds", ",".join(map(str, request.seeds))]
    else:
        words += ["--num", str(request.num)]
    for option in [key for key in OPTIONS if settings.get(key) is not None]:
        if isinstance(settings[option], bool):
            words += [f"--{option.replace('_', '-')}"] * settings[option]
        else:
            words += [f"--{option.replace('_', '-')}", f"{settings[option]}"]
    # The device belongs to it: CPU and CUDA generators draw different numbers from one seed.
    return shlex.join([*words, "--device", model.device.type])


def _device_name(device: torch.device) -> str:
    """Name the device and, where there is one, the card."""
    return (
        f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
    )


def video_path(out: Path, item: Item, kind: str) -> Path:
    """Where a video goes; png is a folder of frames."""
    return out / (item.name if kind == "png" else f"{item.name}.{kind}")


def sidecar_path(out: Path, name: str) -> Path:
    """Where the description of a video goes."""
    return out / f"{name}.json"


def state_path(out: Path, name: str) -> Path:
    """Where the state of a video goes, from which it can be continued."""
    return out / "state" / f"{name}.safetensors"


def _descriptions(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the sidecars of a folder; what is not one of ours is passed over."""
    for path in sorted(out.glob("*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and {"video", "file", "settings"} <= found.keys():
            yield path, found


def existing(out: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Find the videos that are there already: descriptions by name.

    Raises:
        PvdmError: If one was made with other settings or is longer, naming what differs.
    """
    found = {}
    for path, description in _descriptions(out):
        theirs = description["settings"]
        shorter = theirs.get("frames", 0) <= settings["frames"]
        keys = [
            key
            for key in {**settings, **theirs}
            if theirs.get(key) != settings.get(key) and not (key == "frames" and shorter)
        ]
        if keys:
            told = ", ".join(
                f"{key} {theirs.get(key, 'unset')} instead of {settings.get(key, 'unset')}"
                for key in keys
            )
            raise PvdmError(
                f"{path} was made with other settings ({told}); choose another --out, or replace "
                "it with --overwrite"
            )
        if (out / description["file"]).exists():
            found[path.stem] = description
    return found


def clear(out: Path) -> None:
    """Remove the videos of earlier runs with what lies beside them; other files stay."""
    for path, found in list(_descriptions(out)):
        path.unlink()
        state_path(out, path.stem).unlink(missing_ok=True)
        video = out / Path(found["file"]).name
        if video.is_dir():
            shutil.rmtree(video)
        else:
            video.unlink(missing_ok=True)
    state = out / "state"
    if state.is_dir() and not any(state.iterdir()):
        state.rmdir()


def sweep(out: Path, names: Collection[str]) -> None:
    """Remove what killed processes left of these videos; those of living ones stay."""
    for path in out.iterdir():
        found = LEFTOVER.match(path.name)
        if not found or Path(found["name"]).stem not in names or _alive(path.name):
            continue
        place = path.with_name(found["name"])
        if found["kind"] == "old" and not place.exists():
            path.replace(place)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(name: str) -> bool:
    """Whether the process that a temporary file is named after still runs here."""
    number = next(int(part) for part in reversed(name.split(".")) if part.isdecimal())
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
