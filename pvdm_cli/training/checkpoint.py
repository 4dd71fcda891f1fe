"""Training state on disk: everything that makes resuming exact.

A checkpoint is `checkpoints/step-00012345/` with `model/` (a model folder, EMA weights) and
`state/` (live weights and optimizer as safetensors, the rest JSON). All random draws are keyed by
(seed, step, sample), so the step is the whole state of the generators and of the data order.

Everything in it is covered by a hash: `state.json` has its own and those of the tensors beside it
and of `model.json`, which has those of the weights.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from pvdm_cli.errors import DamagedError, ModelError, WriteError
from pvdm_cli.files import atomic_folder, remove_folder, sha256, write_json, write_text
from pvdm_cli.model import (
    Model,
    check_file,
    checkpoint_folders,
    checkpoint_step,
    fill_model_folder,
    list_checkpoints,
    model_weights,
    read_card,
    read_tensors,
    write_tensors,
)

FORMAT = 2
TENSORS = "training.safetensors"
CARD = "model.json"
SEAL = "sha256"  # of the rest of state.json
# Networks with their optimizers, by what leads the names of their tensors: "" for the first.
Trained = Mapping[str, tuple[nn.Module, torch.optim.Optimizer]]
Buffers = dict[str, Tensor]


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint in memory, apart from networks that go on learning.

    Attributes:
        step: Optimizer steps done.
        model: What is published; of its networks only `weights` are written.
        weights: Its weights by file, on the CPU.
        tensors: Live weights and moments, on the CPU.
        state: The JSON state.
    """

    step: int
    model: Model
    weights: dict[str, dict[str, Tensor]]
    tensors: dict[str, Tensor]
    state: dict[str, Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors: about what it takes on disk."""
        parts = [self.tensors, *self.weights.values()]
        return sum(tensor.nbytes for part in parts for tensor in part.values())


def take_snapshot(
    step: int,
    model: Model,
    trained: Trained,
    average: AveragedModel | None,
    extra: dict[str, Any],
    buffers: Buffers,
) -> Snapshot:
    """Copy everything that goes into a checkpoint.

    Args:
        step: Optimizer steps done.
        model: What to publish: the averaged weights where there is an average.
        trained: What is in training.
        average: The average of its first network, or None.
        extra: Further JSON state, e.g. the gradient scaler's.
        buffers: Where copies go, by name; missing ones are added. Memory that has been used before
            takes a copy several times faster than fresh memory. An earlier snapshot in the same
            buffers is overwritten.
    """

    def copy(name: str, tensor: Tensor) -> Tensor:
        buffer = buffers.get(name)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return buffer.copy_(tensor.detach())

    weights = {
        file: {key: copy(f"{file}/{key}", value) for key, value in tensors.items()}
        for file, tensors in model_weights(model).items()
    }
    tensors = {name: copy(name, tensor) for name, tensor in _tensors(trained).items()}
    averaged = int(average.n_averaged) if average is not None else None
    return Snapshot(step, model, weights, tensors, {"step": step, "averaged": averaged, **extra})


def write_snapshot(run: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint, whole or not at all; `settle` should follow.

    Raises:
        WriteError: If the disk does not take it.
    """
    path = run / "checkpoints" / f"step-{snapshot.step:08d}"
    with atomic_folder(path) as folder:
        for name in ("model", "state"):
            (folder / name).mkdir()
        fill_model_folder(snapshot.model, folder / "model", weights=snapshot.weights)
        card = folder / "model" / CARD
        files = {
            TENSORS: write_tensors(snapshot.tensors, folder / "state" / TENSORS),
            CARD: {"bytes": card.stat().st_size, "sha256": sha256(card)},
        }
        state = {"format": FORMAT, "files": files, **snapshot.state}
        write_json(folder / "state" / "state.json", {**state, SEAL: _seal(state)})
    return path


def load_newest(
    run: Path,
    trained: Trained,
    average: AveragedModel | None,
    published: str,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Load the newest checkpoint that is whole; set newer ones aside, saying so.

    Raises:
        ModelError: If there is none, or it is of another format. Nothing is set aside then.
    """
    damaged: list[tuple[Path, DamagedError]] = []
    for path in reversed(checkpoint_folders(run)):
        try:
            state = load_checkpoint(path, trained, average, published)
        except DamagedError as error:
            damaged.append((path, error))
            continue
        for broken, found in damaged:
            aside = _set_aside(broken)
            say(f"warning: {found.problem}; kept as {aside}, going on from the checkpoint before")
        return state
    problem = damaged[0][1].problem if damaged else "there is none"
    raise ModelError(
        f"{run}: no checkpoint that can be read ({problem}); put a copy of one back, or start "
        "afresh by --overwrite"
    )


def _set_aside(path: Path) -> Path:
    """Give a checkpoint a name under which it is none."""
    number, aside = 1, path.with_name(f"{path.name}.broken")
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.name}.broken-{number}")
    try:
        return path.replace(aside)
    except OSError as error:
        raise WriteError(aside, error.strerror or str(error), f"remove {path}") from error


def load_checkpoint(
    path: Path,
    trained: Trained,
    average: AveragedModel | None,
    published: str,
) -> dict[str, Any]:
    """Put a checkpoint's state into networks, optimizers and average; return the JSON state.

    Args:
        path: The checkpoint folder.
        trained: Networks take their live weights, optimizers their moments.
        average: Takes the published weights of the model folder.
        published: Their file, `denoiser.safetensors` or `autoencoder.safetensors`.

    Raises:
        DamagedError: If a file is missing, truncated or changed; nothing was put anywhere then.
        ModelError: If it is of another format.
    """
    remedy = f"remove {path} to go on from the checkpoint before"
    state = _read_state(path / "state" / "state.json", remedy)
    model = path / "model"
    if CARD in state["files"]:  # checkpoints of earlier versions do not say
        check_file(model / CARD, state["files"][CARD], "state.json", remedy)
    listed = {published: {"bytes": None}, **read_card(model, remedy)["files"]}
    for name, expected in listed.items():
        check_file(model / name, expected, CARD, remedy)
    tensors = _read_tensors(path, state, remedy)
    # Copied into the tensors that are there: their memory layout decides how sums are rounded.
    if average is not None:
        average.module.load_state_dict(safetensors.torch.load_file(model / published))
        average.n_averaged.fill_(state["averaged"])
    for prefix, (network, optimizer) in trained.items():
        bare(network).load_state_dict(_under(f"{prefix}live.", tensors))
        _restore_optimizer(optimizer, _under(f"{prefix}optimizer.", tensors))
    return state


def load_moments(path: Path, optimizer: torch.optim.Optimizer) -> None:
    """Give an optimizer the moments of a checkpoint's first network: training goes on as it was.

    Raises:
        ModelError: If a file is missing, truncated or changed, or of another network.
    """
    remedy = f"name another checkpoint than {path}"
    state = _read_state(path / "state" / "state.json", remedy)
    tensors = _read_tensors(path, state, remedy)
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
    names = {"latest": checkpoints[-1].name} if checkpoints else {}
    if best is not None and best in map(checkpoint_step, checkpoints):
        names["best"] = f"step-{best:08d}"
    else:  # it has been set aside, or went with the folder
        (run / "best").unlink(missing_ok=True)

    def point() -> None:
        for name, target in names.items():
            write_text(run / name, f"{target}\n")

    try:
        point()
    except WriteError:  # a full disk, on which the checkpoint just fitted: first make room
        again = True
    else:
        again = False
    for path in checkpoints[:-keep_last]:
        step = checkpoint_step(path)
        if step != best and (not keep_every or step % keep_every):
            remove_folder(path)
    if again:
        point()


def _read_state(path: Path, remedy: str) -> dict[str, Any]:
    """Read and check the JSON half of the training state."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DamagedError(f"{path}: not readable ({error})", remedy) from error
    if not isinstance(state, dict) or not {"format", "step", "files"} <= state.keys():
        raise DamagedError(f"{path}: not a training state", remedy)
    if SEAL in state and _seal(state) != state[SEAL]:  # not in those of earlier versions
        raise DamagedError(f"{path}: content differs from the sha256 in it", remedy)
    if state["format"] != FORMAT:
        raise ModelError(
            f"{path}: format {state['format']}, this version reads {FORMAT}; go on with the "
            "version of pvdm that wrote it"
        )
    return state


def _seal(state: dict[str, Any]) -> str:
    """Hash a JSON state, all but its hash."""
    rest = {key: value for key, value in state.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _read_tensors(path: Path, state: dict[str, Any], remedy: str) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint's state."""
    expected = state["files"].get(TENSORS, {"bytes": None})
    return read_tensors(path / "state" / TENSORS, expected, "state.json", remedy)


def bare(network: nn.Module) -> nn.Module:
    """The network itself, where it is wrapped for several processes or compiled."""
    inside = getattr(network, "_orig_mod", None)  # of torch.compile
    if isinstance(network, DistributedDataParallel):
        inside = network.module
    return bare(inside) if isinstance(inside, nn.Module) else network


def _tensors(trained: Trained) -> dict[str, Tensor]:
    """Name every tensor of the training state; they are not copied."""
    tensors = {}
    for prefix, (network, optimizer) in trained.items():
        for key, value in bare(network).state_dict().items():
            tensors[f"{prefix}live.{key}"] = value
        for number, moments in optimizer.state_dict()["state"].items():
            for key, value in moments.items():
                tensors[f"{prefix}optimizer.{number}.{key}"] = torch.as_tensor(value)
    return tensors


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
