"""What is measured: a trained model, or a preset at its full size with random weights.

Time and memory do not depend on the weights, so a preset needs no training to be measured.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pvdm_cli.config import ModelConfig, RunConfig, load_config, parse_config
from pvdm_cli.errors import ConfigError, ModelError, did_you_mean
from pvdm_cli.model import DEMO, Model, load_model, read_card, resolve_model
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.runtime import generator
from pvdm_cli.shipped import preset_names, preset_path

DEMO_PRESET = "demo/diffusion"

NetworkT = TypeVar("NetworkT", bound=nn.Module)


@dataclass(frozen=True)
class Subject:
    """A model to measure, in words that a child process can be told.

    Attributes:
        name: As it was called.
        config: Of its networks, as JSON values.
        folder: Of its weights; None: random ones.
        notes: What a reader of its figures should know.
    """

    name: str
    config: dict[str, Any]
    folder: str | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def weights(self) -> str:
        """Where the weights come from: trained or random."""
        return "random" if self.folder is None else "trained"


def find_subject(name: str, *, samples: bool = True) -> Subject:
    """Find a model (folder, run, `demo`, hub name) or a preset.

    Args:
        name: As people call it.
        samples: Whether it must be able to sample, not only to encode and decode.

    Raises:
        PvdmError: If it is neither, or holds no denoiser where it must.
    """
    if name == "demo" and not (DEMO / "model.json").is_file():
        note = f"the demo model is not installed here: measured preset {DEMO_PRESET} instead"
        return _preset(DEMO_PRESET, [note], samples)
    if name == "demo" or name.startswith("hf:") or Path(name).is_dir():
        return _model(name, samples)
    try:
        preset_path(name)
    except ConfigError:
        raise ConfigError(
            f"{name!r} is neither a model (folder, run, `demo`, hf:owner/name) nor a preset"
            f"{did_you_mean(name, preset_names())}"
        ) from None
    return _preset(name, [], samples)


def _model(name: str, samples: bool) -> Subject:
    """Describe a trained model."""
    folder = resolve_model(name)
    card = read_card(folder)
    if samples and "denoiser.safetensors" not in card["files"]:
        raise ModelError(
            f"{name} holds an autoencoder only: give a model with a denoiser, or a diffusion "
            "preset (`pvdm presets ls`)"
        )
    return Subject(name, card["config"], str(folder))


def _preset(name: str, notes: list[str], samples: bool) -> Subject:
    """Describe a preset."""
    config = load_config(name)
    if samples and (config.denoiser is None or config.diffusion is None):
        raise ConfigError(
            f"{name} is an autoencoder preset, which cannot sample: give a diffusion preset "
            "(`pvdm presets ls`) or a model"
        )
    return Subject(name, config.model().model_dump(mode="json"), notes=notes)


def build(subject: Subject, device: torch.device, seed: int) -> Model:
    """Load the subject's weights or draw random ones; ready to sample."""
    if subject.folder is not None:
        return load_model(subject.folder, str(device))
    config = parse_config(ModelConfig, subject.config, where=subject.name)
    networks = [random_network(kind, config, device, seed) for kind in (Autoencoder, Denoiser)]
    autoencoder, denoiser = (network.eval().requires_grad_(False) for network in networks)
    assert isinstance(autoencoder, Autoencoder)
    assert isinstance(denoiser, Denoiser)
    return Model(config, autoencoder, denoiser)


def build_autoencoder(subject: Subject, device: torch.device, seed: int) -> Model:
    """Build the subject's autoencoder alone, with random weights; ready to encode and decode."""
    config = parse_config(ModelConfig, subject.config, where=subject.name)
    network = random_network(Autoencoder, config, device, seed)
    return Model(config, network.eval().requires_grad_(False))


@torch.no_grad()
def random_network(
    kind: type[NetworkT], config: ModelConfig | RunConfig, device: torch.device, seed: int
) -> NetworkT:
    """Build a network on the device with small random weights, gains of 1 and biases of 0.

    Drawn where they are needed: a network of 500 M weights starts in a second or two.
    """
    with torch.device("meta"):
        network = kind(config)
    network.to_empty(device=device)
    draw = generator(device, seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=0.02, generator=draw)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return network
