"""Pictures of all videos of a run: a moving grid, and a contact sheet."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pvdm_cli.files import atomic_file
from pvdm_cli.generation.request import SampleRequest
from pvdm_cli.video import encoders, read, sheets, write


def write_grid(out: Path, videos: Sequence[Path], request: SampleRequest, fps: float) -> Path:
    """Lay the videos side by side, read back frame by frame: memory does not grow with length."""
    path = out / f"grid.{request.grid}"
    with ExitStack() as stack:
        writer = None
        for frames in zip(*(_frames(video) for video in videos), strict=True):
            stills = [frame[None] for frame in frames]
            picture = sheets.grid(stills, request.columns)  # [1, H', W', 3]
            if writer is None:
                height, width = picture.shape[1:3]
                opened = write.open_writer(
                    path, fps=fps, height=height, width=width, quality=request.quality
                )
                writer = stack.enter_context(opened)
            writer.write(picture)
    return path


def write_sheet(out: Path, videos: Sequence[Path], every: int) -> Path:
    """Write every so-many-th frame of each video into one picture, a row for each video."""
    path = out / "sheet.png"
    rows = [np.stack(list(islice(_frames(video), 0, None, every))) for video in videos]
    with atomic_file(path) as temporary:
        Image.fromarray(sheets.contact_sheet(rows)).save(temporary, format="png")
    return path


def _frames(path: Path) -> Iterator[NDArray[np.uint8]]:
    """Read the frames of a written video again, one by one."""
    return encoders.npz_frames(path) if path.suffix == ".npz" else read.stream(path)
