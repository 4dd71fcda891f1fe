"""`pvdm sample`: long videos from a trained model."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pvdm_cli.cli import launch, render
from pvdm_cli.cli.launch import NnodesOpt, NprocOpt, RdzvOpt, RestartsOpt
from pvdm_cli.cli.options import (
    CheckpointOpt,
    DebugOpt,
    DeviceOpt,
    JsonOpt,
    ModelArg,
    OutOpt,
    OverwriteOpt,
    QuietOpt,
    SeedOpt,
)
from pvdm_cli.cli.signals import stoppable
from pvdm_cli.ranks import here


class Sampler(StrEnum):
    """Names of the samplers."""

    ddim = "ddim"
    ddpm = "ddpm"
    dpmpp = "dpm++"
    unipc = "unipc"
    euler = "euler"
    heun = "heun"


class Spacing(StrEnum):
    """Ways to choose timesteps."""

    published = "published"
    leading = "leading"
    trailing = "trailing"
    karras = "karras"


class Variance(StrEnum):
    """Noise of ancestral steps."""

    small = "small"
    large = "large"


class Format(StrEnum):
    """File formats of videos."""

    mp4 = "mp4"
    gif = "gif"
    webp = "webp"
    png = "png"
    npz = "npz"


class Precision(StrEnum):
    """Arithmetic of the networks."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    auto = "auto"


class GridFormat(StrEnum):
    """File formats of the grid."""

    mp4 = "mp4"
    gif = "gif"
    webp = "webp"


