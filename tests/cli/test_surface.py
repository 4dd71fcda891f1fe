"""The option surface is locked in surface.txt. After a change that is meant:

python tests/cli/test_surface.py > tests/cli/surface.txt
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pvdm_cli.cli.app import app

GOLDEN = Path(__file__).with_name("surface.txt")
HEAVY = ("torch", "numpy", "av", "einops", "imageio", "yaml", "tqdm")


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that lead to it."""
    yield path, command
    for name, sub in getattr(command, "commands", {}).items():
        yield from commands(sub, (*path, name))


def surface() -> list[str]:
    """Every option of every command, one per line."""
    return sorted(
        " ".join((*path, *param.opts, *param.secondary_opts))
        for path, command in commands(typer.main.get_command(app))
        for param in command.params
    )


LEAVES = {
    " ".join(path): command
    for path, command in commands(typer.main.get_command(app))
    if not hasattr(command, "commands")
}


def test_the_option_surface_is_deliberate() -> None:
    assert surface() == GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_has_examples_of_itself(name: str) -> None:
    assert f"pvdm {name}" in LEAVES[name].epilog


@pytest.mark.parametrize("name", LEAVES)
def test_every_command_can_show_a_traceback(name: str) -> None:
    assert "--debug" in [option for param in LEAVES[name].params for option in param.opts]


@pytest.mark.parametrize("name", LEAVES)
def test_every_option_says_what_it_does(name: str) -> None:
    silent = [param.opts for param in LEAVES[name].params if not getattr(param, "help", None)]
    assert silent == []


def test_neither_help_nor_wrong_usage_nor_presets_load_anything_heavy() -> None:
    lines = [f"{name} --help" for name in LEAVES]
    lines += ["--help", "", "--version", "presets ls", "presets cat sky/diffusion-l", "bogus"]
    code = f"""
import sys
from typer.testing import CliRunner
from pvdm_cli.cli.app import app

for line in {lines!r}:
    CliRunner().invoke(app, line.split())
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    if heavy:
        sys.exit(f"pvdm {{line}} loads {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    sys.stdout.write("\n".join(surface()) + "\n")
