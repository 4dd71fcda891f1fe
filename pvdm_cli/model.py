"""Model: the configuration, both networks and the schedule; where they are kept and how they load.

A model folder holds `model.json`, `autoencoder.safetensors` and `denoiser.safetensors`; either
network may be absent. A run folder is accepted wherever a model folder is.
"""

import hashlib
import json
import os
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pvdm_cli import hub
from pvdm_cli.config import PACKAGE, ModelConfig, parse_config
from pvdm_cli.diffusion.schedule import Schedule
from pvdm_cli.errors import ConfigError, DamagedError, ModelError, WriteError
from pvdm_cli.files import atomic_folder, sha256, write_json
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.published.pair import CONVERT, Pair, read_pair
from pvdm_cli.published.paths import published_files
from pvdm_cli.runtime import autocast, resolve_device
from pvdm_cli.shipped import preset_names

FORMAT = 1
DEMO = PACKAGE / "demo_model"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
AGAIN = "copy the model again"  # what to do about a damaged model, where nothing else is known

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

    def autoencoder_alone(self) -> Self:
        """The same model without its denoiser, for what does not sample."""
        return replace(self, denoiser=None)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the autoencoder's weights as float32: what a latent cache belongs to."""
        return fingerprint(self.autoencoder)

    @cached_property
    def denoiser_fingerprint(self) -> str | None:
        """The same of the denoiser's weights: what a video belongs to."""
        return None if self.denoiser is None else fingerprint(self.denoiser)

    def fix_fingerprints(self) -> None:
        """Take both fingerprints now, before the weights are changed into another form."""
        _ = self.fingerprint, self.denoiser_fingerprint

    @property
    def precision(self) -> str:
        """Of the weights: fp32, unless `acceleration.accelerate` has lowered it."""
        return next(name for name, dtype in DTYPES.items() if dtype == self.autoencoder.dtype)

    def arithmetic(self, precision: str) -> AbstractContextManager[object]:
        """Compute in a precision by autocast, unless the weights are lowered already."""
        return autocast(self.device, precision if self.precision == "fp32" else "fp32")

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


def model_weights(model: Model) -> dict[str, dict[str, Tensor]]:
    """The weights of a model by the names of their files, as they are: on its device, not copied."""
    networks = {"autoencoder": model.autoencoder, "denoiser": model.denoiser}
    return {
        f"{name}.safetensors": network.state_dict()
        for name, network in networks.items()
        if network is not None
    }


