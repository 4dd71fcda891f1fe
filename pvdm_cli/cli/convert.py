"""`pvdm convert`: published weights to a model folder, and back."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.options import CheckpointOpt, DebugOpt, JsonOpt, OverwriteOpt, QuietOpt
from pvdm_cli.errors import ConfigError

ArgumentsArg = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL|KEY=VALUE",
        help="With --to-published the model to export; else changes to the preset, "
        "e.g. denoiser.num_heads=4.",
    ),
]
AutoencoderOpt = Annotated[
    Path | None,
    typer.Option("--autoencoder", metavar="PTH", help="Published autoencoder weights."),
]
DenoiserOpt = Annotated[
    Path | None, typer.Option("--denoiser", metavar="PTH", help="Published U-Net weights.")
]
PresetOpt = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="PRESET",
        help="Says what weights cannot: heads, diffusion, preparation of the clips.",
    ),
]
OutOpt = Annotated[
    Path | None, typer.Option("--out", "-o", metavar="MODEL", help="The model folder to write.")
]
ToPublishedOpt = Annotated[
    Path | None,
    typer.Option(
        "--to-published", metavar="DIR", help="Write autoencoder.pth and denoiser.pth here."
    ),
]
FpsOpt = Annotated[
    float | None,
    typer.Option("--fps", min=0.1, help="Frame rate of the videos the weights were trained on."),
]


def convert(
    arguments: ArgumentsArg = None,
    autoencoder: AutoencoderOpt = None,
    denoiser: DenoiserOpt = None,
    preset: PresetOpt = None,
    out: OutOpt = None,
    fps: FpsOpt = None,
    to_published: ToPublishedOpt = None,
    checkpoint: CheckpointOpt = None,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Convert weights of the original implementation to a model folder, or back, exactly.

    Either network may be left out. What the shapes of the weights tell is taken from them; the
    preset and KEY=VALUE describe the rest, and a KEY=VALUE that contradicts them is refused.

    Examples:
        pvdm convert --autoencoder ae.pth --denoiser unet.pth --preset ucf101/diffusion-l --out model
        pvdm convert --autoencoder ae.pth --preset sky/autoencoder --out model --fps 25
        pvdm convert model --to-published published
    """
    from pvdm_cli import api  # torch loads here, not for --help

    reporter = render.reporter(quiet)
    given = arguments or []
    if to_published is not None:
        importing = [autoencoder, denoiser, preset, out, fps]
        if len(given) != 1 or any(value is not None for value in importing):
            raise ConfigError("--to-published takes one MODEL and none of the importing options")
        result = api.export_published(
            given[0], to_published, checkpoint=checkpoint, overwrite=overwrite
        )
    else:
        if preset is None or out is None:
            raise ConfigError(
                "convert needs --preset (e.g. ucf101/diffusion-l) and --out for the model folder, "
                "or MODEL and --to-published DIR"
            )
        result = api.convert(
            out,
            preset=preset,
            autoencoder=autoencoder,
            denoiser=denoiser,
            overrides=given,
            fps=fps,
            overwrite=overwrite,
            reporter=reporter,
        )
    for change in result.changes:
        reporter.say(f"by the weights, {change}")
    sizes = ", ".join(f"{name} {number:,}" for name, number in result.parameters.items())
    reporter.say(f"{result.out}: {' and '.join(result.files)} (parameters: {sizes})")
    if as_json:
        render.print_json(asdict(result))
