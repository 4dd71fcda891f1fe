"""How --help reads: whole paragraphs, examples to copy, and a short name for every value."""

import re
import textwrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

WIDTH = 72  # of an example; with "$ " and the margins it fits into 80 columns

# What typer would say of an option's value -> what we say; a switch takes none.
VALUES = {
    "<bool>": "",
    "<int>": "N",
    "<int range>": "N",
    "<float>": "X",
    "<float range>": "X",
    "<path>": "PATH",
    "<str>": "TEXT",
}


class Command(TyperCommand):
    """A command whose switches are not shown as taking a value."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, their values named."""
        return _with_values_named(super().get_params(ctx), ctx)


class Group(TyperGroup):
    """A group of commands, likewise."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the parameters, their values named."""
        return _with_values_named(super().get_params(ctx), ctx)


def _with_values_named(params: list[Any], context: Any) -> list[Any]:
    """Name the value of every option that has no name of its own."""
    for param in params:
        if param.param_type_name == "option" and param.metavar is None:
            param.metavar = VALUES.get(param.display_type(context))
    return params


def prose(text: str) -> str:
    """Let paragraphs flow: rich would keep the line breaks of the source.

    Brackets are escaped: rich would read [key=value] as markup and print nothing there.
    """
    paragraphs = text.strip().replace("[", r"\[").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def examples_of(doc: str) -> list[str]:
    """Example commands of a docstring, one a line after "Examples:"."""
    return [line.strip() for line in doc.partition("Examples:")[2].strip().splitlines()]


def epilog(examples: list[str]) -> str:
    """Format example commands; long ones are continued as a shell would read them."""
    lines = ["[bold]Examples[/bold]"]
    for line in examples:
        glued = re.sub(r"(--\S+) (?=[^-])", "\\1\0", line)  # an option stays beside its value
        parts = textwrap.wrap(glued, WIDTH, break_long_words=False, break_on_hyphens=False)
        text = " \\\n    ".join(parts).replace("\0", " ").replace("[", r"\[")
        lines.append(f"[dim]$[/dim] {text}")
    return "\n".join(lines)