def fill_model_folder(
    model: Model,
    folder: Path,
    *,
    half: bool = False,
    weights: dict[str, dict[str, Tensor]] | None = None,
) -> None:
    """Write the files of a model into an existing folder; `weights` stand in for its own."""
    files = {}
    for name, tensors in (weights or model_weights(model)).items():
        stored = {
            key: (value.half() if half else value).detach().cpu().contiguous()
            for key, value in tensors.items()
        }
        files[name] = write_tensors(stored, folder / name)
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
        WriteError: If the disk does not take it.
    """
    try:
        safetensors.torch.save_file(tensors, path)
    except SafetensorError as error:  # the writer is not Python's, so this is no OSError
        number = re.search(r"os error (\d+)", str(error))
        reason = os.strerror(int(number[1])) if number else str(error)
        raise WriteError(path, reason, "free the disk") from error
    path.chmod(0o644)  # the writer leaves it readable by its owner alone
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def load_model(
    path_or_name: str | Path,
    device: str = "auto",
    checkpoint: Checkpoint | None = None,
    *,
    reporter: Reporter = SILENT,
) -> Model:
    """Load a model, ready to use.

    Args:
        path_or_name: A model folder, a run folder, `demo` (shipped) or `owner/name[@revision]` on
            the Hugging Face hub, see `resolve_model`; or published weights, AE.pth+UNET.pth or a
            folder of them, see `published.pair`.
        device: cpu | cuda | mps | auto.
        checkpoint: Step of a run folder, or "best"; the latest otherwise.
        reporter: Told what is downloaded.

    Raises:
        ModelError: If it is missing, truncated, changed since it was written, or misfits.
    """
    target = resolve_device(device)
    if checkpoint is None and (published := published_weights(path_or_name)):
        return _published_model(str(path_or_name), published, target, reporter)
    folder = resolve_model(path_or_name, checkpoint, reporter)
    remedy = _remedy(folder)
    card = read_card(folder, remedy)
    try:
        config = parse_config(ModelConfig, card["config"], where=f"{folder}/model.json")
    except ConfigError as error:
        raise ModelError(str(error)) from error
    if "autoencoder.safetensors" not in card["files"]:
        raise ModelError(f"{folder}: holds no autoencoder, which every command needs")
    autoencoder = _network(Autoencoder, config, folder / "autoencoder.safetensors", card, remedy)
    denoiser = None
    if "denoiser.safetensors" in card["files"]:
        file = folder / "denoiser.safetensors"
        denoiser = _network(Denoiser, config, file, card, remedy).to(target)
    return Model(
        config=config,
        autoencoder=autoencoder.to(target),
        denoiser=denoiser,
        fps=card.get("fps"),
        provenance=card.get("provenance", {}),
    )


def published_weights(path_or_name: str | Path) -> list[Path]:
    """List the published files that a path names; none if it is a model of our own, or no path."""
    path = Path(path_or_name)
    ours = (path / "model.json").is_file() or _is_run(path)
    return [] if ours else published_files(path_or_name)


def _published_model(
    name: str, paths: list[Path], device: torch.device, reporter: Reporter
) -> Model:
    """Load published weights as they are."""
    pair = read_pair(paths)
    reporter.say(
        f"{name}: published weights; what they do not tell is that of {pair.preset}, the same in "
        "every preset that fits"
    )
    autoencoder = _published_network(Autoencoder, "autoencoder", pair).to(device)
    denoiser = None
    if "denoiser" in pair.weights:
        denoiser = _published_network(Denoiser, "denoiser", pair).to(device)
    provenance = {
        "published": {kind: path.name for kind, path in pair.files.items()},
        "preset": pair.preset,
    }
    return Model(pair.config, autoencoder, denoiser, provenance=provenance)


def _published_network(kind: type[NetworkT], name: str, pair: Pair) -> NetworkT:
    """Build one of two published networks; ready to use."""
    with torch.device("meta"):
        network = kind(pair.config)
    assign_weights(network, pair.weights[name], where=str(pair.files[name]))
    return network.requires_grad_(False).eval()


def _is_run(path: Path) -> bool:
    """Whether a path is a run folder."""
    return (path / "latest").is_file() or (path / "checkpoints").is_dir()


def _remedy(folder: Path) -> str:
    """What to do if a model folder is damaged: in a run, another checkpoint may be whole."""
    run = folder.parent.parent.parent
    others = [path for path in list_checkpoints(run) if path != folder.parent]
    if folder.name != "model" or folder.parent.parent.name != "checkpoints" or not others:
        return AGAIN
    steps = ", ".join(str(checkpoint_step(path)) for path in others)
    return f"take another by `--checkpoint STEP` (there are: {steps}) or as {others[-1]}/model"


def read_card(folder: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """Read `model.json`.

    Args:
        folder: The model folder.
        remedy: What to do if it is damaged.

    Raises:
        ModelError: If it is missing, not JSON, incomplete or of a newer format.
    """
    path = folder / "model.json"
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        problem = f"{path}: {error.strerror}"
        raise DamagedError(problem, f"is {folder} a model folder?") from error
    except ValueError as error:
        raise DamagedError(f"{path}: not JSON, the file is damaged", remedy) from error
    if not isinstance(card, dict) or not {"format", "config", "files"} <= card.keys():
        raise DamagedError(f"{path}: not a model description", remedy)
    listed = card["files"].values() if isinstance(card["files"], dict) else [None]
    if not all(isinstance(entry, dict) and {"bytes", "sha256"} <= entry.keys() for entry in listed):
        raise DamagedError(f"{path}: does not list its files", remedy)
    if card["format"] != FORMAT:
        raise ModelError(
            f"{path}: format {card['format']}, this version reads {FORMAT}; update pvdm"
        )
    return card


def _network(
    kind: type[NetworkT], config: ModelConfig, path: Path, card: dict[str, Any], remedy: str
) -> NetworkT:
    """Build a network and fill it from a checked weight file; float32, eval mode, no gradients."""
    weights = read_weights(path, card["files"][path.name], remedy)
    with torch.device("meta"):
        network = kind(config)
    assign_weights(network, weights, where=str(path))
    return network.requires_grad_(False).eval()


def read_weights(path: Path, expected: dict[str, Any], remedy: str = AGAIN) -> dict[str, Tensor]:
    """Read a weight file as float32 after checking its size and hash.

    Raises:
        ModelError: If the file is missing, truncated or changed.
    """
    weights = read_tensors(path, expected, "model.json", remedy)
    return {key: value.float() for key, value in weights.items()}


def read_tensors(path: Path, expected: dict[str, Any], card: str, remedy: str) -> dict[str, Tensor]:
    """Read a safetensors file after checking its size and hash.

    Args:
        path: The file.
        expected: Its `bytes` and `sha256`.
        card: Name of the file that says so.
        remedy: What to do if they do not agree.

    Raises:
        DamagedError: If the file is missing, truncated or changed.
    """
    check_file(path, expected, card, remedy)
    try:
        return safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise DamagedError(f"{path}: not readable ({error})", remedy) from error


def check_file(path: Path, expected: dict[str, Any], card: str, remedy: str) -> None:
    """Check a file's size and hash; arguments as of `read_tensors`.

    Raises:
        DamagedError: If it is missing, truncated or changed.
    """
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise DamagedError(
                f"{path}: {size} bytes where {card} says {expected['bytes']}: the file is "
                "truncated or changed",
                remedy,
            )
        if sha256(path) != expected["sha256"]:
            raise DamagedError(f"{path}: content differs from its sha256 in {card}", remedy)
    except FileNotFoundError:
        raise DamagedError(f"{path}: missing, though {card} lists it", remedy) from None
    except OSError as error:
        raise DamagedError(f"{path}: not readable ({error})", remedy) from error


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


def resolve_model(
    path_or_name: str | Path, checkpoint: Checkpoint | None = None, reporter: Reporter = SILENT
) -> Path:
    """Find the model folder behind a path or name; what is on the hub is downloaded.

    A path that exists wins over a name on the hub, unless that is written `hf:owner/name`. What
    has the form of one is looked for there only if no folder is called like its owner: else it is
    a path with a slip in it.

    Raises:
        ModelError: If there is none, saying what would have been accepted.
    """
    name = str(path_or_name)
    path = Path(path_or_name)
    is_run = _is_run(path)
    on_hub = _hub_name(path_or_name)
    if checkpoint is not None and not is_run and (path.exists() or name == "demo" or on_hub):
        raise ModelError(
            f"{name}: not a run folder, so there is no checkpoint {checkpoint} to choose"
        )
    if name == "demo":
        if not (DEMO / "model.json").is_file():
            raise ModelError("the demo model is not part of this installation; install the wheel")
        return DEMO
    if on_hub and name.startswith("hf:"):
        return hub.fetch(on_hub, reporter)
    if (path / "model.json").is_file():
        return path
    if is_run:
        return find_checkpoint(path, checkpoint) / "model"
    if name in preset_names():
        raise ModelError(f"{name}: a preset, no model; `pvdm train {name} --out RUN` makes one")
    if on_hub:
        try:
            return hub.fetch(on_hub, reporter)
        except ModelError as error:
            raise ModelError(
                f"{name}: no such folder here, and as a name of the hub {error}"
            ) from error
    if not path.exists() and not published_files(path):
        raise ModelError(
            f"{path}: no such folder (a model folder, a run folder, `demo` or hf:owner/name)"
        )
    if published_files(path):
        raise ModelError(
            f"{path}: weights of the original implementation; make a model folder of them by {CONVERT}"
        )
    raise ModelError(f"{path}: neither a model folder (model.json) nor a run folder (checkpoints/)")


def _hub_name(path_or_name: str | Path) -> hub.HubName | None:
    """Read a name of the hub; None for what is a path, or is meant to be one.

    Raises:
        ModelError: If it begins with hf: and is no such name.
    """
    if isinstance(path_or_name, Path):
        return None
    found = hub.parse(path_or_name)
    if path_or_name.startswith("hf:"):
        if found is None:
            raise ModelError(f"{path_or_name}: {hub.FORM}")
        return found
    if found is None or Path(path_or_name).exists() or Path(found.repo).parent.exists():
        return None
    return found


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
    """Checkpoints of a run that have a model, oldest first."""
    folders = checkpoint_folders(run)
    return [path for path in folders if (path / "model" / "model.json").is_file()]


def checkpoint_folders(run: Path) -> list[Path]:
    """Folders that have the name of a checkpoint, oldest first, also where files are missing."""
    return sorted((run / "checkpoints").glob("step-" + 8 * "[0-9]"))


def checkpoint_step(path: Path) -> int:
    """Step of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))
