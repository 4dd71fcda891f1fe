"""Options and arguments that several commands share, defined once."""

from pathlib import Path
from typing import Annotated, Any

import typer

_debug = False


def _remember_debug(asked: bool) -> bool:
    """Keep the wish for a traceback where `main` finds it."""
    global _debug
    _debug = _debug or asked
    return asked


def debug_asked() -> bool:
    """Whether --debug was given."""
    return _debug


DeviceOpt = Annotated[
    str,
    typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:N, mps or auto (a GPU if any)."),
]
SeedOpt = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
MarkdownOpt = Annotated[
    bool, typer.Option("--markdown", help="Print the table as Markdown on stdout.")
]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="No bars and no messages.")]
DebugOpt = Annotated[
    bool,
    typer.Option(
        "--debug", callback=_remember_debug, is_eager=True, help="Show the traceback of a failure."
    ),
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")]
DryRunOpt = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, with sizes, and stop.")
]
OutOpt = Annotated[Path, typer.Option("--out", "-o", help="Where the result goes.")]
PresetArg = Annotated[
    str,
    typer.Argument(
        metavar="PRESET", help="A shipped preset (`pvdm presets ls`) or the path of a YAML file."
    ),
]
ModelArg = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a run folder, 'demo' (shipped), owner/name@revision on the Hugging "
        "Face hub, or published weights, AE.pth+UNET.pth.",
    ),
]


def _checkpoint(text: str) -> Any:
    """Read the step of a checkpoint, or "best"."""
    if text == "best":
        return text
    if not text.isdigit():
        raise typer.BadParameter(f"{text!r} is neither a step nor 'best'")
    return int(text)


CheckpointOpt = Annotated[
    Any,
    typer.Option(
        "--checkpoint",
        parser=_checkpoint,
        metavar="STEP|best",
        help="Which checkpoint of a run: of a step, or the one that validated best; else the "
        "latest.",
    ),
]
OverridesArg = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Changes to the preset, e.g. training.batch_size=4."),
]
