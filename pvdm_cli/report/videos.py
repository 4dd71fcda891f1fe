"""Sample videos inside the page: the first, the middle and the newest, within a budget."""

import base64
from dataclasses import dataclass
from pathlib import Path

from pvdm_cli.report.markup import Child, Markup, tag
from pvdm_cli.report.scales import file_size

KINDS = {
    ".mp4": "video/mp4",
    ".webm": "video/webm",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
SHOWN = {
    "autoencoder": "originals and, to the right of each, their reconstruction",
    "diffusion": "sampled, two clips long",
}


@dataclass(frozen=True)
class Shown:
    """A sample video of a run.

    Attributes:
        path: The file.
        which: What it is of them: first, middle or newest.
        content: Its bytes; None where there was no room.
        bytes: Their number.
    """

    path: Path
    which: str
    content: bytes | None
    bytes: int


def pick(run: Path, room: int) -> tuple[list[Shown], int]:
    """Take the first, middle and newest sample video of a run, the newest before all else.

    Args:
        run: The run folder.
        room: Bytes there are for them.

    Returns:
        The videos in order of time, and the room that is left.
    """
    files = sorted(
        path
        for path in (run / "samples").glob("*")
        if path.suffix.lower() in KINDS and not path.name.startswith(".") and path.is_file()
    )
    if not files:
        return [], room
    last = len(files) - 1
    wanted = {last // 2: "middle"} | {0: "first"} | {last: "newest"}
    shown: dict[int, Shown] = {}
    for number in sorted(wanted, key=lambda n: ("newest", "first", "middle").index(wanted[n])):
        try:
            size = files[number].stat().st_size
            content = files[number].read_bytes() if 0 < size <= room else None
        except OSError:  # removed since
            continue
        room -= len(content or b"")
        shown[number] = Shown(files[number], wanted[number], content, size)
    return [shown[number] for number in sorted(shown)], room


def figure(shown: Shown, stage: str, whose: Child = None) -> Markup:
    """Show one video, or say that there was no room for it.

    Args:
        shown: The video.
        stage: Says what can be seen on it.
        whose: Names its run, where there are several.
    """
    step = shown.path.stem.removeprefix("step-").lstrip("0")
    name = f"step {int(step):,}" if step.isdigit() else shown.path.name
    words = f"{shown.which.capitalize()}, {name}: {SHOWN.get(stage, 'a sample')}."
    caption = tag("figcaption", [whose, tag("br")] if whose else None, words)
    if shown.content is None:
        left = f"{shown.path} ({file_size(shown.bytes)}) is left out; --video-mb gives more room."
        return tag("figure", tag("p", left, class_="note"), caption)
    return tag("figure", _player(shown, words), caption)


def _player(shown: Shown, words: str) -> Markup:
    """Embed the file itself."""
    assert shown.content is not None
    kind = KINDS[shown.path.suffix.lower()]
    source = f"data:{kind};base64,{base64.b64encode(shown.content).decode('ascii')}"
    if kind.startswith("image/"):
        return tag("img", src=source, alt=words)
    return tag(
        "video",
        muted=True,
        loop=True,
        autoplay=True,
        playsinline=True,
        controls=True,
        src=source,
        aria_label=words,
    )
