"""What the README and the pages in docs/ say is true: commands, links, code, keys.

After a change to the configuration, `python tests/test_readme.py` writes its keys into
docs/training.md again.
"""

import re
import shlex
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer

from pvdm_cli.cli.app import app
from pvdm_cli.config import RunConfig, load_config
from pvdm_cli.model import save_model
from pvdm_cli.shipped import preset_names

ROOT = Path(__file__).parents[1]
README, TRAINING = ROOT / "README.md", ROOT / "docs" / "training.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = [*PAGES, ROOT / "CHANGELOG.md"]
LAUNCH = sorted((ROOT / "docs" / "launch").iterdir())
KEYS = re.compile(r"(?<=<!-- keys: )(.*?-->\n)(.*?)(?=<!-- end of keys -->)", re.DOTALL)
BATCH = "train ucf101/diffusion-l --cache cache --out run"  # for "$@" of the batch script
FAMILIES = {name.partition("/")[0] for name in preset_names()}


class Line(NamedTuple):
    """One `pvdm …` of a shell block."""

    page: Path
    words: tuple[str, ...]  # without `pvdm`


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [body for name, body in found if name == language]


def shell_commands(block: str) -> Iterator[list[str]]:
    """Split a block into commands: continued lines, comments, `&&`."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, "&&"]:
            if word in {"&&", "||", ";", "|", "&", "(", ")"}:
                yield words
                words = []
            else:
                words.append(word)


def pvdm_lines(page: Path) -> list[Line]:
    commands = [words for block in blocks(page, "bash") for words in shell_commands(block)]
    return [Line(page, tuple(words)) for words in map(pvdm_words, commands) if words]


def pvdm_words(words: list[str]) -> list[str]:
    """The words that reach `pvdm`: by its name, as a module under torchrun, by the batch script."""
    for i, word in enumerate(words):
        if word == "pvdm" or words[i - 1 : i + 1] == ["-m", "pvdm_cli"]:
            return words[i + 1 :]
        if word.endswith("slurm.sbatch"):
            staged = any(before.startswith("CACHE=") for before in words[:i])
            return [*words[i + 1 :], *(["--cache", "copy"] if staged else [])]
    return []


def launch_lines(path: Path) -> list[Line]:
    """The commands in a submit file: those it runs, and in its comments those that hand it in."""
    text = path.read_text().replace("\\\n", " ").replace('"$@"', BATCH)
    text = re.sub(r"\$\(\(.*?\)\)|\$\w+", "2", text)  # what a shell would fill in
    asked = (line.strip().removeprefix("#   ") for line in text.splitlines())
    runs = [
        line
        for line in asked
        if re.match(r"(\w+=\S+ )?(on_every_node|pvdm|torchrun|sbatch) ", line)
    ]
    commands = [words for line in runs for words in shell_commands(line)]
    return [Line(path, tuple(words)) for words in map(pvdm_words, commands) if words]


def parse(words: tuple[str, ...]) -> tuple[str, dict[str, Any]]:
    """Parse like the command line does, without running: name of the command, its values."""
    command: Any = typer.main.get_command(app)
    rest, path = list(words), []
    while hasattr(command, "commands"):
        assert rest, f"pvdm {' '.join(path)}: which command?"
        path.append(rest.pop(0))
        assert path[-1] in command.commands, f"no command: pvdm {' '.join(path)}"
        command = command.commands[path[-1]]
    return " ".join(path), command.make_context(" ".join(path), rest).params


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path), command
    for name, sub in (below or {}).items():
        yield from leaves(sub, (*path, name))


LEAVES = dict(leaves(typer.main.get_command(app)))
LINES = [line for page in PAGES for line in pvdm_lines(page)]
LINES += [line for path in LAUNCH for line in launch_lines(path)]


lines = pytest.mark.parametrize(
    "line", LINES, ids=[f"{named(line.page)}: {' '.join(line.words)}" for line in LINES]
)


def test_shell_blocks_are_read_as_a_shell_would() -> None:
    block = "pip install . && pvdm demo  # all of it\n\npvdm train p --data 'my d' \\\n  a.b=1\n"
    assert [words for words in shell_commands(block) if words] == [
        ["pip", "install", "."],
        ["pvdm", "demo"],
        ["pvdm", "train", "p", "--data", "my d", "a.b=1"],
    ]


def test_the_pages_show_commands() -> None:
    told = {named(line.page) for line in LINES}
    assert told >= {"README.md", "docs/training.md", "docs/clusters.md", *map(named, LAUNCH)}


@lines
def test_every_command_line_parses(line: Line) -> None:
    parse(line.words)


@lines
def test_every_preset_exists(line: Line) -> None:
    presets = [
        word for word in line.words if "=" not in word and re.match(r"[a-z\d]+/[a-z\d-]+$", word)
    ]
    used = {word for word in presets if word.partition("/")[0] in FAMILIES}
    assert used <= set(preset_names())


@lines
def test_every_override_is_a_key_of_its_preset(line: Line) -> None:
    command, values = parse(line.words)
    for preset, overrides in settings_of(line, command, values):
        config = load_config(preset, overrides)
        if command == "train":
            stage_has_what_it_needs(config, values)


def settings_of(line: Line, command: str, values: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """The presets of a command line, each with the changes to it."""
    copies = {
        other.words[3]: other.words[2]
        for other in pvdm_lines(line.page)
        if other.words[:2] == ("presets", "cp")
    }
    words = {
        "train": [values.get("preset"), *(values.get("overrides") or [])],
        "bench train": values.get("presets") or [],
        "convert": [values.get("preset"), *(values.get("arguments") or [])],
    }.get(command, [])
    if command == "convert" and values["to_published"] is not None:
        return []
    presets = [copies.get(word, word) for word in words if word and "=" not in word]
    return [(preset, [word for word in words if "=" in word]) for preset in presets]


def stage_has_what_it_needs(config: RunConfig, values: dict[str, Any]) -> None:
    given = {name for name in ("data", "cache") if values[name] is not None}
    cached = config.stage == "diffusion" and config.data.cache
    wanted = {"cache"} if cached else {"data"}
    if values["dry_run"]:
        assert given <= wanted
    else:
        assert given == wanted


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_commands_named_in_passing_exist(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`(pvdm [^`]+)`", prose)
    for words in (shlex.split(span.replace("\\|", "|"))[1:] for span in spans):
        if words == ["COMMAND", "--help"]:
            continue
        path = next(
            (" ".join(words[:k]) for k in (2, 1) if " ".join(words[:k]) in LEAVES), words[0]
        )
        group = [leaf for leaf in LEAVES if leaf.startswith(f"{path} ")]
        assert path in LEAVES or (group and len(words) == 1), f"no command: pvdm {' '.join(words)}"
        known = [o for param in getattr(LEAVES.get(path), "params", ()) for o in param.opts]
        assert {word for word in words if word.startswith("-")} <= {*known, "--help"}


def test_the_table_of_commands_is_whole_and_promises_nothing_else() -> None:
    table = README.read_text().partition("## Commands")[2].partition("\n\n`")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    words = [span.split()[1:] for cell in cells for span in re.findall(r"`([^`]+)`", cell)]
    told = [" ".join(w for w in each if re.fullmatch("[a-z]+", w)) for each in words]
    assert sorted(told) == sorted(LEAVES)


@pytest.mark.parametrize("page", TEXTS, ids=named)
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r'(?:src|href)="([^"]+)"', text)
    for target in targets:
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.is_file(), f"{named(page)} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in headings]
            assert anchor in slugs, f"{named(page)} links to {target}"


def test_the_two_commands_are_there_and_ci_uses_the_words_of_the_second() -> None:
    commands = [line for block in blocks(README, "bash") for line in block.splitlines()]
    assert "pip install . && pvdm demo" in commands
    assert 'pip install -e ".[test]" && pytest' in commands
    script = (ROOT / ".ci" / "run").read_text()
    assert """install_and_test='pip install -e ".[test]" && pytest'""" in script
    assert 'bash -euo pipefail -c "$install_and_test"' in script


def test_the_picture_of_the_pipeline_names_commands_that_exist() -> None:
    told = re.findall(r">pvdm ([a-z ]+)<", (ROOT / "docs" / "pipeline.svg").read_text())
    assert told
    assert set(told) <= set(LEAVES)


PYTHON = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize(("page", "code"), PYTHON, ids=[named(page) for page, _ in PYTHON])
def test_the_python_examples_run(
    page: Path, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a tiny model in place of the demo model, on the drawn skies it is cut out of."""
    from tiny import tiny_model

    monkeypatch.chdir(tmp_path)
    save_model(tiny_model(), tmp_path / "tiny")
    assert '"demo"' in code
    exec(compile(code.replace('"demo"', '"tiny"'), named(page), "exec"), {"__name__": "example"})


