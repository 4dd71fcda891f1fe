"""The `pvdm` command: registers every sub-command and says each failure once.

To add a command, write its function in a file of its own and list it in `COMMANDS` below; the
part of its docstring from "Examples:" on becomes the epilog of its --help.
"""

import inspect
import os
import platform
import signal
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from pvdm_cli.cli import (
    bench,
    bench_data,
    bench_rivals,
    cache,
    data,
    eval,
    eval_fvd,
    help,
    launch,
    options,
    render,
)
from pvdm_cli.cli.convert import convert
from pvdm_cli.cli.decode import decode
from pvdm_cli.cli.demo import demo
from pvdm_cli.cli.encode import encode
from pvdm_cli.cli.env import env
from pvdm_cli.cli.info import info
from pvdm_cli.cli.presets import cat, cp, ls
from pvdm_cli.cli.push import push
from pvdm_cli.cli.report import report
from pvdm_cli.cli.sample import sample
from pvdm_cli.cli.train import train
from pvdm_cli.errors import PvdmError
from pvdm_cli.ranks import ending, launched

# In the order of --help.
COMMANDS: tuple[Callable[..., None], ...] = (
    demo,
    sample,
    encode,
    decode,
    train,
    report,
    convert,
    push,
    info,
    env,
)
GROUPS: dict[str, tuple[str, tuple[Callable[..., None], ...]]] = {
    "bench": (
        "Measure time, memory and largest batch, beside the paper's and the hardware's.",
        (
            bench.sample,
            bench.train,
            bench_data.encode,
            bench_data.decode,
            bench_data.io,
            bench_rivals.rivals,
            bench.all_,
            bench.compare,
        ),
    ),
    "cache": ("Look into a latent cache.", (cache.info, cache.verify, cache.preview)),
    "data": ("See what a data set holds; draw practice videos.", (data.ls, data.sky)),
    "eval": ("Score videos and reconstructions.", (eval_fvd.fvd, eval.is_, eval.reconstruction)),
    "presets": ("List, show and copy the shipped presets.", (ls, cat, cp)),
}

EXAMPLES = [
    "pvdm demo",
    "pvdm sample --frames 128",
    "pvdm train demo/autoencoder --data videos --out runs/autoencoder",
    "pvdm presets ls",
]
SETTINGS = {"help_option_names": ["-h", "--help"]}


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


def _add(to: typer.Typer, function: Callable[..., None]) -> None:
    """Register a function as the command of its name, the examples of its docstring as epilog."""
    doc = inspect.getdoc(function) or ""
    text = help.prose(doc.partition("Examples:")[0])
    epilog = help.epilog(help.examples_of(doc))
    name = function.__name__.rstrip("_")  # `is` is a word of Python
    to.command(name, cls=help.Command, help=text, epilog=epilog)(function)


def _group(name: str) -> typer.Typer:
    """Make a group of commands; its epilog shows the first example of each."""
    text, members = GROUPS[name]
    first = [help.examples_of(inspect.getdoc(member) or "")[0] for member in members]
    group = typer.Typer(
        cls=help.Group,
        no_args_is_help=True,
        help=text,
        epilog=help.epilog(first),
        context_settings=SETTINGS,
    )
    for member in members:
        _add(group, member)
    return group


def build() -> typer.Typer:
    """Put the command table together."""
    app = typer.Typer(
        name="pvdm",
        cls=help.Group,
        invoke_without_command=True,
        context_settings=SETTINGS,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        epilog=help.epilog(EXAMPLES),
    )
    app.callback()(_root)
    for command in COMMANDS:
        _add(app, command)
    for name in GROUPS:
        app.add_typer(_group(name), name=name)
    return app


app = build()


def _terminate(signum: int, frame: object) -> None:
    """Leave by an exception, so that temporary files are removed on the way out."""
    if ending():  # a second exception could come up while the first one's frames are cleared away
        return
    raise launch.Terminated(128 + signum)


def _run() -> int:
    """Run the command that was given; return its exit code."""
    code = 0
    try:
        app(prog_name="pvdm")
    except launch.Terminated:
        raise
    except SystemExit as left:
        code = int(left.code or 0)
    except OSError as error:
        if error.filename is None:  # not of a file
            _try_stdout("\n")
        raise
    _try_stdout()
    return code


def _try_stdout(text: str = "") -> None:
    """Find out now, not while Python ends, whether stdout takes what was printed and a bit more.

    Raises:
        PvdmError: If not, such as a file on a full disk; what is left is dropped.
    """
    try:
        print(end=text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise PvdmError(
            f"cannot write the result to stdout: {error.strerror}; the work itself is done"
        ) from None


def main() -> None:
    """Run the command line; say an expected failure once, in one line, and exit with 1."""
    # GNU OpenMP spins at barriers for long; where cores are shared that made a sampling step on 2
    # cores 2.5 times as long, where they are not, ten times less spinning than this costs a fifth.
    # Must be set before torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # OpenBLAS spins without end: numpy's eigh of 400 x 400 took 9 to 24 s on such a machine, 0.2 s on
    # one thread, which is enough for it. Elsewhere than on x86 torch may use OpenBLAS too.
    if platform.machine().lower() in ("x86_64", "amd64"):
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = launch.run(_run) if launched() else _run()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # nothing may be raised while Python ends
        if launched():
            launch.leave(code)
        sys.exit(code)
    except PvdmError as error:
        if options.debug_asked():
            raise
        render.error(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
