"""Clips for training the autoencoder: every window of every video, by keyed random draws.

Axes: b batch, s frames of a clip, H and W pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli.config import ClipConfig
from pvdm_cli.data.catalog import Source
from pvdm_cli.errors import DataError, VideoError
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.read import count_frames, probe, read
from pvdm_cli.video.resize import Geometry

Frames = NDArray[np.uint8]


class Usable(NamedTuple):
    """A video long enough for one clip."""

    source: Source
    num_frames: int  # after the frame stride
    frames: Frames | None  # uint8 [num_frames, H, W, 3] if held in memory


def mirrored(frames: Frames) -> Frames:
    """Swap left and right of frames [..., H, W, 3]."""
    return np.ascontiguousarray(frames[..., ::-1, :])


@dataclass(frozen=True)
class Clips:
    """Windows of videos at one geometry.

    Attributes:
        videos: Those long enough, in the order of the catalog.
        skipped: Names of the others, with the reason.
        fps: Median frame rate of the videos after the frame stride, None if none is known.
    """

    clip: ClipConfig
    videos: list[Usable]
    skipped: dict[str, str]
    fps: float | None = field(default=None)

    @classmethod
    def load(
        cls,
        sources: Sequence[Source],
        clip: ClipConfig,
        *,
        memory_gb: float,
        reporter: Reporter = SILENT,
    ) -> Self:
        """Look through the videos and hold them in memory while they fit in memory_gb.

        Raises:
            DataError: If no video can give a clip.
        """
        geometry = Geometry.of(clip)
        free = memory_gb * 1e9
        videos, skipped, rates = [], {}, []
        reporter.start("reading videos", len(sources), "video")
        for source in sources:
            try:
                info = probe(source.path)
                in_source = info.num_frames or count_frames(source.path)
                num_frames = -(-in_source // clip.frame_stride)
                frames = None
                if num_frames * clip.height * clip.width * 3 <= free:
                    frames = read(source.path, geometry, stride=clip.frame_stride)
                    num_frames = len(frames)
                    free -= frames.nbytes
                elif info.num_frames:  # the header's word is enough for a guess, not to draw by
                    num_frames = -(-count_frames(source.path) // clip.frame_stride)
            except VideoError as error:
                skipped[source.name] = str(error)
            else:
                if num_frames < clip.frames:
                    skipped[source.name] = f"only {num_frames} frames, a clip needs {clip.frames}"
                else:
                    videos.append(Usable(source, num_frames, frames))
                    rates.append(info.fps)
            reporter.advance()
        reporter.done()
        if not videos:
            first = next(iter(skipped.items()), ("", "there are none"))
            raise DataError(f"no video gives a clip of {clip.frames} frames ({': '.join(first)})")
        known = [rate for rate in rates if rate]
        fps = float(np.median(known)) / clip.frame_stride if known else None
        return cls(clip, videos, skipped, fps)

    def __len__(self) -> int:
        return len(self.videos)

    def window(self, video: int, start: int) -> Frames:
        """Frames uint8 [s, H, W, 3] of one window; start counts frames after the stride."""
        usable, count = self.videos[video], self.clip.frames
        if usable.frames is not None:
            return usable.frames[start : start + count]
        stride = self.clip.frame_stride
        return read(
            usable.source.path,
            Geometry.of(self.clip),
            stride=stride,
            start=start * stride,
            count=count,
        )

    def draw(self, seed: int, step: int, samples: Iterable[int], *, flip: bool = False) -> Tensor:
        """Draw samples uint8 [b, s, H, W, 3]: for each a random window of a random video.

        With flip half of them are mirrored. Sample i depends on (seed, step, i) alone: not on resuming, nor on how the samples of a
        step are shared out.
        """
        windows = []
        for sample in samples:
            rng = np.random.default_rng((seed, step, sample))
            video = int(rng.integers(len(self)))
            last = self.videos[video].num_frames - self.clip.frames
            window = self.window(video, int(rng.integers(last + 1)))
            windows.append(mirrored(window) if flip and rng.integers(2) else window)
        return torch.from_numpy(np.stack(windows))

    def first_windows(self, most: int) -> Tensor:
        """Take the first window of up to `most` videos, uint8 [b, s, H, W, 3]: for validation."""
        count = min(most, len(self))
        return torch.from_numpy(np.stack([self.window(video, 0) for video in range(count)]))
