"""Model: the configuration, both networks and the schedule; where they are kept and how they load.

A model folder holds `model.json`, `autoencoder.safetensors` and `denoiser.safetensors`; either
network may be absent. A run folder is accepted wherever a model folder is.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pvdm_cli.config import PACKAGE, ModelConfig, parse_config
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.errors import ConfigError, ModelError, PvdmError
from pvdm_cli.files import atomic_folder, sha256, write_json
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.runtime import resolve_device

FORMAT = 1
DEMO = PACKAGE / "demo_model"

Checkpoint = int | Literal["best"]  # the step of one, or the one that did best when validated

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass
class Model:
    """Everything that encodes, decodes and samples.

    Attributes:
        config: Sizes of both networks and the diffusion.
        autoencoder: Pixels <-> planes; None in a model folder without it.
        denoiser: The U-Net (EMA weights), or None.
        fps: Frame rate of the clips it was trained on, or None if unknown.
        provenance: What it was trained on, by which command, how good it is.
    """

    config: ModelConfig
    autoencoder: Autoencoder
    denoiser: Denoiser | None = None
    fps: float | None = None
    provenance: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def schedule(self) -> Schedule | None:
        """Noise levels of the forward process, where the configuration has one."""
        diffusion = self.config.diffusion
        return Schedule.from_config(diffusion) if diffusion else None

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the autoencoder's weights as float32: what a latent cache belongs to."""
        return fingerprint(self.autoencoder)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.autoencoder.parameters()).device

    def require_denoiser(self, where: str) -> tuple[Denoiser, Schedule]:
        """Return the denoiser and its schedule.

        Raises:
            ModelError: If this model is an autoencoder alone.
        """
        if self.denoiser is None or self.schedule is None:
            raise ModelError(
                f"{where} holds an autoencoder only; train the second stage with "
                "`pvdm train PRESET --cache CACHE` before sampling"
            )
        return self.denoiser, self.schedule


def fingerprint(autoencoder: nn.Module) -> str:
    """Hash an autoencoder's weights (as float32, so storage precision does not matter)."""
    digest = hashlib.sha256()
    for name, tensor in sorted(autoencoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_model(model: Model, path: Path, *, half: bool = False) -> None:
    """Write a model folder, whole or not at all; half stores weights as float16."""
    with atomic_folder(path) as folder:
        fill_model_folder(model, folder, half=half)


def fill_model_folder(model: Model, folder: Path, *, half: bool = False) -> None:
    """Write the files of a model into an existing folder."""
    files = {}
    for name, network in (("autoencoder", model.autoencoder), ("denoiser", model.denoiser)):
        if network is None:
            continue
        file = folder / f"{name}.safetensors"
        weights = {
            key: (value.half() if half else value).detach().cpu().contiguous()
            for key, value in network.state_dict().items()
        }
        files[file.name] = write_tensors(weights, file)
    write_json(
        folder / "model.json",
        {
            "format": FORMAT,
            "config": model.config.model_dump(mode="json"),
            "fps": model.fps,
            "provenance": model.provenance,
            "files": files,
        },
    )


def write_tensors(tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    """Write a safetensors file; return its size and hash for the description beside it.

    Raises:
        PvdmError: If the disk does not take it.
    """
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:  # the writer is not Python's, so this is no OSError
        raise PvdmError(f"cannot write {path}: {error}; free the disk") from error
    path.chmod(0o644)  # the writer leaves it readable by its owner alone
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def load_model(
    path_or_name: str | Path, device: str = "auto", checkpoint: Checkpoint | None = None
) -> Model:
    """Load a model folder, a run folder, `demo` (shipped) or `hf:owner/name`, ready to use.

    Args:
        path_or_name: What to load.
        device: cpu | cuda | mps | auto.
        checkpoint: Step of a run folder, or "best"; the latest otherwise.

    Raises:
        ModelError: If it is missing, truncated, changed since it was written, or misfits.
    """
    target = resolve_device(device)
    folder = resolve_model(path_or_name, checkpoint)
    card = read_card(folder)
    try:
        config = parse_config(ModelConfig, card["config"], where=f"{folder}/model.json")
    except ConfigError as error:
        raise ModelError(str(error)) from error
    if "autoencoder.safetensors" not in card["files"]:
        raise ModelError(f"{folder}: holds no autoencoder, which every command needs")
    autoencoder = _network(Autoencoder, config, folder / "autoencoder.safetensors", card)
    denoiser = None
    if "denoiser.safetensors" in card["files"]:
        denoiser = _network(Denoiser, config, folder / "denoiser.safetensors", card).to(target)
    return Model(
        config=config,
        autoencoder=autoencoder.to(target),
        denoiser=denoiser,
        fps=card.get("fps"),
        provenance=card.get("provenance", {}),
    )


def read_card(folder: Path) -> dict[str, Any]:
    """Read `model.json`.

    Raises:
        ModelError: If it is missing, not JSON, incomplete or of a newer format.
    """
    path = folder / "model.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}; is {folder} a model folder?") from error
    except ValueError as error:
        raise ModelError(f"{path}: not JSON, the file is damaged; copy the model again") from error
    if not isinstance(card, dict) or not {"format", "config", "files"} <= card.keys():
        raise ModelError(f"{path}: not a model description; copy the model again")
    listed = card["files"].values() if isinstance(card["files"], dict) else [None]
    if not all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in listed):
        raise ModelError(f"{path}: does not list its files; copy the model again")
    if card["format"] != FORMAT:
        raise ModelError(
            f"{path}: format {card['format']}, this version reads {FORMAT}; update pvdm"
        )
    return card


