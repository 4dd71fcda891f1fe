"""Looking into a latent cache: is it whole, does it hold its videos, how do they look decoded.

Axes: s frames, H and W pixels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pvdm_cli import files
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_check import Problem, find_problems
from pvdm_cli.data.cache_format import MANIFEST, read_manifest
from pvdm_cli.data.catalog import find_videos
from pvdm_cli.decoding import decode_clips, load_maker
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import DataError
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video import pixels, read, write

Frames = NDArray[np.uint8]  # [s, H, W, 3]

# How far a clip of the cache may be from the same clip encoded anew. Another device or another
# batch moves a latent by 0.1 % in fp32 and 1 % in bf16; a clip of another scene by 50 % and more.
MOST_DB = 0.1
MOST_RELATIVE = 0.05


class Sampled(NamedTuple):
    """One clip of the cache against its source.

    Attributes:
        video: Name of the source video.
        first: First frame in it.
        shard: The file that holds the clip.
        psnr: Of the cached latent, decoded, against the source, in dB.
        psnr_anew: The same of the source encoded now.
        difference: Of the two latents, relative to the new one (L2).
    """

    video: str
    first: int
    shard: str
    psnr: float
    psnr_anew: float
    difference: float

    @property
    def agrees(self) -> bool:
        """Whether the cached clip is what the source gives."""
        near = abs(self.psnr - self.psnr_anew) <= MOST_DB
        return near and self.difference <= MOST_RELATIVE


@dataclass(frozen=True)
class Verification:
    """What checking a cache has found.

    Attributes:
        cache: The folder.
        fast: Whether hashes of whole files were left out.
        clips: How many the manifest names; so with bytes, shards and sha256 (of the whole).
        problems: None for a sound cache.
        samples: Clips compared with their sources.
        command: What made the cache, which is also what repairs it; empty if not known.
    """

    cache: Path
    fast: bool
    clips: int
    bytes: int
    shards: int
    sha256: str | None
    problems: list[Problem]
    samples: list[Sampled]
    command: list[str]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True)
class PreviewResult:
    """The videos written: each a clip, original to the left, decoded to the right."""

    out: Path
    files: list[Path]
    psnr: list[float]


class Shown(NamedTuple):
    """A clip of the cache beside its source."""

    row: int
    video: str
    first: int
    original: Frames
    decoded: Frames


def verify_cache(
    path: Path,
    *,
    fast: bool = False,
    sample: int = 0,
    data: Path | None = None,
    autoencoder: str | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> Verification:
    """Check a cache, and on request some of its clips against their videos.

    Args:
        path: The cache folder.
        fast: Check sizes, headers and the index, not every byte.
        sample: Clips, spread over the cache, to decode and compare with their source.
        data: Folder of the videos; None: where they were.
        autoencoder: What made the cache; None: what the manifest names.
        device: Of the autoencoder.
        reporter: Told about progress.

    Raises:
        DataError: If there is no cache, or (sample) a source video is not there.
        ModelError: If (sample) the autoencoder is not there.
    """
    problems = find_problems(path, fast=fast, reporter=reporter)
    readable = all(problem.file != MANIFEST for problem in problems)
    manifest = read_manifest(path) if readable else None
    samples = []
    if sample and not problems:
        cache = Cache.open(path)
        model = load_maker(cache, autoencoder, device)
        reporter.start("comparing", total=min(sample, len(cache)), unit="clip")
        for shown in shown_clips(cache, model, sample, data):
            samples.append(_compare(cache, model, shown))
            reporter.advance(1)
        reporter.done()
        problems = [_disagreement(path, found) for found in samples if not found.agrees]
    return Verification(
        cache=path,
        fast=fast,
        clips=manifest.clips if manifest else 0,
        bytes=manifest.bytes if manifest else 0,
        shards=len(manifest.shards) if manifest else 0,
        sha256=manifest.sha256 if manifest else None,
        problems=problems,
        samples=samples,
        command=list(manifest.command) if manifest else [],
    )


def preview_cache(
    path: Path,
    num: int,
    out: Path,
    *,
    data: Path | None = None,
    autoencoder: str | None = None,
    overwrite: bool = False,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> PreviewResult:
    """Write clips, spread over a cache, beside their originals as mp4.

    Args:
        path: The cache folder.
        num: How many clips.
        out: Folder of the videos.
        data: Folder of the source videos; None: where they were.
        autoencoder: What made the cache; None: what the manifest names.
        overwrite: Replace videos that are there already.
        device: Of the autoencoder.
        reporter: Told about progress.

    Raises:
        DataError: If the cache cannot be read, a source video is not there, or a target is.
        ModelError: If the autoencoder is not there.
    """
    cache = Cache.open(path)
    model = load_maker(cache, autoencoder, device)
    files.make_folder(out)
    written, psnr = [], []
    reporter.start("decoding", total=min(num, len(cache)), unit="clip")
    for shown in shown_clips(cache, model, num, data):
        target = out / f"{shown.row:06d}-{Path(shown.video).stem}-{shown.first}.mp4"
        if target.exists() and not overwrite:
            raise DataError(f"{target} is there already; use --overwrite or another --out")
        both = np.concatenate([shown.original, shown.decoded], axis=2)
        write.write_video(target, both, cache.manifest.fps or 8)
        written.append(target)
        psnr.append(_psnr(shown.original, shown.decoded))
        reporter.advance(1)
    reporter.done()
    return PreviewResult(out, written, psnr)


def shown_clips(cache: Cache, model: Model, num: int, data: Path | None) -> Iterator[Shown]:
    """Decode up to `num` clips, evenly spread over the cache, beside their sources.

    Raises:
        DataError: If a source video is not there, or gives the clip no more.
    """
    paths = _source_paths(cache, data)
    videos = {row.video: row.path for row in cache.videos}
    clip = cache.manifest.clip
    for row in _spread(len(cache), num):
        video, first, _ = cache.index[row].tolist()
        name = videos[video]
        if name not in paths:
            raise DataError(
                f"{name} is not among the videos that {cache.path} was made from; say by --data "
                "where they are"
            )
        original = read.read(
            paths[name],
            read.Geometry.of(clip),
            stride=clip.frame_stride,
            start=first,
            count=clip.frames,
        )
        decoded = decode_clips(model, cache.read([row]))[0]
        yield Shown(row, name, first, original, decoded)


def _spread(count: int, num: int) -> list[int]:
    """Choose up to `num` of so many rows, from the first to the last at equal distances."""
    return np.linspace(0, count - 1, min(num, count)).round().astype(int).tolist()


def _source_paths(cache: Cache, data: Path | None) -> dict[str, Path]:
    """Find the source videos by the names they have in the cache."""
    root = data or (Path(cache.manifest.source) if cache.manifest.source else None)
    if root is None:
        raise DataError(f"cache {cache.path} does not say where its videos are: give --data")
    try:
        return {source.name: source.path for source in find_videos(root)}
    except DataError as error:
        raise DataError(f"{error}; say by --data where the videos of {cache.path} are") from None


def _compare(cache: Cache, model: Model, shown: Shown) -> Sampled:
    """Encode a clip's source anew and compare."""
    z = torch.from_numpy(encode_clips(model, shown.original[None], cache.manifest.precision))
    before = cache.read([shown.row])
    difference = (before.float() - z.float()).norm() / z.float().norm()
    return Sampled(
        video=shown.video,
        first=shown.first,
        shard=cache.shard_of(shown.row),
        psnr=_psnr(shown.original, shown.decoded),
        psnr_anew=_psnr(shown.original, decode_clips(model, z)[0]),
        difference=float(difference),
    )


def _psnr(original: Frames, decoded: Frames) -> float:
    """Peak signal-to-noise ratio of one clip in dB."""
    x, again = (pixels.to_float(torch.from_numpy(each[None])) for each in (original, decoded))
    return float(pixels.psnr(x, again))


def _disagreement(path: Path, found: Sampled) -> Problem:
    """Say that a clip is not what its source gives."""
    return Problem(
        found.shard,
        f"{path / found.shard}: the clip of {found.video} from frame {found.first} on decodes to "
        f"{found.psnr:.2f} dB, encoded anew to {found.psnr_anew:.2f} dB (latents differ by "
        f"{found.difference:.1%}): if the video has changed run the same `pvdm encode` again, "
        "else encode afresh with --overwrite",
    )
