"""The `pvdm` command: registers every sub-command and says each failure once.

To add a command, write its function in a file of its own and list it in `COMMANDS` below; the
part of its docstring from "Examples:" on becomes the epilog of its --help.
"""

import inspect
import signal
import sys
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from pvdm_cli.cli import bench, options, render
from pvdm_cli.cli.convert import convert
from pvdm_cli.cli.data import sky
from pvdm_cli.cli.decode import decode
from pvdm_cli.cli.encode import encode
from pvdm_cli.cli.env import env
from pvdm_cli.cli.info import info
from pvdm_cli.cli.presets import cat, cp, ls
from pvdm_cli.cli.sample import sample
from pvdm_cli.cli.train import train
from pvdm_cli.errors import PvdmError

# In the order of --help.
COMMANDS: tuple[Callable[..., None], ...] = (
    sample,
    encode,
    decode,
    train,
    convert,
    info,
    env,
)
GROUPS: dict[str, tuple[str, tuple[Callable[..., None], ...]]] = {
    "bench": (
        "Measure time, memory and largest batch, beside the paper's.",
        (bench.sample, bench.train),
    ),
    "data": ("Draw practice videos.", (sky,)),
    "presets": ("List, show and copy the shipped presets.", (ls, cat, cp)),
}

EXAMPLES = """
pvdm sample --frames 128
pvdm encode videos --autoencoder demo --out cache
pvdm presets ls
"""


def _print_version(asked: bool) -> None:
    """Print the version and leave."""
    if asked:
        print(f"pvdm {render.version()}")
        raise typer.Exit


def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Long videos from a diffusion model you trained yourself (PVDM, CVPR 2023)."""
    if context.invoked_subcommand is None:
        print(context.get_help())


def _epilog(examples: str) -> str:
    """Format example commands, one a line."""
    lines = [f"[dim]$[/dim] {line.strip()}" for line in examples.strip().splitlines()]
    return "\n".join(["[bold]Examples[/bold]", *lines])


def _add(to: typer.Typer, function: Callable[..., None]) -> None:
    """Register a function as the command of its name, the examples of its docstring as epilog.

    Brackets are escaped: rich would read [key=value] as markup and print nothing there.
    """
    doc = (inspect.getdoc(function) or "").replace("[", r"\[")
    text, _, examples = doc.partition("Examples:")
    to.command(function.__name__, help=text.strip(), epilog=_epilog(examples))(function)


def build() -> typer.Typer:
    """Put the command table together."""
    settings = {"help_option_names": ["-h", "--help"]}
    app = typer.Typer(
        name="pvdm",
        invoke_without_command=True,
        context_settings=settings,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        epilog=_epilog(EXAMPLES),
    )
    app.callback()(_root)
    for command in COMMANDS:
        _add(app, command)
    for name, (text, members) in GROUPS.items():
        group = typer.Typer(no_args_is_help=True, help=text, context_settings=settings)
        for member in members:
            _add(group, member)
        app.add_typer(group, name=name)
    return app


app = build()


def _terminate(signum: int, frame: object) -> NoReturn:
    """Leave by an exception, so that temporary files are removed on the way out."""
    raise SystemExit(128 + signum)


def main() -> None:
    """Run the command line; say an expected failure once, in one line, and exit with 1."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        app(prog_name="pvdm")
    except PvdmError as error:
        if options.debug_asked():
            raise
        render.error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