def sample(
    model: ModelArg = "demo",
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, help="Frames of each video, 128 by default; more continue what is there."
        ),
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Length of each video in seconds, instead of --frames.")
    ] = None,
    num: Annotated[int, typer.Option("--num", "-n", min=1, help="How many videos.")] = 1,
    out: OutOpt = Path("samples"),
    steps: Annotated[
        str,
        typer.Option(
            metavar="N/M",
            help="Network steps of the first clip / of each following one. DDIM with as many as "
            "were trained (1000) means ancestral sampling.",
        ),
    ] = "100/20",
    sampler: Annotated[Sampler, typer.Option(help="How clips are drawn.")] = Sampler.ddim,
    spacing: Annotated[
        Spacing, typer.Option(help="Which of the trained timesteps the steps start from.")
    ] = Spacing.published,
    eta: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Noise of DDIM: 0 none, 1 (the default) that of DDPM."),
    ] = None,
    variance: Annotated[
        Variance | None,
        typer.Option(help="Noise of DDPM: of its posterior (small, the default) or beta (large)."),
    ] = None,
    guidance: Annotated[
        float,
        typer.Option(min=0, help="Weight of guidance on the clip before; above 0 costs double."),
    ] = 0.0,
    class_name: Annotated[
        str | None,
        typer.Option(
            "--class",
            metavar="NAME",
            help="Class of the videos, by name or number, 'each' in turn, or 'none', for models "
            "that know classes; by default the seed draws one for each video.",
        ),
    ] = None,
    class_guidance: Annotated[
        float,
        typer.Option(
            min=0, help="Weight of guidance on the class; above 0 costs another batch a step."
        ),
    ] = 0.0,
    guidance_interval: Annotated[
        str,
        typer.Option(
            metavar="LO,HI",
            help="Share of the noise levels at which clips are guided, 0 none to 1 all noise.",
        ),
    ] = "0,1",
    prefix_noise: Annotated[
        float,
        typer.Option(
            min=0,
            help="Noise put on each clip before the next is drawn from it, against drift; for "
            "models trained with diffusion.prefix_noise.",
        ),
    ] = 0.0,
    no_clamp: Annotated[
        bool,
        typer.Option(
            "--no-clamp", help="Let estimates of z0 leave the range of an autoencoder's latents."
        ),
    ] = False,
    seed: SeedOpt = 0,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="A,B,...", help="A seed for each video, instead of --seed and --num."),
    ] = None,
    between: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="--num videos from that of seed A to that of seed B, by noise in between.",
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Option(
            metavar="VIDEO|CACHE#ROW",
            help="Continue this video (its last clip is encoded), or this clip of a latent cache.",
        ),
    ] = None,
    keep_prefix: Annotated[
        bool, typer.Option("--keep-prefix", help="Begin with the clip that is continued.")
    ] = False,
    init: Annotated[
        str | None,
        typer.Option(
            metavar="VIDEO|CACHE#ROW",
            help="Start the first clip from that of this video, noised by --strength.",
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="How much of --init is noised away: 0 nothing, 1 everything. By default 0.6.",
        ),
    ] = None,
    batch_size: Annotated[
        str,
        typer.Option(
            metavar="N|auto",
            help="Videos drawn at once; changes speed, not the videos. auto: as many as fit.",
        ),
    ] = "auto",
    format_: Annotated[
        Format, typer.Option("--format", help="Kind of file; png is a folder of frames.")
    ] = (Format.mp4),
    quality: Annotated[
        int, typer.Option(min=0, max=100, help="Of mp4 and webp; 80 hides nearly all losses.")
    ] = 80,
    fps: Annotated[
        float | None,
        typer.Option(min=0.001, max=1000, help="Frame rate; else that of the model's data."),
    ] = None,
    grid: Annotated[
        GridFormat | None, typer.Option(help="Also write all videos side by side, in this format.")
    ] = None,
    columns: Annotated[
        int | None,
        typer.Option(min=1, help="Videos in a row of the grid; by default about square."),
    ] = None,
    sheet: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Also write sheet.png: every K-th frame of each video, a row for each.",
        ),
    ] = None,
    drift: Annotated[
        bool,
        typer.Option(
            "--drift",
            help="Measure how clips change along the videos, of 64 clips by default: drift.json and "
            "drift.svg.",
        ),
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time went.")] = False,
    checkpoint: CheckpointOpt = None,
    device: DeviceOpt = "auto",
    precision: Annotated[
        Precision,
        typer.Option(
            help="Arithmetic of the networks; auto: bf16 on GPUs that have it, else fp32. Videos of "
            "another precision are other videos."
        ),
    ] = Precision.fp32,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile", help="Let torch compile the networks first: minutes. Measure if it pays."
        ),
    ] = False,
    nproc_per_node: NprocOpt = None,
    nnodes: NnodesOpt = "1",
    rdzv_endpoint: RdzvOpt = None,
    max_restarts: RestartsOpt = 3,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Draw long videos, clip by clip, each clip continuing the one before (Algorithm 1).

    Video i depends on the seed, i and the settings alone: the same command again makes what is
    missing, a larger --num adds to it, more --frames continue its videos. Frames are written as soon
    as their clip is ready; Ctrl-C leaves videos that play, and the same command goes on with them.

    Examples:
        pvdm sample --frames 128
        pvdm sample runs/sky --num 16 --grid gif --out skies
        pvdm sample runs/sky --num 16 --frames 1000 --out skies
        pvdm sample runs/sky --steps 200/200 --batch-size 8 --device cuda
        pvdm sample runs/sky --precision bf16 --compile --device cuda
        pvdm sample runs/sky --sampler dpm++ --steps 20/10
        pvdm sample runs/ucf101 --class YoYo --class-guidance 2 --num 4
        pvdm sample runs/sky --prefix my-video.mp4 --keep-prefix --seconds 30
        pvdm sample runs/sky --init my-video.mp4 --strength 0.5 --seeds 1,5,9
        pvdm sample runs/sky --between 3,8 --num 9 --grid mp4 --columns 9 --sheet 16
        pvdm sample runs/sky --num 2048 --format npz --out drawn --nproc-per-node gpu
        pvdm sample runs/sky --drift --num 4 --out runs/sky/drift
        pvdm sample runs/sky --checkpoint 20000 --sampler ddpm --steps 1000 --format npz
        pvdm sample ae.pth+unet.pth --fps 25
    """
    launch.hand_over(nproc_per_node, nnodes, rdzv_endpoint, max_restarts)
    from pvdm_cli import api
    from pvdm_cli.generation.request import parse_batch_size, parse_pair, parse_seeds

    reporter = render.reporter(quiet)
    draw = stoppable(api.sample, reporter.say)
    result = draw(
        model,
        out,
        frames=frames,
        seconds=seconds,
        num=num,
        steps=steps,
        sampler=sampler.value,
        spacing=spacing.value,
        eta=eta,
        variance=variance.value if variance else None,
        guidance=guidance,
        class_name=class_name,
        class_guidance=class_guidance,
        guidance_interval=guidance_interval,
        prefix_noise=prefix_noise,
        clamp=not no_clamp,
        seed=seed,
        seeds=parse_seeds(seeds, "--seeds") if seeds else (),
        between=parse_pair(between) if between else None,
        prefix=prefix,
        keep_prefix=keep_prefix,
        init=init,
        strength=strength,
        batch_size=parse_batch_size(batch_size),
        format=format_.value,
        quality=quality,
        fps=fps,
        grid=grid.value if grid else None,
        columns=columns,
        sheet=sheet,
        drift=drift,
        profile=profile,
        checkpoint=checkpoint,
        device=device,
        precision=precision.value,
        compiled=compiled,
        overwrite=overwrite,
        reporter=reporter,
    )
    if as_json:
        render.print_json(_facts(result))
        return
    pictures = [path for path in (result.grid, result.sheet, result.drift) if path]
    for path in [*result.videos, *pictures]:
        typer.echo(path)
    if result.profile and here().main:
        _show_profile(result.profile)
    reporter.say(_summary(result))


def _facts(result: Any) -> dict[str, Any]:
    """Put a result into JSON values."""
    return {
        "out": str(result.out),
        "videos": [str(path) for path in result.videos],
        "made": result.made,
        "continued": result.continued,
        "grid": None if result.grid is None else str(result.grid),
        "sheet": None if result.sheet is None else str(result.sheet),
        "drift": None if result.drift is None else str(result.drift),
        "frames": result.frames,
        "fps": result.fps,
        "seconds": result.seconds,
        "frames_per_second": result.frames_per_second,
        "peak_memory_bytes": result.peak_memory,
        "device": result.device,
        "profile": result.profile,
    }


def _show_profile(profile: dict[str, float]) -> None:
    """Say where the time went; decoding and writing go on beside the drawing."""
    whole = profile["whole run"]
    rows = [(name, f"{s:.2f}", f"{s / whole:.1%}") for name, s in profile.items()]
    render.print_table(
        ("part", "seconds", "of the run"), rows, right=("seconds", "of the run"), stderr=True
    )


def _summary(result: Any) -> str:
    """Say in one line what was made and what it took."""
    found = len(result.videos) - result.made
    if not result.made:
        return f"nothing to do: {found} of {found} videos are there already"
    memory = f", peak memory {result.peak_memory / 2**20:,.0f} MiB" if result.peak_memory else ""
    longer = f", {result.continued} of them continued," if result.continued else ""
    return (
        f"{result.made} x {result.frames} frames{longer} in {result.seconds:.1f} s on "
        f"{result.device} "
        f"({result.frames_per_second:.2f} frames/s{memory})"
        + (f"; {found} were there already" if found else "")
    )
