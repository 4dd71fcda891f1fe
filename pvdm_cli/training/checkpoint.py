"""Training state on disk: everything that makes resuming exact.

A checkpoint is `checkpoints/step-00012345/` with `model/` (a model folder, EMA weights) and
`state/` (live weights and optimizer as safetensors, the rest JSON). All random draws are keyed by
(seed, step, sample), so the step is the whole state of the generators and of the data order.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pvdm_cli.errors import ModelError
from pvdm_cli.files import atomic_folder, remove_folder, write_json, write_text
from pvdm_cli.model import (
    Model,
    checkpoint_step,
    fill_model_folder,
    list_checkpoints,
    read_card,
    read_tensors,
    write_tensors,
)

FORMAT = 2
TENSORS = "training.safetensors"
# Networks with their optimizers, by what leads the names of their tensors: "" for the first.
Trained = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]


def save_checkpoint(
    run: Path,
    step: int,
    model: Model,
    trained: Trained,
    average: AveragedModel | None,
    extra: dict[str, Any],
) -> Path:
    """Write a checkpoint, whole or not at all; `settle` should follow.

    Args:
        run: The run folder.
        step: Optimizer steps done.
        model: What to publish: the averaged weights where there is an average.
        trained: What is in training.
        average: The average of its first network, or None.
        extra: Further JSON state, e.g. the gradient scaler's.
    """
    path = run / "checkpoints" / f"step-{step:08d}"
    with atomic_folder(path) as folder:
        for name in ("model", "state"):
            (folder / name).mkdir()
        fill_model_folder(model, folder / "model")
        written = write_tensors(_tensors(trained), folder / "state" / TENSORS)
        state = {
            "format": FORMAT,
            "step": step,
            "averaged": int(average.n_averaged) if average is not None else None,
            "files": {TENSORS: written},
            **extra,
        }
        write_json(folder / "state" / "state.json", state)
    return path


def load_checkpoint(
    path: Path,
    trained: Trained,
    average: AveragedModel | None,
    averaged_weights: str,
) -> dict[str, Any]:
    """Put a checkpoint's state into networks, optimizers and average; return the JSON state.

    Args:
        path: The checkpoint folder.
        trained: Networks take their live weights, optimizers their moments.
        average: Takes the published weights of the model folder.
        averaged_weights: Their file, `denoiser.safetensors` or `autoencoder.safetensors`.

    Raises:
        ModelError: If a file is missing, truncated or changed; nothing was put anywhere then.
    """
    remedy = f"remove {path} to go on from the checkpoint before"
    state = _read_state(path / "state" / "state.json", remedy)
    listed = read_card(path / "model")["files"]
    tensors = read_tensors(path / "state" / TENSORS, state["files"][TENSORS], "state.json", remedy)
    # Copied into the tensors that are there: their memory layout decides how sums are rounded.
    if average is not None:
        file = path / "model" / averaged_weights
        weights = read_tensors(file, listed.get(file.name, {"bytes": None}), "model.json", remedy)
        average.module.load_state_dict(weights)
        average.n_averaged.fill_(state["averaged"])
    for prefix, (network, optimizer) in trained.items():
        network.load_state_dict(_under(f"{prefix}live.", tensors))
        _restore_optimizer(optimizer, _under(f"{prefix}optimizer.", tensors))
    return state


def load_moments(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the moments of a checkpoint's first network: training goes on as it was.

    Raises:
        ModelError: If a file is missing, truncated or changed, or of another network.
    """
    remedy = f"name another checkpoint than {path}"
    state = _read_state(path / "state" / "state.json", remedy)
    tensors = read_tensors(path / "state" / TENSORS, state["files"][TENSORS], "state.json", remedy)
    _restore_optimizer(optimizer, _under("optimizer.", tensors))


def settle(run: Path, keep_last: int, keep_every: int, best: int | None = None) -> None:
    """Point `latest` and `best` at their checkpoints; keep them and those asked for, not others.

    Args:
        run: The run folder.
        keep_last: How many of the newest to keep.
        keep_every: Keep those of multiples of this step too, unless 0.
        best: Step of the one that did best when validated.

    Done after each checkpoint, and again before going on: a kill may have come in between.
    """
    checkpoints = list_checkpoints(run)
    if checkpoints:
        write_text(run / "latest", checkpoints[-1].name + "\n")
    if best is not None:
        write_text(run / "best", f"step-{best:08d}\n")
    for path in checkpoints[:-keep_last]:
        step = checkpoint_step(path)
        if step != best and (not keep_every or step % keep_every):
            remove_folder(path)


def _read_state(path: Path, remedy: str) -> dict[str, Any]:
    """Read and check the JSON half of the training state."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: not readable ({error}); {remedy}") from error
    if not isinstance(state, dict) or not {"format", "step", "files"} <= state.keys():
        raise ModelError(f"{path}: not a training state; {remedy}")
    if state["format"] != FORMAT:
        raise ModelError(
            f"{path}: format {state['format']}, this version reads {FORMAT}; go on with the "
            "version of pvdm that wrote it"
        )
    return state


def _tensors(trained: Trained) -> dict[str, Tensor]:
    """Name every tensor of the training state."""
    tensors = {}
    for prefix, (network, optimizer) in trained.items():
        for key, value in network.state_dict().items():
            tensors[f"{prefix}live.{key}"] = value.detach().cpu()
        for number, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                name = f"{prefix}optimizer.{number}.{key}"
                tensors[name] = torch.as_tensor(value).detach().cpu()
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Pick the tensors whose names begin so, without that beginning."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimizer its moments back, laid out in memory as its parameters are.

    The fused update walks weights and moments side by side, whatever their strides say.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        number, key = name.split(".")
        like = parameters[int(number)]
        if tensor.shape == like.shape:
            tensor = torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(number), {})[key] = tensor
    numbers = iter(range(len(parameters)))
    groups = [
        {**group, "params": [next(numbers) for _ in group["params"]]}
        for group in optimizer.param_groups
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
