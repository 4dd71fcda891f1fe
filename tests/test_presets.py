"""Every shipped preset loads, builds and says in its header what to expect."""

import re
import shlex

import pytest
import torch
import typer

from pvdm_cli.cli.app import app
from pvdm_cli.config import dump_yaml, load_config, parse_config, read_yaml
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.shipped import list_presets, preset_names, preset_path

NAMES = preset_names()
AUTOENCODER, PVDM_L, PVDM_S = 62_064_399, 528_273_412, 132_163_588
PUBLISHED = {
    f"{data}/{stage}": counts
    for data in ("sky", "ucf101")
    for stage, counts in {
        "autoencoder": (AUTOENCODER, None),
        "adversarial": (AUTOENCODER, None),
        "diffusion-l": (AUTOENCODER, PVDM_L),
        "diffusion-s": (AUTOENCODER, PVDM_S),
    }.items()
}


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def header(name: str) -> list[str]:
    lines = preset_path(name).read_text(encoding="utf-8").splitlines()
    stop = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return [line.removeprefix("#").removeprefix(" ") for line in lines[:stop]]


def test_the_published_presets_are_there() -> None:
    assert set(PUBLISHED) <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_it_builds_and_reads_back_as_written(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        assert count(Autoencoder(config.model())) > 0
        assert config.denoiser is None or count(Denoiser(config.model())) > 0
    assert load_config(name, []) == config
    again = parse_config(type(config), config.model_dump(), where=name)
    assert dump_yaml(again) == dump_yaml(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_presets_have_the_published_parameter_counts(name: str) -> None:
    config = load_config(name)
    with torch.device("meta"):
        autoencoder = count(Autoencoder(config.model()))
        denoiser = count(Denoiser(config.model())) if config.denoiser else None
    assert (autoencoder, denoiser) == PUBLISHED[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_presets_prepare_frames_as_published(name: str) -> None:
    config = load_config(name)
    assert (config.clip.resize, config.clip.antialias) == ("bilinear", False)
    assert config.latent.flat == 2048


@pytest.mark.parametrize("name", ["autoencoder", "adversarial", "diffusion-l", "diffusion-s"])
def test_the_two_datasets_differ_in_the_prefix_probability_only(name: str) -> None:
    sky, ucf = (read_yaml(preset_path(f"{data}/{name}")) for data in ("sky", "ucf101"))
    probs = [values.get("diffusion", {}).pop("prefix_prob", None) for values in (sky, ucf)]
    assert sky == ucf
    assert probs == ([0.2, 0.3] if name.startswith("diffusion") else [None, None])


@pytest.mark.parametrize("name", NAMES)
def test_the_header_names_command_hardware_time_and_result(name: str) -> None:
    text = header(name)
    assert text[0].strip()
    for field in ("command", "hardware", "time", "result"):
        assert any(re.match(rf"{field}\s+\S", line) for line in text), field


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_the_header_parse(name: str) -> None:
    found = [line[line.index("pvdm ") :] for line in header(name) if " pvdm " in f" {line}"]
    commands = [shlex.split(line.partition(" && ")[0]) for line in found]
    assert any(name in words for words in commands)
    for _, *words in commands:
        root = typer.main.get_command(app)
        context = root.make_context("pvdm", list(words))
        _, command, rest = root.resolve_command(context, words)  # type: ignore[attr-defined]
        command.make_context(words[0], rest, parent=context)


def test_the_list_shows_stage_and_summary() -> None:
    for preset in list_presets():
        assert preset.stage == load_config(preset.name).stage
        assert preset.summary == header(preset.name)[0]
