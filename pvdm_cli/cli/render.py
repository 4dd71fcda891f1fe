"""What the terminal shows: data on stdout, everything else on stderr, nothing over an open bar."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import launched

if TYPE_CHECKING:
    from rich.console import Console
    from tqdm import tqdm

WIDE = 10_000  # columns of a table that goes into a file or a pipe: never wrap or cut there


def version() -> str:
    """Version of the installed package."""
    from importlib.metadata import version as installed  # 20 ms that --help need not spend

    return installed("pvdm")


def error(message: str) -> None:
    """Say a failure on stderr, as one line."""
    typer.secho("error: ", fg=typer.colors.RED, err=True, nl=False)
    typer.echo(message, err=True)


def print_json(value: Any) -> None:
    """Print a result for machines on stdout."""
    print(json.dumps(value, indent=2, default=str))


def console(*, stderr: bool = True) -> "Console":
    """Return a rich console; on stdout that is not a terminal nothing is wrapped."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else WIDE, soft_wrap=False)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    title: str | None = None,
    right: Sequence[str] = (),
    stderr: bool = False,
) -> None:
    """Print a table; columns named in `right` are aligned right. Cells are plain text."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=title,
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,  # two blanks between columns: six of them fit into 80
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    console(stderr=stderr).print(table)


def print_columns(rows: Iterable[Sequence[object]], *, stderr: bool = False) -> None:
    """Print rows of plain text in aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        typer.echo(line.rstrip(), err=stderr)


def reporter(quiet: bool = False) -> Reporter:
    """Return the reporter of a command: bars and messages on stderr, or nothing with -q.

    Of several processes only the first has one.
    """
    one_of_several = launched() and os.environ["RANK"] != "0"
    return SILENT if quiet or one_of_several else Bar()


class Bar:
    """Draws progress with tqdm on stderr; without a terminal only the messages are shown."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def start(self, what: str, total: int | None = None, unit: str = "it") -> None:
        """Open a bar, closing the one before."""
        from tqdm import tqdm

        self.done()
        self._bar = tqdm(
            desc=what,
            total=total,
            unit=unit,
            file=sys.stderr,
            disable=not sys.stderr.isatty(),
            dynamic_ncols=True,
        )

    def expect(self, total: int | None) -> None:
        """Correct the length of the bar; the time left follows."""
        if self._bar is not None:
            self._bar.total = total

    def advance(self, by: int = 1, **figures: object) -> None:
        """Move the bar; figures such as loss=0.12 are shown beside it."""
        if self._bar is not None:
            if figures:
                shown = {name: _short(value) for name, value in figures.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(by)

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        if self._bar is None:
            typer.echo(message, err=True)
        else:
            self._bar.write(message, file=sys.stderr)

    def done(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _short(value: object) -> str:
    """Show a figure in few characters."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