def keys_table() -> str:
    """Every key of the configuration: default, what is allowed, meaning."""
    schema = RunConfig.model_json_schema()
    rows = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        section = section_of(field)
        if section is None:
            rows.append(key_row(name, field))
        else:
            below = schema["$defs"][section]["properties"]
            rows += [key_row(f"{name}.{key}", value) for key, value in below.items()]
    return "\n".join(rows) + "\n"


def section_of(field: dict[str, Any]) -> str | None:
    for option in (field, *field.get("anyOf", ())):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return None


def key_row(name: str, field: dict[str, Any]) -> str:
    allowed = [f"`{choice}`" for choice in field.get("enum", ())]
    for word, sign in (
        ("minimum", "≥"),
        ("exclusiveMinimum", ">"),
        ("maximum", "≤"),
        ("exclusiveMaximum", "<"),
    ):
        if word in field:
            allowed.append(f"{sign} {field[word]:g}")
    default = field.get("default")
    shown = "" if default is None else f"`{default!r}`".replace("'", "").lower()
    return f"| `{name}` | {shown} | {', '.join(allowed)} | {field['description']} |"


def test_the_table_of_keys_is_that_of_the_configuration() -> None:
    found = KEYS.search(TRAINING.read_text())
    assert found
    assert found[2].strip() == keys_table().strip(), "run: python tests/test_readme.py"