def _network(
    kind: type[NetworkT], config: ModelConfig, path: Path, card: dict[str, Any]
) -> NetworkT:
    """Build a network and fill it from a checked weight file; float32, eval mode, no gradients."""
    weights = read_weights(path, card["files"][path.name])
    with torch.device("meta"):
        network = kind(config)
    assign_weights(network, weights, where=str(path))
    return network.requires_grad_(False).eval()


def read_weights(path: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    """Read a weight file as float32 after checking its size and hash.

    Raises:
        ModelError: If the file is missing, truncated or changed.
    """
    weights = read_tensors(path, expected, "model.json", "copy the model again")
    return {key: value.float() for key, value in weights.items()}


def read_tensors(path: Path, expected: dict[str, Any], card: str, remedy: str) -> dict[str, Tensor]:
    """Read a safetensors file after checking its size and hash.

    Args:
        path: The file.
        expected: Its `bytes` and `sha256`.
        card: Name of the file that says so.
        remedy: What to do if they do not agree.

    Raises:
        ModelError: If the file is missing, truncated or changed.
    """
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise ModelError(
                f"{path}: {size} bytes where {card} says {expected['bytes']}: the file is "
                f"truncated or changed; {remedy}"
            )
        if sha256(path) != expected["sha256"]:
            raise ModelError(f"{path}: content differs from its sha256 in {card}; {remedy}")
        return safetensors.torch.load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: missing, though {card} lists it; {remedy}") from None
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: not readable ({error}); {remedy}") from error


def assign_weights(network: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Give a network (also one on the meta device) its weights.

    Raises:
        ModelError: If they do not fit.
    """
    refuse_misfit(network, weights, where=where)
    network.load_state_dict(weights, assign=True)


def refuse_misfit(network: nn.Module, weights: dict[str, Tensor], *, where: str) -> None:
    """Check that weights are those of a network of this configuration.

    Raises:
        ModelError: Naming the first key that is missing, unknown or of another shape.
    """
    wanted = network.state_dict()
    for key in sorted(wanted.keys() ^ weights.keys()):
        state = "is missing" if key in wanted else "is not part of the network"
        raise ModelError(f"{where}: weight {key!r} {state}; weights and configuration do not match")
    for key, value in weights.items():
        if value.shape != wanted[key].shape:
            raise ModelError(
                f"{where}: weight {key!r} has shape {list(value.shape)}, the configuration needs "
                f"{list(wanted[key].shape)}"
            )


def resolve_model(path_or_name: str | Path, checkpoint: Checkpoint | None = None) -> Path:
    """Find the model folder behind a path or name.

    Raises:
        ModelError: If there is none, saying what would have been accepted.
    """
    name = str(path_or_name)
    path = Path(path_or_name)
    is_run = (path / "latest").is_file() or (path / "checkpoints").is_dir()
    known = path.exists() or name == "demo" or name.startswith("hf:")
    if checkpoint is not None and known and not is_run:
        raise ModelError(
            f"{name}: not a run folder, so there is no checkpoint {checkpoint} to choose"
        )
    if name == "demo":
        if not (DEMO / "model.json").is_file():
            raise ModelError("the demo model is not part of this installation; install the wheel")
        return DEMO
    if name.startswith("hf:"):
        return _from_hub(name.removeprefix("hf:"))
    if (path / "model.json").is_file():
        return path
    if is_run:
        return find_checkpoint(path, checkpoint) / "model"
    if not path.exists():
        raise ModelError(
            f"{path}: no such folder (a model folder, a run folder, `demo` or hf:owner/name)"
        )
    raise ModelError(f"{path}: neither a model folder (model.json) nor a run folder (checkpoints/)")


def find_checkpoint(run: Path, step: Checkpoint | None = None) -> Path:
    """Find a checkpoint of a run folder: the newest whole one, the best, or the one of a step.

    The file `latest` is for people: a kill may leave it one checkpoint behind.

    Raises:
        ModelError: If it is not there, naming those that are.
    """
    found = list_checkpoints(run)
    if step == "best":
        step = best_step(run)
    if step is not None:
        wanted = run / "checkpoints" / f"step-{step:08d}"
        if wanted not in found:
            steps = ", ".join(str(checkpoint_step(path)) for path in found) or "none"
            raise ModelError(f"{run}: no checkpoint of step {step} (there are: {steps})")
        return wanted
    if not found:
        raise ModelError(f"{run}: no checkpoint yet; the run has not saved one")
    return found[-1]


def best_step(run: Path) -> int:
    """Step of the checkpoint that did best when validated.

    Raises:
        ModelError: If none has been validated.
    """
    try:
        return int((run / "best").read_text(encoding="utf-8").strip().removeprefix("step-"))
    except (OSError, ValueError):
        raise ModelError(
            f"{run}: no best checkpoint is known; the run has not validated any"
        ) from None


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    named = (run / "checkpoints").glob("step-" + 8 * "[0-9]")
    return sorted(path for path in named if (path / "model" / "model.json").is_file())


def checkpoint_step(path: Path) -> int:
    """Step of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))


def _from_hub(name: str) -> Path:
    """Download a model folder from the Hugging Face hub (or find it in its local cache)."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ModelError(f"hf:{name}: a hub name has the form hf:owner/name")
    from huggingface_hub import snapshot_download  # slow to import, rarely needed

    patterns = ["model.json", "*.safetensors"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(f"hf:{name}: could not be downloaded ({reason})") from error
