"""Latents made when they are asked for, in place of a cache: `data.cache=off`.

Slower by as much as encoding costs, but nothing is written, and every window of a video counts.
Axes: k rows asked for, c latent channels, n flat length.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli.config import LatentShape
from pvdm_cli.data.cache import ClipRows
from pvdm_cli.data.cache_format import Manifest, VideoRow
from pvdm_cli.data.cache_shard import plane_moments
from pvdm_cli.data.clips import Clips, mirrored

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float16]]  # [k, s, H, W, 3] -> [k, c, n]
SAMPLE = 256  # windows that mean and standard deviation are taken from


class LiveLatents(ClipRows):
    """What training needs of a `Cache`, from videos and an autoencoder.

    Attributes:
        path: The folder of videos.
        manifest: Geometry, frame rate, mean and std [3, c] of a sample of windows.
        videos: One entry per video.
        index: int64 [rows, 3] of video, first frame (of the source) and label (-1: none).
    """

    def __init__(
        self,
        path: Path,
        clips: Clips,
        encode: Encode,
        shape: LatentShape,
        *,
        fingerprint: str,
        labels: tuple[str, ...] = (),
        class_of: Mapping[str, str] | None = None,
        flip: bool = False,
    ) -> None:
        self.path, self._clips, self._encode = path, clips, encode
        ids: dict[str | None, int] = {name: label for label, name in enumerate(labels)}
        copies = clips.videos * (2 if flip else 1)  # the second one of each is mirrored
        self.videos = [
            VideoRow(
                number,
                usable.source.name,
                size=0,
                mtime=0,
                frames=usable.num_frames,
                label=ids.get((class_of or {}).get(usable.source.name), -1),
            )
            for number, usable in enumerate(copies)
        ]
        stride = clips.clip.frame_stride
        rows = [
            (video.video, start * stride, video.label)
            for video, usable in zip(self.videos, copies, strict=True)
            for start in range(usable.num_frames - clips.clip.frames + 1)
        ]
        self.index = torch.tensor(rows, dtype=torch.int64)
        spread = torch.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).long()
        mean, std = plane_moments(self.read(spread).numpy(), shape)
        self.manifest = Manifest(
            fingerprint=fingerprint,
            clip=clips.clip,
            patch=clips.clip.height // shape.h,
            channels=shape.c,
            window_stride=1,
            complete=True,
            fps=clips.fps,
            mean=mean.tolist(),
            std=std.tolist(),
            videos=len(self.videos),
            clips=len(rows),
            labels=labels,
        )

    def read(self, rows: Sequence[int] | Tensor, *, dtype: torch.dtype = torch.float16) -> Tensor:
        """Decode and encode the clips of k rows: latents [k, c, n], in the order asked for."""
        stride = self._clips.clip.frame_stride
        wanted = self.index[torch.as_tensor(rows, dtype=torch.int64)].tolist()
        frames = [self._window(video, first // stride) for video, first, _ in wanted]
        return torch.from_numpy(self._encode(np.stack(frames))).to(dtype)

    def _window(self, video: int, start: int) -> NDArray[np.uint8]:
        """Frames of one clip [s, H, W, 3]; videos past the last are mirrored copies."""
        copy, number = divmod(video, len(self._clips))
        frames = self._clips.window(number, start)
        return mirrored(frames) if copy else frames
