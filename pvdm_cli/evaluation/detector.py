"""The detector: I3D with weights from a file, and features of clips as they come.

Axes: b clips, s frames, H x W pixels.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pvdm_cli import weights
from pvdm_cli.errors import DataError
from pvdm_cli.evaluation.i3d import EPS, FEWEST_FRAMES, prepare
from pvdm_cli.evaluation.i3d_files import build_i3d, identify
from pvdm_cli.files import sha256

Frames = NDArray[np.uint8]  # [s, H, W, 3]
Features = NDArray[np.float32]  # [b, 400]

GPU_BATCH = 16
BATCH = 4  # clips per pass; more gain nothing on a CPU (0.60 s a clip at 2, 4 and 8)


@dataclass(frozen=True)
class Detector:
    """I3D on its device.

    Attributes:
        network: In evaluation mode.
        file: Name of the file of its weights.
        sha256: Of that file.
        known: Whose numbers they are, if the file is a known one.
        eps: Of its BatchNorm.
        device: Where it is.
    """

    network: nn.Module
    file: str
    sha256: str
    known: str | None = None
    eps: float = EPS
    device: torch.device = torch.device("cpu")  # noqa: RUF009

    @classmethod
    def load(
        cls, device: torch.device, *, needed_by: str = "FVD", without: str = "", eps: float = EPS
    ) -> "Detector":
        """Load the detector from where its weights lie.

        Raises:
            ModelError: If they are nowhere, damaged, or another network's.
        """
        path = weights.require_i3d(needed_by, without)
        digest = sha256(path)
        network = build_i3d(path, digest, eps).eval().requires_grad_(False)
        # Channels last: 0.60 s a clip of 16 frames on one core, 0.75 otherwise.
        network = network.to(device).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return cls(network, path.name, digest, identify(path, digest), eps, device)

    @torch.no_grad()
    def features(self, frames: Tensor) -> Features:
        """Features [b, 400] of uint8 clips [b, s, H, W, 3].

        Raises:
            DataError: If they are shorter than I3D can take.
        """
        if frames.shape[1] < FEWEST_FRAMES:
            raise DataError(
                f"I3D takes clips of {FEWEST_FRAMES} frames or more, not {frames.shape[1]}; "
                "16 is what is published"
            )
        parts = [
            self.network(_channels_last(prepare(part.to(self.device)))).cpu()
            for part in frames.split(BATCH if self.device.type == "cpu" else GPU_BATCH)
        ]
        return torch.cat(parts).numpy()

    def stream(self, clips: Iterable[Frames]) -> Iterator[Features]:
        """Yield features [b, 400]; the next clips are read while the network is at work."""
        batches = batched(clips, BATCH if self.device.type == "cpu" else GPU_BATCH)
        with ThreadPoolExecutor(1) as reading:
            coming = reading.submit(next, batches, None)
            while (batch := coming.result()) is not None:
                coming = reading.submit(next, batches, None)
                yield self.features(torch.from_numpy(batch))

    def describe(self) -> dict[str, Any]:
        """What its features depend on."""
        return {"detector": self.sha256, "eps": self.eps}


def batched(clips: Iterable[Frames], size: int) -> Iterator[Frames]:
    """Put clips together, uint8 [b, s, H, W, 3]."""
    batch: list[Frames] = []
    for clip in clips:
        batch.append(clip)
        if len(batch) == size:
            yield np.stack(batch)
            batch = []
    if batch:
        yield np.stack(batch)


def _channels_last(x: Tensor) -> Tensor:
    """Lay pixels out so that convolutions run faster."""
    return x.contiguous(memory_format=torch.channels_last_3d)
