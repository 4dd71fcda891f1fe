"""How --help reads on a terminal of 80 columns."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import typer

from pvdm_cli.cli import help
from pvdm_cli.cli.app import app

Call = Callable[..., Any]


def names(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, below in getattr(command, "commands", {}).items():
        yield from names(below, (*path, name))


NAMES = list(names(typer.main.get_command(app)))


@pytest.fixture
def shown(pvdm: Call, monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[str, ...]], str]:
    monkeypatch.setenv("COLUMNS", "80")
    return lambda words: str(pvdm(*words, "--help").out)


@pytest.mark.parametrize("words", NAMES, ids=[" ".join(words) for words in NAMES])
def test_help_shows_examples_that_can_be_copied(words: tuple[str, ...], shown: Any) -> None:
    text = shown(words)
    assert max(map(len, text.splitlines())) <= 80
    examples = text.partition(" Examples")[2]
    assert f"$ pvdm {' '.join(words)}".strip() in examples
    # A line is an example, or continues one that ends in a backslash.
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    for before, line in zip(["", *lines], lines, strict=False):
        assert line.startswith("$ ") != before.endswith("\\"), line


@pytest.mark.parametrize("words", NAMES, ids=[" ".join(words) for words in NAMES])
def test_switches_take_no_value_and_values_have_names(words: tuple[str, ...], shown: Any) -> None:
    options = shown(words).partition("─ Options")[2]
    assert not re.search(r"<(bool|int|float|path|str)\b", options)
    assert "--help" in options


def test_paragraphs_flow() -> None:
    assert help.prose("One line\nand another.\n\nA second [key=value]\n") == (
        "One line and another.\n\nA second \\[key=value]"
    )


def test_a_long_example_is_continued_beside_no_option_without_its_value() -> None:
    long = "pvdm x " + " ".join(f"--option-{i} value" for i in range(6))
    text = help.epilog([long]).partition("[/dim] ")[2]
    first, *more = text.split(" \\\n    ")
    assert more
    assert " ".join([first, *more]) == long
    assert all(part.endswith("value") for part in (first, *more))
