"""Training state on disk: everything that makes resuming exact.

A checkpoint is `checkpoints/step-00012345/` with `model/` (a model folder, EMA weights) and
`state/` (live weights and optimizer as safetensors, the rest JSON). All random draws are keyed by
(seed, step, sample), so the step is the whole state of the generators and of the data order.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pvdm_cli.errors import ModelError
from pvdm_cli.files import atomic_folder, sha256, write_json, write_text
from pvdm_cli.model import (
    Model,
    assign_weights,
    checkpoint_step,
    fill_model_folder,
    list_checkpoints,
    read_weights,
)

FORMAT = 1


def save_checkpoint(
    run: Path,
    step: int,
    model: Model,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    extra: dict[str, Any],
) -> Path:
    """Write a checkpoint, whole or not at all, and point `latest` at it.

    Args:
        run: The run folder.
        step: Optimizer steps done.
        model: What to publish: the averaged weights where there is an average.
        network: The network in training, with its live weights.
        optimizer: Its optimizer.
        average: Its average, or None.
        extra: Further JSON state, e.g. the gradient scaler's.
    """
    path = run / "checkpoints" / f"step-{step:08d}"
    with atomic_folder(path) as folder:
        for name in ("model", "state"):
            (folder / name).mkdir()
        fill_model_folder(model, folder / "model")
        weights = folder / "state" / "training.safetensors"
        safetensors.torch.save_file(_tensors(network, optimizer), weights)
        state = {
            "format": FORMAT,
            "step": step,
            "averaged": int(average.n_averaged) if average is not None else None,
            "files": {weights.name: {"bytes": weights.stat().st_size, "sha256": sha256(weights)}},
            **extra,
        }
        write_json(folder / "state" / "state.json", state)
    write_text(run / "latest", path.name + "\n")
    return path


def load_checkpoint(
    path: Path,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    averaged_weights: str,
) -> dict[str, Any]:
    """Put a checkpoint's state into network, optimizer and average; return the JSON state.

    Args:
        path: The checkpoint folder.
        network: Takes the live weights.
        optimizer: Takes its moments.
        average: Takes the published weights of the model folder.
        averaged_weights: Their file, `denoiser.safetensors` or `autoencoder.safetensors`.

    Raises:
        ModelError: If a file is missing, truncated or changed.
    """
    state_file = path / "state" / "state.json"
    try:
        state: dict[str, Any] = json.loads(state_file.read_text(encoding="utf-8"))
        card = json.loads((path / "model" / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path}: the checkpoint is damaged ({error}); remove it to go on from the one before"
        ) from error
    name = "training.safetensors"
    tensors = _read_exact(path / "state" / name, state["files"][name])
    live = {k.removeprefix("live."): v for k, v in tensors.items() if k.startswith("live.")}
    with torch.no_grad():
        network.load_state_dict(live)
    _restore_optimizer(optimizer, tensors)
    if average is not None:
        weights = read_weights(path / "model" / averaged_weights, card["files"][averaged_weights])
        device = next(network.parameters()).device
        moved = {k: v.to(device) for k, v in weights.items()}
        assign_weights(average.module, moved, where=str(path))
        average.n_averaged.fill_(state["averaged"])
    return state


def remove_old(run: Path, keep_last: int, keep_every: int) -> None:
    """Remove all but the last checkpoints and those at multiples of keep_every."""
    for path in list_checkpoints(run)[:-keep_last]:
        if not keep_every or checkpoint_step(path) % keep_every:
            shutil.rmtree(path, ignore_errors=True)


def _read_exact(path: Path, expected: dict[str, Any]) -> dict[str, Tensor]:
    """Read training tensors in their own types after checking size and hash."""
    if not path.is_file() or path.stat().st_size != expected["bytes"]:
        raise ModelError(f"{path}: missing or truncated; remove this checkpoint to use the last")
    if sha256(path) != expected["sha256"]:
        raise ModelError(f"{path}: content differs from its hash; remove this checkpoint")
    try:
        return safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file ({error})") from error


def _tensors(network: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Name every tensor of the training state."""
    tensors = {f"live.{k}": v.detach().cpu() for k, v in network.state_dict().items()}
    for number, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            tensors[f"optimizer.{number}.{key}"] = torch.as_tensor(value).detach().cpu()
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimizer its moments back."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, number, key = name.split(".")
            state.setdefault(int(number), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
