"""`pvdm encode`: videos to a latent cache."""

import sys
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer

from pvdm_cli.cli import dataset_options as options
from pvdm_cli.cli import launch, render
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
from pvdm_cli.cli.launch import NnodesOpt, NprocOpt, RdzvOpt, RestartsOpt
from pvdm_cli.cli.options import (
    DebugOpt,
    DeviceOpt,
    JsonOpt,
    OutOpt,
    OverwriteOpt,
    QuietOpt,
    SeedOpt,
)


class Precision(StrEnum):
    """Arithmetic of the network."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


def _batch_size(text: str) -> Any:
    """Read a number of clips, or "auto"."""
    if text == "auto":
        return text
    if not text.isdigit() or not int(text):
        raise typer.BadParameter(f"{text!r} is neither a number of clips nor 'auto'")
    return int(text)


BatchSizeOpt = Annotated[
    Any,
    typer.Option(
        "--batch-size",
        parser=_batch_size,
        metavar="N|auto",
        help="Clips per forward pass; halved where memory runs out. 'auto' suits the device.",
    ),
]
WorkersOpt = Annotated[
    int | None,
    typer.Option(
        "--workers",
        min=0,
        metavar="N",
        help="Processes that decode; 0 decodes in threads. By default 1 on a CPU, up to 4 on a GPU.",
    ),
]
PrecisionOpt = Annotated[Precision, typer.Option("--precision", help="Arithmetic of the network.")]
CompileOpt = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile the network first: minutes on a CPU, for more clips a second."
    ),
]
StrictOpt = Annotated[
    bool, typer.Option("--strict", help="Stop at the first video that cannot be used.")
]
KeepPartialOpt = Annotated[
    bool,
    typer.Option(
        "--keep-partial", help="Keep what precedes a decode error instead of skipping the video."
    ),
]
HashOpt = Annotated[
    bool,
    typer.Option(
        "--hash",
        help="Know videos by their content instead of name, size and time: a video that was moved "
        "or touched is not encoded again. Reads all of them.",
    ),
]
ShardSecondsOpt = Annotated[
    float,
    typer.Option(
        "--shard-seconds", min=0, help="Save at least this often: a kill loses no more than that."
    ),
]
ShardMegabytesOpt = Annotated[
    int, typer.Option("--shard-mb", min=1, help="Size at which a cache file is closed, in MiB.")
]


def encode(
    videos: VideosArg,
    out: OutOpt,
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
    batch_size: BatchSizeOpt = "auto",
    workers: WorkersOpt = None,
    precision: PrecisionOpt = Precision.fp32,
    compiled: CompileOpt = False,
    strict: StrictOpt = False,
    keep_partial: KeepPartialOpt = False,
    by_hash: HashOpt = False,
    shard_seconds: ShardSecondsOpt = 60.0,
    shard_mb: ShardMegabytesOpt = 256,
    overwrite: OverwriteOpt = False,
    device: DeviceOpt = "auto",
    nproc_per_node: NprocOpt = None,
    nnodes: NnodesOpt = "1",
    rdzv_endpoint: RdzvOpt = None,
    max_restarts: RestartsOpt = 3,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Encode videos into a triplane latent cache, which diffusion training reads.

    The same command again continues after a kill, adds new videos and encodes changed ones anew.
    Videos that cannot be used are named in skipped.jsonl, and the exit code is then 3; so it is
    when a list names videos that are not there. A class keeps its id when a cache is continued.
    What decides which frames are shown belongs to a cache: other settings are refused.

    Examples:
        pvdm encode videos --out cache
        pvdm encode videos --autoencoder runs/autoencoder --out cache --window-stride 8
        pvdm encode videos --autoencoder runs/autoencoder --out cache --strict --json
        pvdm encode UCF-101 --autoencoder runs/autoencoder --labels folders --split train --out cache
        pvdm encode clips.csv --rate 8 --crop letterbox --short hold --flip --out cache
        pvdm encode videos --include '*.mp4' --exclude 'broken/*' --out cache
        pvdm encode videos --out cache --nproc-per-node gpu --precision bf16
    """
    launch.hand_over(nproc_per_node, nnodes, rdzv_endpoint, max_restarts)
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    result = api.encode(
        videos,
        out,
        autoencoder=autoencoder,
        labels=labels,
        selection=options.selection(include, exclude, split, fold),
        holdout=holdout,
        window_stride=window_stride,
        frame_stride=frame_stride,
        policy=options.policy(rate, fps, short, crop, flip, seed),
        batch_size=None if batch_size == "auto" else batch_size,
        workers=workers,
        precision=precision.value,
        compiled=compiled,
        strict=strict,
        keep_partial=keep_partial,
        by_hash=by_hash,
        shard_bytes=shard_mb << 20,
        shard_seconds=shard_seconds,
        overwrite=overwrite,
        device=device,
        command=["pvdm", *(word for word in sys.argv[1:] if word != "--overwrite")],
        reporter=reporter,
    )
    classes = f" of {len(result.classes)} classes" if result.classes else ""
    reporter.say(
        f"{result.out}: {result.videos} videos{classes}, {result.clips} clips "
        f"({result.bytes / 1e6:.1f} MB); {result.new_clips} clips encoded now"
    )
    speed = result.speed
    if speed.clips:
        shares = ", ".join(f"{stage} {share:.0%}" for stage, share in speed.shares.items())
        reporter.say(
            f"{speed.clips / speed.seconds:.4g} clips/s, {speed.frames / speed.seconds:.4g} "
            f"frames/s; busy: {shares} ({speed.limit} is the limit)"
        )
    if result.skipped:
        reporter.say(f"{len(result.skipped)} videos skipped: {result.out / 'skipped.jsonl'}")
    if as_json:
        skipped = [{"path": one.path, "reason": one.reason} for one in result.skipped]
        overall = {"clips_per_second": result.clips_per_second, "limit": speed.limit}
        render.print_json({**asdict(result), **overall, "skipped": skipped})
    if result.skipped or result.missing:
        raise typer.Exit(SOME_SKIPPED)
