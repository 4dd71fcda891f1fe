"""From a policy to frames: which part of each is shown, how short videos become long enough.

Axes: s frames, H and W pixels.
"""

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.config import ClipConfig, Policy
from pvdm_cli.data.source import original, unit_hash
from pvdm_cli.video.resize import Geometry

Frames = NDArray[np.uint8]


def geometry_of(clip: ClipConfig, policy: Policy, name: str) -> Geometry:
    """How the frames of one video are brought to the size of a clip.

    A random crop goes by seed and name alone: all clips of a video show the same part, as clips
    that follow each other must, in whatever order and by however many processes they are read.
    """
    geometry = Geometry.of(clip)
    if policy.crop == "letterbox":
        return geometry._replace(letterbox=True)
    if policy.crop == "random":
        return geometry._replace(place=unit_hash(f"{policy.seed}:{original(name)}"))
    return geometry


def lengthened(frames: Frames, count: int, how: str) -> Frames:
    """Bring frames [s, H, W, 3] to at least `count`: begin again (loop) or stay at the last (hold)."""
    if len(frames) >= count:
        return frames
    numbers = np.arange(count)
    return frames[numbers % len(frames) if how == "loop" else numbers.clip(max=len(frames) - 1)]


def mirrored(frames: Frames) -> Frames:
    """Swap left and right of frames [..., H, W, 3]."""
    return np.ascontiguousarray(frames[..., ::-1, :])
