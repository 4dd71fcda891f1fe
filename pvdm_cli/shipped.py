"""What is shipped beside the code: presets by name or path, the demo model's folder.

Kept apart from `config`, so that listing presets needs no validation library.
"""

from pathlib import Path
from typing import NamedTuple

from pvdm_cli.errors import ConfigError, did_you_mean

PACKAGE = Path(__file__).parent


class PresetInfo(NamedTuple):
    """A shipped preset: its name, stage and the first line of its header."""

    name: str
    stage: str
    summary: str


def presets_dir() -> Path:
    """The shipped presets: inside the wheel, or the top-level folder of a checkout."""
    shipped = PACKAGE / "presets"
    return shipped if shipped.is_dir() else PACKAGE.parent / "presets"


def preset_names() -> list[str]:
    """Names of all shipped presets, like 'sky/diffusion-l'."""
    root = presets_dir()
    return sorted(
        path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")
    )


def preset_path(name_or_path: str | Path) -> Path:
    """Find a preset by name or a YAML file by path.

    Raises:
        ConfigError: If neither exists.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    named = presets_dir() / f"{name_or_path}.yaml"
    if path.suffix not in {".yaml", ".yml"} and named.is_file():
        return named
    if path.suffix in {".yaml", ".yml"}:
        raise ConfigError(f"{path}: no such file; `pvdm presets ls` lists the shipped presets")
    raise ConfigError(
        f"no preset {str(name_or_path)!r}{did_you_mean(str(name_or_path), preset_names())} "
        "(`pvdm presets ls` lists them)"
    )


def list_presets() -> list[PresetInfo]:
    """All shipped presets with the first line of their headers."""
    found = []
    for name in preset_names():
        text = preset_path(name).read_text(encoding="utf-8")
        stage = next(line.split()[1] for line in text.splitlines() if line.startswith("stage:"))
        found.append(PresetInfo(name, stage, text.splitlines()[0].lstrip("# ")))
    return found
