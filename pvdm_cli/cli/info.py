"""`pvdm info`: what a path is."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.options import DebugOpt, JsonOpt

if TYPE_CHECKING:
    from pvdm_cli.describe import Description


def info(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH", help="A model, run, cache, video, folder of videos, or preset."
        ),
    ],
    as_json: JsonOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Tell what a path is: a model, a run, a latent cache, a preset or a video, with its sizes.

    Examples:
        pvdm info demo
        pvdm info runs/sky --json
        pvdm info sky/diffusion-l
        pvdm info clip.mp4
    """
    from pvdm_cli.describe import describe  # loads torch for published weights only

    show(describe(path), as_json)


def show(found: "Description", as_json: bool) -> None:
    """Print what was found, as JSON or in lines."""
    if as_json:
        render.print_json({"kind": found.kind, "path": found.path, **found.facts})
    else:
        render.print_columns([("kind", found.kind), ("path", found.path), *_lines(found.facts)])


def _lines(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield the facts that are there, nested ones by dotted names."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _lines(value, f"{prefix}{name}.")
        elif value is not None:
            yield f"{prefix}{name}", _shown(value)


def _shown(value: Any) -> object:
    """Show a number with its thousands apart, and names one after another."""
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else value
