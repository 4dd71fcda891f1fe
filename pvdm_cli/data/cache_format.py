"""What the files of a triplane latent cache hold; `cache` reads them, `cache_writer` makes them.

A cache is a folder of `manifest.json`, `videos.jsonl`, `skipped.jsonl` and shards. A row is one
clip: z [c, n] and (video, first frame, label). First frames count frames of the source; the
`frames` of a video count what is left at the clip's frame stride.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, ValidationError

from pvdm_cli.config import ClipConfig, LatentShape, Section, differing_keys
from pvdm_cli.errors import DataError

FORMAT = 1
MANIFEST, VIDEOS, SKIPPED = "manifest.json", "videos.jsonl", "skipped.jsonl"
HINTS = ("autoencoder", "source", "command")  # may be edited: the hash leaves them out
RESTORE = "run the same `pvdm encode` again to restore it"


class Identity(Section):
    """What all rows of one cache share; a cache is continued only where all of it agrees."""

    fingerprint: str = Field(description="sha256 of the autoencoder's weights")
    clip: ClipConfig
    patch: int
    channels: int
    window_stride: int = Field(ge=1, description="frames between the starts of two clips")
    dtype: Literal["float16"] = "float16"
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    keep_partial: bool = False

    @property
    def shape(self) -> LatentShape:
        """Sizes of one clip's latent."""
        clip = self.clip
        return LatentShape(
            self.channels, clip.frames, clip.height // self.patch, clip.width // self.patch
        )

    @property
    def step(self) -> int:
        """Source frames from the start of a clip to the start of the next one cached."""
        return self.window_stride * self.clip.frame_stride

    def num_windows(self, frames: int) -> int:
        """Clips that a video of so many frames (at the frame stride) gives."""
        return max(0, (frames - self.clip.frames) // self.window_stride + 1)


class Rounding(NamedTuple):
    """What fp16 has cost some latents: z in the cache against z as the network gave it."""

    largest: float  # absolute error
    squares: float  # sum of squared errors


class Shard(Section):
    """One visible shard: what to expect in the file, and what its statistics need.

    Hashes and rounding are absent in caches that were made before they were kept.
    """

    name: str
    clips: int
    bytes: int
    sha256: str = Field(description="of the file")
    latents: str | None = Field(None, description="sha256 of z; the file's header repeats it")
    index: str | None = Field(None, description="sha256 of header and index")
    rounding: Rounding | None = None
    sums: list[list[float]] = Field(description="[3, c] sum of z per plane and channel")
    squares: list[list[float]] = Field(description="[3, c] sum of z^2 per plane and channel")


class Fp16Loss(Section):
    """Error of the cached latents against the network's own, over the whole cache."""

    max: float
    rms: float
    relative: float = Field(description="rms over the rms of the latents")


class Manifest(Identity):
    """The whole `manifest.json`; statistics, counts and hashes are there once it is complete."""

    format: Literal[1] = 1
    complete: bool = False
    sha256: str | None = Field(None, description="of all else here but hints, so of the whole")
    lists: str | None = Field(None, description="sha256 of videos.jsonl and skipped.jsonl")
    autoencoder: str | None = Field(None, description="where the weights were: a hint")
    source: str | None = Field(None, description="where the videos were: a hint")
    command: tuple[str, ...] = Field((), description="what made it last: a hint")
    fps: float | None = Field(None, description="median source rate over the frame stride")
    mean: tuple[tuple[float, ...], ...] = ()
    std: tuple[tuple[float, ...], ...] = ()
    fp16_loss: Fp16Loss | None = None
    videos: int = 0
    clips: int = 0
    skipped: int = 0
    labels: tuple[str, ...] = Field((), description="names of classes; a row holds the place here")
    shards: tuple[Shard, ...] = ()

    @property
    def identity(self) -> Identity:
        """The part that must agree for the cache to be continued."""
        return Identity.model_validate(self.model_dump(include=set(Identity.model_fields)))

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)


class VideoRow(NamedTuple):
    """One line of `videos.jsonl`; frames is None for a video that gave no clips."""

    video: int
    path: str
    size: int
    mtime: int  # nanoseconds
    frames: int | None = None
    fps: float | None = None
    note: str | None = None
    label: int = -1  # place of its class in the manifest's labels; -1: none
    sha256: str | None = None  # of its content, if it was asked for


