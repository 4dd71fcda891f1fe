"""`pvdm eval is` and `reconstruction`: inception score, and how well an autoencoder gives back."""

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
    ModelArg,
    QuietOpt,
    SeedOpt,
)
from pvdm_cli.cli.signals import stoppable
from pvdm_cli.errors import PvdmError


class Split(StrEnum):
    """Videos of a data folder."""

    held_out = "held-out"
    train = "train"
    all = "all"


class Convention(StrEnum):
    """How clips are put into splits."""

    stylegan_v = "stylegan-v"
    tgan2 = "tgan2"


def is_(
    fake: Annotated[Path | None, typer.Option(metavar="DIR", help="The generated videos.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Draw them from this model.")
    ] = None,
    convention: Annotated[
        Convention, typer.Option(help="Ten splits of 2,048 clips, or ten runs of as many.")
    ] = Convention.stylegan_v,
    num: Annotated[
        int | None, typer.Option(min=10, help="Most clips; else those of the convention.")
    ] = None,
    steps: StepsOpt = STEPS,
    class_name: ClassOpt = None,
    class_guidance: ClassGuidanceOpt = 0.0,
    length: LengthOpt = LENGTH,
    out: ScoredOpt = SCORED,
    batch_size: AtOnceOpt = AT_ONCE,
    checkpoint: CheckpointOpt = None,
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
    """Measure the inception score of generated videos with C3D, fine-tuned on UCF-101.

    Needs conv3d_deepnetA_ucf.npz and mean2.npz from the release v1.0 of github.com/rezoo/tgan2, in
    ~/.cache/pvdm. Scores of the two conventions are not comparable with each other.

    With --model it draws the videos itself, or takes those that `pvdm eval fvd --model` has drawn with
    the same --out; the same command again goes on where it stopped.

    Examples:
        pvdm eval is --fake samples
        pvdm eval is --model runs/ucf101 --steps 400/400 --out scored --markdown
        pvdm eval is --fake samples --convention tgan2 --json
        pvdm eval is --fake samples --nproc-per-node 2
    """
    if (fake is None) == (model is None):
        raise PvdmError("give the generated videos by --fake, or by --model what is to draw them")
    of_model = checkpoint is not None or class_name or class_guidance or seed
    if model is None and (of_model or drawing_asked(steps, length, out, batch_size)):
        raise PvdmError(
            "--steps, --length, --out, --batch-size, --checkpoint, --seed, --class and "
            "--class-guidance go with --model"
        )
    launch.hand_over(nproc_per_node, nnodes, rdzv_endpoint, max_restarts)
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    if model is not None:
        result = stoppable(api.eval_inception_model, reporter.say)(
            model,
            out,
            convention=convention.value,
            steps=steps,
            class_name=class_name,
            class_guidance=class_guidance,
            length=length,
            num=num,
            batch_size=batch_size,
            checkpoint=checkpoint,
            seed=seed,
            device=device,
            reporter=reporter,
        )
    else:
        assert fake is not None
        result = api.eval_inception(
            fake, convention=convention.value, num=num, device=device, reporter=reporter
        )
    if as_json:
        render.print_json(asdict(result))
    else:
        eval_tables.show_inception(result, markdown=markdown)
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
    worst: Annotated[
        int, typer.Option(min=0, metavar="K", help="Name the K videos of lowest PSNR.")
    ] = 3,
    checkpoint: CheckpointOpt = None,
    device: DeviceOpt = "auto",
    nproc_per_node: NprocOpt = None,
    nnodes: NnodesOpt = "1",
    rdzv_endpoint: RdzvOpt = None,
    max_restarts: RestartsOpt = 3,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure how well an autoencoder gives back the first clip of each video.

    PSNR and SSIM, beside the PSNR of a still picture; where the I3D is (`pvdm eval fvd --help`) the
    distance of its features, rFVD; where the weights of the perceptual loss are, LPIPS.

    Examples:
        pvdm eval reconstruction runs/autoencoder --data videos
        pvdm eval reconstruction runs/autoencoder --data videos --split train --num 64
        pvdm eval reconstruction runs/autoencoder --data videos --checkpoint best --json
        pvdm eval reconstruction runs/autoencoder --data videos --nproc-per-node 2
    """
    launch.hand_over(nproc_per_node, nnodes, rdzv_endpoint, max_restarts)
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
        names = ("psnr", "psnr_mean_frame", "ssim", "lpips", "differs")
        means = {name: getattr(result, name) for name in names}
        render.print_json({**asdict(result), **means, "clips": clips})
    else:
        eval_tables.show_reconstruction(result, worst)
    if result.skipped:
        raise typer.Exit(SOME_SKIPPED)
