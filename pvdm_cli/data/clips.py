"""Clips for training the autoencoder: every window of every video, by keyed random draws.

Axes: b batch, s frames of a clip, H and W pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pvdm_cli.config import AS_STORED, ClipConfig, Policy
from pvdm_cli.data.catalog import Source
from pvdm_cli.data.framing import geometry_of, lengthened
from pvdm_cli.data.framing import mirrored as mirrored
from pvdm_cli.errors import DataError, VideoError
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.read import VideoInfo, count_frames, probe, read

Frames = NDArray[np.uint8]


class Usable(NamedTuple):
    """A video long enough for one clip."""

    source: Source
    num_frames: int  # at the frame stride or rate; a short video counts as lengthened
    frames: Frames | None  # uint8 [num_frames, H, W, 3] if held in memory


@dataclass(frozen=True)
class Clips:
    """Windows of videos at one geometry.

    Attributes:
        videos: Those long enough, in the order of the catalog.
        skipped: Names of the others, with the reason.
        fps: Median frame rate of the videos at the frame stride or rate, None if none is known.
        policy: What decides which frames of a video count, and which part of each.
    """

    clip: ClipConfig
    videos: list[Usable]
    skipped: dict[str, str]
    fps: float | None = field(default=None)
    policy: Policy = AS_STORED

    @classmethod
    def load(
        cls,
        sources: Sequence[Source],
        clip: ClipConfig,
        *,
        memory_gb: float,
        policy: Policy = AS_STORED,
        reporter: Reporter = SILENT,
    ) -> Self:
        """Look through the videos and hold them in memory while they fit in memory_gb.

        Raises:
            DataError: If no video can give a clip.
        """
        found = cls(clip, [], {}, policy=policy)
        free = memory_gb * 1e9
        rates = []
        reporter.start("reading videos", len(sources), "video")
        for source in sources:
            try:
                info = probe(source.piece)
                usable = found._look(source, info, free)
            except VideoError as error:
                found.skipped[source.name] = str(error)
            else:
                if usable.num_frames < clip.frames:
                    found.skipped[source.name] = (
                        f"only {usable.num_frames} frames, a clip needs {clip.frames}"
                    )
                else:
                    found.videos.append(usable)
                    rates.append(info.fps or policy.fps)
                    free -= 0 if usable.frames is None else usable.frames.nbytes
            reporter.advance()
        reporter.done()
        if not found.videos:
            first = next(iter(found.skipped.items()), ("", "there are none"))
            raise DataError(f"no video gives a clip of {clip.frames} frames ({': '.join(first)})")
        fps = policy.rate
        if fps is None and (known := [rate for rate in rates if rate]):
            fps = float(np.median(known)) / clip.frame_stride
        return replace(found, fps=fps)

    def __len__(self) -> int:
        return len(self.videos)

    def window(self, video: int, start: int) -> Frames:
        """Frames uint8 [s, H, W, 3] of one window; start counts frames after the stride."""
        usable, count = self.videos[video], self.clip.frames
        if usable.frames is not None:
            return usable.frames[start : start + count]
        lengthens = self.policy.short != "skip" and usable.num_frames == count
        frames = self._read(usable.source, start, None if lengthens else count)
        return lengthened(frames, count, self.policy.short)[:count]

    def _look(self, source: Source, info: VideoInfo, free: float) -> Usable:
        """Count a video's frames, and read them if they fit into so many bytes."""
        clip, policy, piece = self.clip, self.policy, source.piece
        timing = {"rate": policy.rate, "fps": policy.fps}

        def count() -> int:
            return count_frames(piece, stride=clip.frame_stride, **timing)

        told = info.length(**timing)
        num_frames = count() if told is None else -(-told // clip.frame_stride)
        frames = None
        if num_frames * clip.height * clip.width * 3 <= free:
            frames = self._read(source)
            num_frames = len(frames)
        elif told is not None:  # the header's word is enough for a guess, not to draw by
            num_frames = count()
        if policy.short != "skip" and 0 < num_frames < clip.frames:
            frames = None if frames is None else lengthened(frames, clip.frames, policy.short)
            num_frames = clip.frames
        return Usable(source, num_frames, frames)

    def _read(self, source: Source, start: int = 0, count: int | None = None) -> Frames:
        """Read frames of a video [s, H, W, 3]; start counts those at the stride or rate."""
        stride, policy = self.clip.frame_stride, self.policy
        return read(
            source.piece,
            geometry_of(self.clip, policy, source.name),
            stride=stride,
            start=start * stride,
            count=count,
            rate=policy.rate,
            fps=policy.fps,
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
