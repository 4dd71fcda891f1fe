"""`pvdm eval`: how good videos are, and how well an autoencoder gives them back."""

import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.encode import SOME_SKIPPED
from pvdm_cli.cli.options import (
    CheckpointOpt,
    DebugOpt,
    DeviceOpt,
    JsonOpt,
    ModelArg,
    QuietOpt,
    SeedOpt,
)
from pvdm_cli.errors import PvdmError

if TYPE_CHECKING:
    from pvdm_cli.evaluation.fvd import FvdResult
    from pvdm_cli.evaluation.inception import InceptionResult
    from pvdm_cli.evaluation.reconstruction import ReconstructionResult

NAMED = 5  # videos left out that are named; --json names all


class Split(StrEnum):
    """Videos of a data folder."""

    held_out = "held-out"
    train = "train"
    all = "all"


class Protocol(StrEnum):
    """How a score is computed."""

    stylegan_v = "stylegan-v"
    pvdm = "pvdm"


class Convention(StrEnum):
    """How clips are put into splits."""

    stylegan_v = "stylegan-v"
    tgan2 = "tgan2"


class RealOrder(StrEnum):
    """Which real videos come first."""

    shuffled = "shuffled"
    sorted = "sorted"


class RealClips(StrEnum):
    """Which windows of a real video."""

    one = "one"
    all = "all"


def fvd(
    real: Annotated[Path, typer.Option(metavar="DIR", help="The real videos.")],
    fake: Annotated[
        Path, typer.Option(metavar="DIR", help="The generated ones: any videos, or .npz.")
    ],
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    frame_stride: Annotated[int, typer.Option(help="Take every so-manyth frame.")] = 1,
    fake_start: Annotated[
        int, typer.Option(metavar="K", help="Score the clip at frame K of each fake video.")
    ] = 0,
    real_clips: Annotated[
        RealClips,
        typer.Option(help="A random clip of each real video, or all that touch."),
    ] = RealClips.one,
    protocol: Annotated[
        Protocol, typer.Option(help="How the score is computed: docs/evaluation.md.")
    ] = Protocol.stylegan_v,
    size: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="Compare at this size; else that of the fake videos."),
    ] = None,
    num: Annotated[int, typer.Option(help="Most clips of either side.")] = 2048,
    real_order: Annotated[
        RealOrder, typer.Option(help="Which real videos come first, where there are more.")
    ] = RealOrder.shuffled,
    repeats: Annotated[
        int, typer.Option(metavar="R", help="Score R times, real clips drawn anew.")
    ] = 1,
    bootstrap: Annotated[
        int, typer.Option(metavar="B", help="Draw both sides B times with replacement.")
    ] = 0,
    counts: Annotated[
        str | None,
        typer.Option(metavar="N,N", help="Also score so many clips of either side."),
    ] = None,
    yardsticks: Annotated[
        bool, typer.Option("--yardsticks", help="Also score real halves, stills, shuffled frames.")
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Neither use nor keep features of real clips.")
    ] = False,
    save_features: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Write the features of both sides.")
    ] = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure the Frechet video distance between real and generated videos.

    Needs the Kinetics-400 I3D: get i3d_pretrained_400.pt from huggingface.co/Xiaodong/FVD_I3D and
    put it into ~/.cache/pvdm, or let PVDM_I3D name the file.

    Examples:
        pvdm eval fvd --real videos --fake samples
        pvdm eval fvd --real videos --fake samples --real-clips all --fake-start 112
        pvdm eval fvd --real videos --fake samples --frames 128 --protocol pvdm --json
    """
    pixels = None if size is None else _size(size)
    numbers = [] if counts is None else _numbers(counts)
    from pvdm_cli import api  # torch loads here, not for --help

    result = api.eval_fvd(
        real,
        fake,
        frames=frames,
        frame_stride=frame_stride,
        fake_start=fake_start,
        real_clips=real_clips.value,
        real_order=real_order.value,
        protocol=protocol.value,
        size=pixels,
        num=num,
        seed=seed,
        repeats=repeats,
        bootstrap=bootstrap,
        counts=numbers,
        yardsticks=yardsticks,
        keep=not fresh,
        save_features=save_features,
        device=device,
        reporter=render.reporter(quiet),
    )
    if as_json:
        render.print_json(asdict(result))
    else:
        _show_fvd(result)
    if result.skipped:
        raise typer.Exit(SOME_SKIPPED)


def is_(
    fake: Annotated[Path, typer.Option(metavar="DIR", help="The generated videos.")],
    convention: Annotated[
        Convention, typer.Option(help="Ten splits of 2,048 clips, or ten runs of as many.")
    ] = Convention.stylegan_v,
    num: Annotated[
        int | None, typer.Option(min=10, help="Most clips; else those of the convention.")
    ] = None,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure the inception score of generated videos with C3D, fine-tuned on UCF-101.

    Needs conv3d_deepnetA_ucf.npz and mean2.npz from the release v1.0 of github.com/rezoo/tgan2, in
    ~/.cache/pvdm. Scores of the two conventions are not comparable with each other.

    Examples:
        pvdm eval is --fake samples
        pvdm eval is --fake samples --convention tgan2 --json
    """
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    result = api.eval_inception(
        fake, convention=convention.value, num=num, device=device, reporter=reporter
    )
    if as_json:
        render.print_json(asdict(result))
    else:
        _show_inception(result)
    if result.skipped:
        raise typer.Exit(SOME_SKIPPED)


