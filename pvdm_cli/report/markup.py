"""HTML and SVG from functions: what is not markup already is escaped, so nothing can be forgotten."""

from collections.abc import Iterable
from html import escape

VOID = {"br", "img", "meta", "wbr"}
Child = object  # Markup stands as it is, lists are joined, None is left out, all else is text


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Make an element.

    Args:
        name: Of the element.
        children: What it holds; plain text is escaped.
        attributes: By name, `class_` for class and `_` for -; True stands alone, None and False
            are left out.
    """
    opened = name + "".join(_attribute(key, value) for key, value in attributes.items())
    if name in VOID:
        return Markup(f"<{opened}>")
    return Markup(f"<{opened}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Put children one after the other."""
    return Markup("".join(_text(child) for child in children))


def _text(child: Child) -> str:
    """Write one child as HTML."""
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, list | tuple):
        return join(child)
    return escape(str(child))


def _attribute(name: str, value: object) -> str:
    """Write one attribute, with the blank before it."""
    if value is None or value is False:
        return ""
    key = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {key}"
    shown = f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)
    return f' {key}="{escape(shown)}"'


def table(
    head: Iterable[Child], rows: Iterable[Iterable[Child]], *, caption: str, class_: str = ""
) -> Markup:
    """Make a table whose first column names the rows; it scrolls by itself where it is too wide."""
    top = tag("thead", tag("tr", [tag("th", cell, scope="col") for cell in head]))
    body = tag("tbody", [_row(list(row)) for row in rows])
    name = tag("caption", caption, class_="hidden")
    whole = tag("table", name, top, body, class_=class_ or None)
    return tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def _row(cells: list[Child]) -> Markup:
    """Make a row of a table."""
    first = tag("th", cells[0], scope="row")
    return tag("tr", first, [tag("td", cell) for cell in cells[1:]])
