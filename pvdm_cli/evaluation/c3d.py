"""C3D, fine-tuned on UCF-101: the classifier of the inception score (Tran et al. 2015).

Facts about its input and weights: pfnet-research/tgan2, whose files are read as they are.

Axes: b clips, s = 16 frames, H x W pixels.
"""

import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pvdm_cli.errors import ModelError
from pvdm_cli.video.pixels import to_float

FRAMES, SIDE, CLASSES = 16, 112, 101
# Channels of the convolutions; "pool" halves every side, the first time all but time.
LAYERS = {
    "conv1a": 64,
    "pool1": 0,
    "conv2a": 128,
    "pool2": 0,
    "conv3a": 256,
    "conv3b": 256,
    "pool3": 0,
    "conv4a": 512,
    "conv4b": 512,
    "pool4": 0,
    "conv5a": 512,
    "conv5b": 512,
    "pool5": 0,
}
CROP = slice(8, 120)  # of the mean's 128 pixels
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile)


class C3D(nn.Module):
    """Clips [b, 3, 16, 112, 112], BGR, the mean subtracted -> probabilities [b, 101]."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, *(width for width in LAYERS.values() if width)]
        names = [name for name in LAYERS if name.startswith("conv")]
        for name, (given, made) in zip(names, pairwise(widths), strict=True):
            self.add_module(name, nn.Conv3d(given, made, 3, padding=1))
        self.fc6 = nn.Linear(512 * 4 * 4, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, CLASSES)
        self.register_buffer("mean", torch.zeros(3, FRAMES, SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        """Classify."""
        for name in LAYERS:
            if name.startswith("conv"):
                x = F.relu(self.get_submodule(name)(x))
            else:
                sides = (1, 2, 2) if name == "pool1" else (2, 2, 2)
                x = F.max_pool3d(x, sides, sides, ceil_mode=True)  # 7 -> 4 at the end
        x = F.relu(self.fc6(x.flatten(1)))
        return F.softmax(self.fc8(F.relu(self.fc7(x))), dim=1)

    @torch.no_grad()
    def classify(self, frames: Tensor) -> Tensor:
        """Probabilities [b, 101] of clips uint8 [b, 16, H, W, 3]."""
        x = to_float(frames.to(self.fc8.weight.device))
        size = (FRAMES, SIDE, SIDE)
        x = F.interpolate(x, size, mode="trilinear", align_corners=True)
        mean = self.get_buffer("mean")
        return self(x.flip(1) * 128 + 128 - mean)  # RGB -> BGR


def load_c3d(weights: Path, mean: Path) -> C3D:
    """Build the classifier of `conv3d_deepnetA_ucf.npz` and `mean2.npz`.

    Raises:
        ModelError: If a file is damaged or holds something else.
    """
    found = _arrays(weights)
    with torch.device("meta"):
        network = C3D()
    state = network.state_dict()
    filled = {}
    for name, wanted in state.items():
        if name == "mean":
            continue
        module, leaf = name.split(".")
        key = f"{module}/{'W' if leaf == 'weight' else 'b'}"
        array = next((value for known, value in found.items() if known.endswith(key)), None)
        if array is None or array.shape != wanted.shape:
            state_of = "is missing" if array is None else f"has shape {list(array.shape)}"
            raise ModelError(
                f"{weights}: not the C3D of UCF-101: {key!r} {state_of}, expected "
                f"{list(wanted.shape)}"
            )
        filled[name] = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    filled["mean"] = _mean(mean)
    network.load_state_dict(filled, assign=True)
    return network.eval().requires_grad_(False)


def _mean(path: Path) -> Tensor:
    """Read the mean clip, cropped to the network's input."""
    array = _arrays(path).get("mean")
    array = None if array is None else np.squeeze(array)
    if array is None or array.shape != (3, FRAMES, 128, 128):
        raise ModelError(f"{path}: expected an array `mean` of shape [3, 16, 128, 128]")
    return torch.from_numpy(np.ascontiguousarray(array[..., CROP, CROP], dtype=np.float32))


def _arrays(path: Path) -> dict[str, NDArray[np.floating]]:
    """Read all arrays of an .npz file."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            return {name: file[name] for name in file.files}
    except (*UNREADABLE, AttributeError) as error:
        raise ModelError(f"{path}: not readable as .npz ({error}); get it again") from error