def test_the_keys_said_to_be_changeable_are_those_that_are() -> None:
    from pvdm_cli.runs import HARMLESS

    text = TRAINING.read_text().partition("may change in between:")[2].partition("Anything else")[0]
    told = {key.rpartition(".")[2] for key in re.findall(r"`([\w.]+)`", text)}
    assert told == {key.rpartition(".")[2] for key in HARMLESS} | {"steps"}


def test_the_sizes_said_to_fit_do_and_others_do_not() -> None:
    text = README.read_text()
    sides = re.search(r"multiples of (\d+) with the small presets and of (\d+)", text)
    frames = re.search(r"multiple of (\d+) with the small presets and of (\d+)", text)
    assert sides
    assert frames
    presets = {"demo/diffusion": 1, "small/diffusion": 1, "sky/diffusion-l": 2}
    for preset, number in presets.items():
        config = load_config(preset)
        assert config.denoiser is not None
        divisor = config.denoiser.divisor
        assert int(frames[number]) == divisor
        assert int(sides[number]) == divisor * config.autoencoder.patch


def test_the_moving_picture_moves_and_is_not_heavy() -> None:
    from pvdm_cli.video.read import stream

    path = ROOT / "docs" / "demo.gif"
    frames = list(stream(path))
    steps = [np.abs(a.astype(float) - b).mean() for a, b in pairwise(frames)]
    assert len(frames) >= 32
    assert np.mean(steps) > 0.5
    assert path.stat().st_size < 8e6


if __name__ == "__main__":
    page = TRAINING.read_text()
    TRAINING.write_text(KEYS.sub(lambda found: f"{found[1]}\n{keys_table()}\n", page))
    sys.stdout.write(f"wrote {named(TRAINING)}\n")
