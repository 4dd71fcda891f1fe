"""What a path is: a model, a run, a cache, a preset, a video or a folder of them.

Reads only descriptions (JSON, YAML, the headers of weight files) and loads no torch, but for weights
of the original implementation, which have no description.
"""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pvdm_cli import hub
from pvdm_cli.config import ModelConfig, RunConfig, load_config, parse_config
from pvdm_cli.errors import DataError, ModelError, PvdmError, did_you_mean
from pvdm_cli.published.paths import published_files
from pvdm_cli.shipped import PACKAGE, preset_names

Facts = dict[str, Any]


class Description(NamedTuple):
    """What was found: its kind, where, and facts about it (JSON values)."""

    kind: str
    path: str
    facts: Facts


def describe(path_or_name: str | Path) -> Description:
    """Tell what a path, the name of a preset, `demo` or `hf:owner/name` stands for.

    Raises:
        PvdmError: If there is nothing there, or it is damaged.
    """
    name = str(path_or_name)
    path = Path(path_or_name)
    published = [] if path.is_dir() else published_files(name)
    if not path.exists() and not published:
        if name == "demo":
            path = PACKAGE / "demo_model"
        elif name.startswith("hf:") and (on_hub := hub.parse(name)):
            path = hub.fetch(on_hub)
        elif name in preset_names():
            return Description("preset", name, _config_facts(load_config(name)))
        else:
            raise PvdmError(
                f"{name}: no such file or folder, nor a preset{did_you_mean(name, preset_names())}"
            )
    if published:
        return Description("published weights", name, _published(published))
    if path.is_dir():
        kind, facts = _folder(path)
    elif path.suffix in {".yaml", ".yml"}:
        kind, facts = "preset", _config_facts(load_config(path))
    else:
        kind, facts = _videos(path)
    return Description(kind, str(path), facts)


def describe_cache(path: Path) -> Description:
    """Tell what a latent cache holds, finished or not.

    Raises:
        DataError: If it is none, or its manifest is damaged.
    """
    return Description("cache", str(path), _cache(path))


def _folder(path: Path) -> tuple[str, Facts]:
    """Tell folders apart by the file that describes them."""
    readers: dict[str, tuple[str, Callable[[Path], Facts]]] = {
        "model.json": ("model", _model),
        "manifest.json": ("cache", _cache),
        "checkpoints": ("run", _run),
        "config.yaml": ("run", _run),
    }
    for marker, (kind, read) in readers.items():
        if (path / marker).exists():
            return kind, read(path)
    if files := published_files(path):
        return "published weights", _published(files)
    return _videos(path)


def _published(files: list[Path]) -> Facts:
    """Facts of weights of the original implementation, which are read for it: torch is loaded."""
    from pvdm_cli.published.pair import read_pair

    pair = read_pair(files)
    networks = {
        kind: {
            "parameters": sum(value.numel() for value in weights.values()),
            "file": pair.files[kind].name,
        }
        for kind, weights in pair.weights.items()
    }
    return {**_size_facts(pair.config), "networks": networks, "preset": pair.preset}


def _model(path: Path) -> Facts:
    """Facts of a model folder."""
    file = path / "model.json"
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        values, files = dict(card["config"]), dict(card["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file}: damaged, not a model description; copy the model again"
        ) from error
    return {
        **_size_facts(parse_config(ModelConfig, values, where=str(file))),
        "fps": card.get("fps"),
        "networks": {
            name.removesuffix(".safetensors"): _weights(path / name, listed)
            for name, listed in files.items()
        },
        "provenance": card.get("provenance", {}),
    }


def _weights(file: Path, listed: Facts) -> Facts:
    """Facts of one weight file, from the header that says each tensor's shape and dtype."""
    if not file.is_file():
        raise ModelError(f"{file}: missing, though model.json lists it; copy the model again")
    size = file.stat().st_size
    if size != listed.get("bytes"):
        raise ModelError(
            f"{file}: {size} bytes where model.json says {listed.get('bytes')}: the file is "
            "truncated or changed; copy the model again"
        )
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(min(length, size)))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        count = sum(math.prod(entry["shape"]) for entry in tensors)
        kinds = sorted({entry["dtype"] for entry in tensors})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not a safetensors file; copy the model again") from error
    return {"parameters": count, "dtype": ", ".join(kinds), "bytes": size}


