"""`pvdm data`: what a data set holds, and videos to practise with."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pvdm_cli.cli import dataset_options as options
from pvdm_cli.cli import render
from pvdm_cli.cli.dataset_options import (
    SOME_SKIPPED,
    AutoencoderOpt,
    Crop,
    CropOpt,
    ExcludeOpt,
    FlipOpt,
    FoldOpt,
    FpsOpt,
    FrameStrideOpt,
    HoldoutOpt,
    IncludeOpt,
    LabelsOpt,
    RateOpt,
    Short,
    ShortOpt,
    Side,
    SplitOpt,
    VideosArg,
    WindowStrideOpt,
)
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, OutOpt, QuietOpt, SeedOpt

if TYPE_CHECKING:
    from pvdm_cli.survey import Survey

SHOWN = 5  # most frequent values of each kind
NAMED = 20  # videos that cannot be used
BAR = 20  # characters

FullOpt = Annotated[
    bool,
    typer.Option("--full", help="Decode every video to its end: counts for certain, finds damage."),
]
TimeOpt = Annotated[
    bool, typer.Option("--time/--no-time", help="Measure on a few clips how long encoding takes.")
]
NumOpt = Annotated[int, typer.Option("--num", min=1, help="How many videos.")]
FramesOpt = Annotated[int, typer.Option("--frames", min=1, help="Frames of each.")]
SizeOpt = Annotated[int, typer.Option("--size", min=16, help="Height and width in pixels.")]


def ls(
    videos: VideosArg,
    autoencoder: AutoencoderOpt = "demo",
    labels: LabelsOpt = None,
    include: IncludeOpt = None,
    exclude: ExcludeOpt = None,
    split: SplitOpt = Side.all,
    fold: FoldOpt = 1,
    holdout: HoldoutOpt = None,
    window_stride: WindowStrideOpt = None,
    frame_stride: FrameStrideOpt = None,
    rate: RateOpt = None,
    fps: FpsOpt = None,
    short: ShortOpt = Short.skip,
    crop: CropOpt = Crop.centre,
    flip: FlipOpt = False,
    seed: SeedOpt = 0,
    full: FullOpt = False,
    time: TimeOpt = True,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Tell what a data set holds, which videos are broken or too short, and what encoding makes of it.

    Options are those of `pvdm encode`: clips, size of the cache and time are what they lead to.
    Headers are read and one frame of each video; --full decodes all. The exit code is 3 if
    videos are broken or missing.

    Examples:
        pvdm data ls videos
        pvdm data ls videos --autoencoder runs/autoencoder --window-stride 4 --full
        pvdm data ls UCF-101 --split train --labels folders --json
    """
    from pvdm_cli import api  # torch loads here, not for --help

    found = api.survey(
        videos,
        autoencoder=autoencoder,
        labels=labels,
        selection=options.selection(include, exclude, split, fold),
        holdout=holdout,
        window_stride=window_stride,
        frame_stride=frame_stride,
        policy=options.policy(rate, fps, short, crop, flip, seed),
        full=full,
        timed=time,
        device=device,
        reporter=render.reporter(quiet),
    )
    if as_json:
        render.print_json(found.facts())
    else:
        _show(found, autoencoder)
    if found.broken or found.missing:
        raise typer.Exit(SOME_SKIPPED)


def _show(found: "Survey", autoencoder: str) -> None:
    """Print a survey for reading."""
    render.print_columns(_summary(found, autoencoder))
    rows = list(_most_frequent(found))
    if rows:
        render.print_table(("", "", "videos", ""), rows, right=("videos",))
    unusable = [
        *((name, f"broken: {why}") for name, why in found.broken.items()),
        *((name, f"too short: {why}") for name, why in found.short.items()),
        *((name, "missing: named, but not there") for name in found.missing),
    ]
    if unusable:
        render.print_table(("not usable", "why"), unusable[:NAMED])
    if len(unusable) > NAMED:
        print(f"and {len(unusable) - NAMED} more: --json lists them all")


def _summary(found: "Survey", autoencoder: str) -> Iterator[tuple[str, str]]:
    """Yield the main figures."""
    facts = found.facts()
    identity, clip, policy = found.identity, found.identity.clip, found.identity.policy
    usable = f"{facts['usable']:,} of {facts['videos']:,} give clips"
    yield "videos", usable + (" (every second one mirrored)" if policy.flip else "")
    for what in ("broken", "short", "missing"):
        if facts[what]:
            yield f"{'too ' * (what == 'short')}{what}", f"{len(facts[what]):,}"
    said = {
        "header": "told by headers",
        "estimate": "estimated (--full counts)",
        "decoding": "decoded",
    }
    by = ", ".join(f"{n:,} videos {said[how]}" for how, n in facts["frames_counted_by"].items())
    yield "frames", f"{facts['frames']:,}" + (f"; {by}" if by else "")
    hours = found.hours
    yield "length", _duration(3600 * hours) if hours else "unknown: no frame rate, --fps says it"
    every = f"every {clip.frame_stride} frames, " if clip.frame_stride > 1 else ""
    every = every if policy.rate is None else f"{policy.rate:g} a second, "
    yield (
        "clips",
        f"{found.clips:,} of {clip.frames} frames, {every}{clip.width}x{clip.height}; one every "
        f"{identity.window_stride}",
    )
    yield "cache", f"{_size(found.bytes)} by the autoencoder {autoencoder}"
    if found.seconds is not None:
        how = f"{found.device}, fp32, measured on {found.tried} clips"
        yield "encoding", f"about {_duration(found.seconds)} here ({how})"
    if not found.full and facts["videos"]:
        yield "looked at", "headers and first frames; --full finds damage inside"


def _most_frequent(found: "Survey") -> Iterator[tuple[str, str, int, str]]:
    """Yield rows of the most frequent resolutions, rates, codecs and classes."""
    total = max(1, len(found.looks))
    for what, counts in found.counts().items():
        values = list(counts.items())
        head = what
        for value, count in values[:SHOWN]:
            yield head, value, count, "█" * max(1, round(BAR * count / total))
            head = ""
        if len(values) > SHOWN:
            rest = sum(count for _, count in values[SHOWN:])
            yield "", f"{len(values) - SHOWN} others", rest, ""


def _size(count: int) -> str:
    """Write bytes; caches are counted in GB from 0.1 on."""
    return f"{count / 1e9:.3g} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"


def _duration(seconds: float) -> str:
    """Write a time to two figures, in the unit that suits it."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.2g} {unit}"
    return f"{max(1, round(seconds))} s"


def sky(
    out: OutOpt,
    num: NumOpt = 100,
    frames: FramesOpt = 64,
    size: SizeOpt = 64,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Draw procedural sky time-lapses: drifting clouds, day to dusk; the same for the same seed.

    They are what the shipped demo model was trained on. Files already there are kept.

    Examples:
        pvdm data sky --out videos
        pvdm data sky --num 800 --frames 64 --out videos
    """
    from pvdm_cli import api  # video libraries load here, not for --help

    reporter = render.reporter(quiet)
    paths = api.draw_skies(out, num=num, frames=frames, size=size, seed=seed, reporter=reporter)
    reporter.say(f"{out}: {len(paths)} videos of {frames} frames")
    if as_json:
        render.print_json([str(path) for path in paths])
