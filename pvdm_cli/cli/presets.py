"""`pvdm presets`: list, show and copy the shipped presets."""

from pathlib import Path
from typing import Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.options import DebugOpt, JsonOpt, OverwriteOpt, PresetArg


def ls(as_json: JsonOpt = False, debug: DebugOpt = False) -> None:
    """List the shipped presets: name, stage and what each is for.

    Examples:
        pvdm presets ls
        pvdm presets ls --json
    """
    from pvdm_cli.shipped import list_presets

    found = list_presets()
    if as_json:
        render.print_json([preset._asdict() for preset in found])
    else:
        render.print_columns(found)  # plain: half the start-up time is rich


def cat(preset: PresetArg, debug: DebugOpt = False) -> None:
    """Print a preset, its header included.

    Examples:
        pvdm presets cat sky/diffusion-l
        pvdm presets cat sky/diffusion-l > mine.yaml
    """
    typer.echo(_text(preset), nl=False)


def cp(
    preset: PresetArg,
    out: Annotated[Path, typer.Argument(metavar="FILE", help="The YAML file or folder to write.")],
    overwrite: OverwriteOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Copy a preset to a file of yours, to edit and train from.

    Examples:
        pvdm presets cp sky/diffusion-l mine.yaml
        pvdm train mine.yaml --data videos --out runs/mine
    """
    from pvdm_cli.errors import PvdmError
    from pvdm_cli.files import write_text
    from pvdm_cli.shipped import preset_path

    text = _text(preset)
    path = out / preset_path(preset).name if out.is_dir() else out
    if path.exists() and not overwrite:
        raise PvdmError(f"{path} exists; give another name, or --overwrite to replace it")
    write_text(path, text)
    typer.echo(f"wrote {path}", err=True)


def _text(preset: str) -> str:
    """Read a preset's file as it is.

    Raises:
        ConfigError: If there is no such preset, or the file is not readable as text.
    """
    from pvdm_cli.errors import ConfigError
    from pvdm_cli.shipped import preset_path

    path = preset_path(preset)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as text") from error