class Skipped(NamedTuple):
    """One line of `skipped.jsonl`: a video without clips, and why."""

    video: int
    path: str
    reason: str


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a cache folder, complete or not.

    Raises:
        DataError: If there is none, it is damaged, was changed after it was written, or has
            another format.
    """
    file = path / MANIFEST
    values = _read_values(path)
    found = values.get("format") if isinstance(values, dict) else None
    if found != FORMAT:
        raise DataError(f"{file}: cache format {found!r}, but this version reads format {FORMAT}")
    if values.get("sha256") not in (None, whole_hash(values)):
        raise DataError(
            f"{file} is damaged: its content does not have the hash it names; put the original "
            "back, or encode afresh with --overwrite"
        )
    try:
        return Manifest.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in problem["loc"])
        raise DataError(f"{file}: key {key!r}: {problem['msg']}; encode again") from None


def _read_values(path: Path) -> Any:
    """Parse the manifest of a cache folder."""
    file = path / MANIFEST
    if not path.is_dir():
        raise DataError(f"no cache at {path}; `pvdm encode VIDEOS --out {path}` makes one")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"{path} is not a latent cache (no {MANIFEST}); `pvdm encode` makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not readable ({error}); encode again with --overwrite") from None


def whole_hash(values: Mapping[str, Any]) -> str:
    """Hash a complete cache by the JSON values of its manifest.

    They name the hash of every shard, of every index and of the lists, so that a change of any
    byte changes this one. Hints do not count, nor does the hash itself.
    """
    kept = {key: value for key, value in values.items() if key not in ("sha256", *HINTS)}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def lists_hash(path: Path) -> str:
    """Hash the lists of videos and of skipped videos; an absent file counts as empty."""
    found = hashlib.sha256()
    for name in (VIDEOS, SKIPPED):
        try:
            content = (path / name).read_bytes()
        except FileNotFoundError:
            content = b""
        except OSError as error:
            raise DataError(f"{path / name}: not readable ({error.strerror})") from None
        found.update(b"%d\n" % len(content) + content)
    return found.hexdigest()


def require_lists(path: Path, manifest: Manifest) -> None:
    """Check that the lists are those that the manifest was written with.

    Raises:
        DataError: If they are not: one of them was changed, or the manifest is another cache's.
    """
    if manifest.lists not in (None, lists_hash(path)):
        raise DataError(
            f"cache {path}: {MANIFEST} does not belong to {VIDEOS} and {SKIPPED}: it is another "
            "cache's, or one of them was changed; put the right file back, or encode afresh with "
            "--overwrite"
        )


def require_same(path: Path, theirs: Identity, ours: Identity) -> None:
    """Refuse to mix clips of two autoencoders, geometries or policies in one cache.

    Raises:
        DataError: Naming both fingerprints, or each differing key with both values.
    """
    choices = "choose another --out or encode afresh with --overwrite"
    if theirs.fingerprint != ours.fingerprint:
        raise DataError(
            f"{path} was made by the autoencoder with fingerprint {theirs.fingerprint[:16]}, "
            f"not by the given one ({ours.fingerprint[:16]}): {choices}"
        )
    keys = differing_keys(theirs, ours)
    if keys:
        said = ", ".join(f"{key}={_leaf(theirs, key)} (now {_leaf(ours, key)})" for key in keys)
        raise DataError(f"{path} was made with {said}: {choices}")


def _leaf(section: Section, dotted: str) -> object:
    """Value of a dotted key."""
    value: Any = section
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def read_videos(path: Path) -> list[VideoRow]:
    """Read `videos.jsonl` of a cache folder; an absent file holds no videos."""
    return _rows(VideoRow, path / VIDEOS)


def read_skipped(path: Path) -> list[Skipped]:
    """Read `skipped.jsonl` of a cache folder; an absent file holds no videos."""
    return _rows(Skipped, path / SKIPPED)


def to_lines(rows: list[VideoRow] | list[Skipped]) -> str:
    """Write rows as JSON lines."""
    return "".join(json.dumps(row._asdict(), ensure_ascii=False) + "\n" for row in rows)


def _rows(kind: Any, file: Path) -> list[Any]:
    """Build a named tuple from each line of JSON; all are parsed at once, which is faster."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
        return [kind(**row) for row in json.loads(f"[{','.join(filter(None, lines))}]")]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: not readable ({error}); encode again with --overwrite") from None