def reconstruction(
    model: ModelArg,
    data: Annotated[Path, typer.Option(metavar="DIR", help="The videos.")],
    split: Annotated[
        Split, typer.Option(help="Which of them; as in training, by a hash of the name.")
    ] = Split.held_out,
    holdout: Annotated[
        float | None,
        typer.Option(min=0, max=0.999, help="Share held out; else that of the run, or 0.05."),
    ] = None,
    num: Annotated[int | None, typer.Option(min=1, help="Only the first N videos of it.")] = None,
    checkpoint: CheckpointOpt = None,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure how well an autoencoder gives back the first clip of each video.

    PSNR and SSIM, beside the PSNR of a still picture, and where the I3D is (`pvdm eval fvd --help`)
    the distance of its features, rFVD.

    Examples:
        pvdm eval reconstruction runs/autoencoder --data videos
        pvdm eval reconstruction runs/autoencoder --data videos --split train --num 64
        pvdm eval reconstruction runs/autoencoder --data videos --checkpoint best --json
    """
    from pvdm_cli import api  # torch loads here, not for --help

    result = api.eval_reconstruction(
        model,
        data,
        split=split.value,
        holdout=holdout,
        num=num,
        checkpoint=checkpoint,
        device=device,
        reporter=render.reporter(quiet),
    )
    if as_json:
        clips = [clip._asdict() for clip in result.clips]
        means = {
            name: getattr(result, name) for name in ("psnr", "psnr_mean_frame", "ssim", "differs")
        }
        render.print_json({**asdict(result), **means, "clips": clips})
    else:
        _show_reconstruction(result)
    if result.skipped:
        raise typer.Exit(SOME_SKIPPED)


def _size(text: str) -> tuple[int, int]:
    """Read "64" or "64x96"."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and (width or height).isdigit() and int(height) * int(width or 1)):
        raise PvdmError(f"--size {text!r}: expected a side or height x width, like 64 or 64x96")
    return int(height), int(width or height)


def _numbers(text: str) -> list[int]:
    """Read "256,512"."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise PvdmError(f"--counts {text!r}: expected whole numbers, like 256,512,1024")
    return [int(part) for part in parts]


def _show_fvd(result: "FvdResult") -> None:
    """Print a score and what it rests on."""
    used, sides = result.protocol, (("real", result.real), ("fake", result.fake))
    rows = [("FVD", f"{result.fvd:.2f}")]
    for name, side in sides:
        resized = f", {side.resized} resized" if side.resized else ""
        kept = ", features kept from before" if side.kept else ""
        about = f"{side.clips:,} clips of {side.videos:,} videos{resized}{kept}"
        rows.append((name, f"{about}: {side.path}"))
    stride = f" at stride {used['frame_stride']}" if used["frame_stride"] > 1 else ""
    start = f"; fake ones from frame {used['fake_start']}" if used["fake_start"] else ""
    rows += [
        ("clips", f"{used['frames']} frames{stride}, {used['height']} x {used['width']}{start}"),
        ("protocol", f"{used['name']}: {used['resize']}; covariance {used['covariance']}"),
        ("seed", f"{used['seed']}"),
        ("detector", f"{used['detector']}, sha256 {used['detector_sha256'][:16]}"),
    ]
    render.print_columns([rows[0], *_spread(result), *rows[1:]])
    _show_differences(result.differs)
    for name, side in sides:
        _show_skipped(side.skipped, f"{name} videos")


def _spread(result: "FvdResult") -> list[tuple[str, str]]:
    """What was asked for beside the score."""
    rows = []
    for name, scores in (("repeats", result.repeats), ("bootstrap", result.bootstrap)):
        if len(scores) > 1:
            about = f"{fmean(scores):.2f} ± {stdev(scores):.2f} over {len(scores)}"
            rows.append((name, about))
    rows += [(f"FVD of {count:,}", f"{score:.2f}") for count, score in result.counts.items()]
    if result.extrapolated is not None:
        rows.append(("of infinitely many", f"{result.extrapolated:.2f} (line through 1/n)"))
    names = {"real_halves": "half of the real", "still": "stills", "shuffled": "shuffled frames"}
    for name, score in result.yardsticks.items():
        rows.append((names[name], "-" if score is None else f"{score:.2f} from the real clips"))
    return rows


def _show_inception(result: "InceptionResult") -> None:
    """Print a score and what it rests on."""
    used = result.protocol
    rows = [
        ("inception score", f"{result.mean:.2f} ± {result.std:.2f}"),
        ("convention", f"{used['convention']}, {used['splits']} splits"),
        ("clips", f"{result.clips:,} of {used['frames']} frames: {result.fake}"),
        ("detector", f"{used['detector']}, sha256 {used['detector_sha256'][:16]}"),
    ]
    render.print_columns(rows)
    _show_differences(result.differs)
    _show_skipped(result.skipped, "videos")


def _show_reconstruction(result: "ReconstructionResult") -> None:
    """Print means over clips."""
    rows = [
        ("PSNR", f"{result.psnr:.2f} dB"),
        ("of a still picture", f"{result.psnr_mean_frame:.2f} dB"),
        ("SSIM", "-" if result.ssim is None else f"{result.ssim:.4f}"),
        ("rFVD", "-" if result.rfvd is None else f"{result.rfvd:.2f}"),
        ("clips", f"{len(result.clips):,}: first window of each video, {_split(result)}"),
        ("model", result.model),
        ("data", str(result.data)),
    ]
    used = result.protocol
    if "detector" in used:
        rows.append(("detector", f"{used['detector']}, sha256 {used['detector_sha256'][:16]}"))
    render.print_columns(rows)
    if "missing" in used:
        typer.echo(_wrapped(f"no rFVD: {used['missing']}"))
    _show_differences(result.differs)
    _show_skipped(result.skipped, "videos")


def _split(result: "ReconstructionResult") -> str:
    """Name the split, with the share that decides it."""
    return result.split if result.split == "all" else f"{result.split} ({result.holdout:g})"


def _show_differences(differs: Iterable[str]) -> None:
    """Say why a score may not be compared with published figures."""
    for number, reason in enumerate(differs):
        lead = "not comparable with published figures: " if number == 0 else "and: "
        typer.echo(_wrapped(lead + reason))


def _show_skipped(skipped: Mapping[str, str], what: str) -> None:
    """Name some videos that were left out."""
    if skipped:
        typer.echo(f"{len(skipped)} {what} left out:", err=True)
    for name, reason in list(skipped.items())[:NAMED]:
        typer.echo(f"  {name}: {reason}", err=True)
    if len(skipped) > NAMED:
        typer.echo(f"  and {len(skipped) - NAMED} more; --json names them", err=True)


def _wrapped(line: str) -> str:
    """Break a long line for the terminal."""
    return textwrap.fill(line, width=79, subsequent_indent="  ")