def _run(path: Path) -> Facts:
    """Facts of a run folder."""
    config = path / "config.yaml"
    if not config.is_file():
        raise ModelError(f"{config}: missing; is {path} a run folder?")
    steps = [
        int(folder.name.removeprefix("step-"))
        for folder in sorted((path / "checkpoints").glob("step-????????"))
    ]
    latest = path / "latest"
    return {
        **_config_facts(load_config(config)),
        "checkpoints": steps,
        "latest": latest.read_text(encoding="utf-8").strip() if latest.is_file() else None,
        "last_metrics": _last_line(path / "metrics.jsonl"),
    }


def _last_line(path: Path) -> Facts | None:
    """Last whole line of a jsonl file; a run that is being written may end in half a line."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in reversed(lines):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        return found if isinstance(found, dict) else None
    return None


def _cache(path: Path) -> Facts:
    """Facts of a latent cache, finished or not."""
    from pvdm_cli.data.cache_format import read_manifest

    manifest = read_manifest(path)
    shape = manifest.shape
    return {
        "complete": manifest.complete,
        "clips": manifest.clips,
        "videos": manifest.videos,
        "skipped": manifest.skipped,
        "classes": _classes(path, manifest.labels),
        "bytes": manifest.bytes,
        "shards": len(manifest.shards),
        "sha256": manifest.sha256,
        "fp16_loss": manifest.fp16_loss.model_dump() if manifest.fp16_loss else None,
        "clip": manifest.clip.model_dump(),
        "window_stride": manifest.window_stride,
        "latent": [shape.c, shape.flat],
        "fps": manifest.fps,
        "autoencoder": manifest.autoencoder,
        "fingerprint": manifest.fingerprint,
        "source": manifest.source,
    }


def _classes(path: Path, labels: tuple[str, ...]) -> Facts | None:
    """Encoded videos of each class of a cache, and of none; None for a cache without classes."""
    from pvdm_cli.data.cache_format import read_skipped, read_videos

    if not labels:
        return None
    skipped = {entry.video for entry in read_skipped(path)}
    counts = Counter(row.label for row in read_videos(path) if row.video not in skipped)
    without = {"(none)": counts[-1]} if counts[-1] else {}
    return {name: counts[label] for label, name in enumerate(labels)} | without


def _video(path: Path) -> Facts:
    """Facts of one video."""
    from pvdm_cli.video.read import probe

    info = probe(path)
    facts = info._asdict()
    del facts["path"]
    if info.num_frames is not None:
        del facts["estimate"]
    if not info.truncated:
        del facts["truncated"]
    return facts


def _videos(path: Path) -> tuple[str, Facts]:
    """Facts of a video (a file or a folder of frames) or of several (a folder, a table, an array)."""
    from pvdm_cli.data.catalog import find_videos
    from pvdm_cli.data.table import is_table

    try:
        sources = find_videos(path)
    except DataError as error:
        if path.is_file():
            raise
        raise PvdmError(f"{path}: neither a model, a run nor a cache, and {error}") from error
    if len(sources) == 1 and sources[0].path == path and not is_table(path):
        return "video", _video(path)
    return "videos", {"videos": len(sources), "first": sources[0].name, "last": sources[-1].name}


def _config_facts(config: RunConfig) -> Facts:
    """Facts of a training configuration."""
    training = config.training
    return {
        "stage": config.stage,
        **_size_facts(config),
        "steps": training.steps,
        "batch": f"{training.batch_size or 'auto'} x {training.accumulation}",
        "lr": training.lr,
        "init": config.init,
    }


def _size_facts(config: ModelConfig) -> Facts:
    """Sizes of clips and latents."""
    clip, latent = config.clip, config.latent
    return {
        "clip": f"{clip.frames} frames of {clip.height}x{clip.width}, stride {clip.frame_stride}",
        "latent": f"[{latent.c}, {latent.flat}] = {latent.c} x ({latent.h}x{latent.w} + "
        f"{latent.s}x{latent.w} + {latent.s}x{latent.h})",
        "denoiser": config.denoiser.base_channels if config.denoiser else None,
        "classes": list(config.classes) or None,
        "objective": config.diffusion.objective if config.diffusion else None,
        "overlap": config.diffusion.overlap if config.diffusion else None,
    }
