"""Reading and writing published `.pth` files; nothing but tensors is ever unpickled."""

import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvdm_cli.errors import ModelError
from pvdm_cli.files import atomic_file
from pvdm_cli.published.names import UNET

# A weight that every file of the kind holds, and the prefix that its keys have when unwrapped.
ANCHORS = {
    "autoencoder": ("encoder.to_patch_embedding.weight", ""),
    "denoiser": ("time_embed.0.weight", UNET),
}


def read_state(path: Path, kind: str) -> dict[str, Tensor]:
    """Read a published state dict of kind `autoencoder` or `denoiser`.

    Wrappings are taken off: containers such as {"state_dict": ...} (where several hold the
    network, an averaged one is preferred) and prefixes such as DistributedDataParallel's `module.`.

    Raises:
        ModelError: If the file cannot be read without unpickling code, or is not of that kind.
    """
    content = _load(path)
    state = _state(content, kind, path)
    if state is None:
        raise ModelError(f"{path}: not a published {kind}: {_what_instead(content, kind)}")
    return state


def read_states(path: Path) -> dict[str, dict[str, Tensor]]:
    """Read every published network that a file holds, by its kind; wrappings as in `read_state`.

    Raises:
        ModelError: If the file cannot be read without unpickling code, or holds none.
    """
    content = _load(path)
    found = {kind: _state(content, kind, path) for kind in ANCHORS}
    states = {kind: state for kind, state in found.items() if state is not None}
    if not states:
        raise ModelError(f"{path}: holds neither a published autoencoder nor a published U-Net")
    return states


def _state(content: Any, kind: str, path: Path) -> dict[str, Tensor] | None:
    """Take the network of a kind out of what a file holds; None if it holds none."""
    anchor, prefix = ANCHORS[kind]
    found = sorted(_states(content, anchor), key=lambda item: "ema" not in item[0].lower())
    if not found:
        return None
    state = _unwrapped(found[0][1], anchor, prefix)
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise ModelError(f"{path}: {key} is a {type(value).__name__}, not a tensor")
    return state


def write_state(state: Mapping[str, Tensor], path: Path) -> None:
    """Write a plain state dict, atomically."""
    with atomic_file(path) as temporary:
        torch.save(dict(state), temporary)


def _load(path: Path) -> Any:
    """Unpickle tensors and containers, nothing else."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path}: holds more than tensors (or is not a PyTorch file), and pickled code is "
            "never run; save the network's state_dict() alone"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"{path}: not a readable PyTorch file, perhaps truncated; copy it again"
        ) from error


def _states(content: Any, anchor: str, name: str = "") -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Walk nested containers; yield the mappings that hold the anchor weight, with their names."""
    if not isinstance(content, Mapping):
        return
    if _prefixes(content, anchor):
        yield name, content
    for key, value in content.items():
        yield from _states(value, anchor, f"{name}.{key}")


def _prefixes(state: Mapping[Any, Any], anchor: str) -> list[str]:
    """List what stands before the anchor in a mapping's keys, an averaged network's first."""
    keys = [key for key in state if isinstance(key, str) and f".{key}".endswith(f".{anchor}")]
    prefixes = [key.removesuffix(anchor) for key in keys]
    return sorted(prefixes, key=lambda prefix: "ema" not in prefix.lower())


def _unwrapped(state: Mapping[Any, Any], anchor: str, prefix: str) -> dict[str, Any]:
    """Give keys their plain prefix; leave out other copies of the network in the same mapping."""
    wrapping, *others = _prefixes(state, anchor)
    inner = {}
    for key, value in state.items():
        if str(key).startswith(wrapping):
            inner[prefix + str(key).removeprefix(wrapping)] = value
        elif not any(str(key).startswith(other) for other in others):
            inner[str(key)] = value  # reported as not part of the network
    return inner


def _what_instead(content: Any, kind: str) -> str:
    """Say what a file seems to hold instead."""
    for other, (anchor, _) in ANCHORS.items():
        if other != kind and any(_states(content, anchor)):
            return f"it holds a published {other}; give it as --{other}"
    if isinstance(content, Mapping):
        names = ", ".join(str(key) for key in list(content)[:3])
        return f"no weight ends in {ANCHORS[kind][0]} (its first keys: {names or 'none'})"
    return f"it holds a {type(content).__name__} instead of a state dict"
