"""What the shapes of published weights tell about a network, and what they cannot tell.

Shapes tell all sizes but the number of attention heads in the U-Net, the clip's frame stride and
resizing, and the diffusion: those come from a preset and its overrides.
"""

import re
from collections.abc import Iterable, Mapping
from itertools import count
from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor

from pvdm_cli.config import (
    AutoencoderConfig,
    ModelConfig,
    RunConfig,
    apply_overrides,
    parse_config,
    read_yaml,
)
from pvdm_cli.errors import ConfigError, ModelError
from pvdm_cli.published.names import UNET
from pvdm_cli.shipped import preset_path


class Fact(NamedTuple):
    """A value that a weight's shape tells, and that weight."""

    value: Any
    told_by: str


Facts = dict[str, Fact]  # by dotted configuration key


class Weights:
    """The shapes of one published file."""

    def __init__(self, state: Mapping[str, Tensor], where: str) -> None:
        self.shapes = {key: tuple(value.shape) for key, value in state.items()}
        self.where = where

    def shape(self, key: str, axes: int) -> tuple[int, ...]:
        """Return the shape of a weight.

        Raises:
            ModelError: If it is missing or has another number of axes.
        """
        if key not in self.shapes:
            raise ModelError(f"{self.where}: weight {key} is missing; the file is not complete")
        found = self.shapes[key]
        if len(found) != axes or 0 in found:
            raise ModelError(
                f"{self.where}: {key} has shape {list(found)}; {axes} axes were expected"
            )
        return found

    def has(self, key: str) -> bool:
        """Whether a weight is present."""
        return key in self.shapes

    def length(self, template: str) -> int:
        """Count the numbers 0, 1, ... for which a key with that number is present."""
        return next(i for i in count() if template.format(i) not in self.shapes)

    def told(self, value: Any, key: str) -> Fact:
        """Make a fact, told by the shape of a weight."""
        return Fact(value, f"{self.where}: {key} {list(self.shapes[key])}")


def autoencoder_facts(weights: Weights) -> Facts:
    """Read the sizes of the autoencoder and the clip from its weights."""
    embedding = "encoder.to_patch_embedding.weight"
    width, patch_numbers = weights.shape(embedding, 2)
    patch = isqrt(patch_numbers // 3)
    facts = {"width": weights.told(width, embedding), "patch": weights.told(patch, embedding)}
    layer = "encoder.layers.{}.0.norm.weight"
    facts["depth"] = Fact(weights.length(layer), f"{weights.where}: encoder.layers")
    facts["latent_channels"] = weights.told(weights.shape("pre_xy.weight", 4)[0], "pre_xy.weight")
    facts |= _projection_facts(weights, width)
    named = {f"autoencoder.{key}": fact for key, fact in facts.items()}
    for key, plane, unit in (("frames", "xy", 1), ("height", "yt", patch), ("width", "xt", patch)):
        positions = f"{plane}_pos_embedding"
        length = weights.shape(positions, 3)[1] - 1  # one more for the token
        named[f"clip.{key}"] = weights.told(length * unit, positions)
    return named


def _projection_facts(weights: Weights, width: int) -> Facts:
    """Read the sizes of the projection transformers."""
    qkv, up = (f"xy_quant_attn.layers.0.{part}.weight" for part in ("0.fn.to_qkv", "1.fn.net.0"))
    head_dim = max(width // 8, 1)
    depth = weights.length("xy_quant_attn.layers.{}.0.norm.weight")
    return {
        "projection_depth": Fact(depth, f"{weights.where}: xy_quant_attn.layers"),
        "projection_heads": weights.told(weights.shape(qkv, 2)[0] // 3 // head_dim, qkv),
        "projection_mlp": weights.told(weights.shape(up, 2)[0], up),
    }


def head_facts(weights: Weights, given: Mapping[str, Any], explicit: Mapping[str, Any]) -> Facts:
    """Split the width of the autoencoder's attention into heads.

    The rotary tables of a complete file tell the head size; without them only the product of
    number and size is known.

    Raises:
        ModelError: If what is known does not determine both.
    """
    qkv, table = "encoder.layers.0.0.fn.to_qkv.weight", "encoder.frame_rot_emb.inv_freqs"
    inner = weights.shape(qkv, 2)[0] // 3
    if weights.has(table):
        head_dim = 2 * weights.shape(table, 1)[0]
        return {
            "autoencoder.head_dim": weights.told(head_dim, table),
            "autoencoder.num_heads": weights.told(inner // head_dim, qkv),
        }
    for known, unknown in (("num_heads", "head_dim"), ("head_dim", "num_heads")):
        value = explicit.get(known)
        if unknown not in explicit and isinstance(value, int) and value > 0 and inner % value == 0:
            return {f"autoencoder.{unknown}": weights.told(inner // value, qkv)}
    number, size = (
        given.get(key, AutoencoderConfig.model_fields[key].default)
        for key in ("num_heads", "head_dim")
    )
    if isinstance(number, int) and isinstance(size, int) and number * size == inner:
        return {}
    raise ModelError(
        f"{weights.where}: {qkv} {list(weights.shapes[qkv])} means autoencoder.num_heads * "
        f"autoencoder.head_dim = {inner}, not {number} * {size}; give both as key=value"
    )


def denoiser_facts(weights: Weights) -> Facts:
    """Read the sizes of the U-Net from its weights."""
    embedding, stem, head = (
        UNET + key for key in ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight")
    )
    base, channels = weights.shape(embedding, 2)[1], weights.shape(head, 4)[0]
    taken = weights.shape(stem, 4)[1]
    if taken != 2 * channels:
        raise ModelError(
            f"{weights.where}: {stem} takes {taken} channels where {2 * channels} are expected, "
            f"latent and prefix of {channels} each (head {head} {list(weights.shapes[head])})"
        )
    outputs = _output_blocks(weights)
    num_blocks = outputs.index(True) + 1 if True in outputs else len(outputs)  # of one level
    levels = len(outputs) // num_blocks
    multipliers, attended = [], []
    for level in range(levels):
        first = f"{UNET}output_blocks.{(levels - 1 - level) * num_blocks}"
        out = weights.shape(f"{first}.0.out_layers.3.weight", 4)[0]
        multipliers.append(out // base)
        if weights.has(f"{first}.1.qkv.weight"):
            attended.append(2**level)
    blocks = f"{weights.where}: output_blocks"
    return {
        "autoencoder.latent_channels": weights.told(channels, head),
        "denoiser.base_channels": weights.told(base, embedding),
        "denoiser.channel_multipliers": Fact(tuple(multipliers), blocks),
        "denoiser.num_res_blocks": Fact(num_blocks - 1, blocks),
        "denoiser.attention_downsamplings": Fact(tuple(attended), blocks),
        "denoiser.positions": Fact(False, f"{weights.where}: published U-Nets have none"),
        "diffusion.prefix_noise": Fact(0.0, f"{weights.where}: published U-Nets know none"),
        "denoiser.normalise": Fact(False, f"{weights.where}: published U-Nets do not"),
    }


def _output_blocks(weights: Weights) -> list[bool]:
    """Tell for each block of the ascending half whether it ends a level by upsampling."""
    number = weights.length(UNET + "output_blocks.{}.0.in_layers.0.weight")
    if number < 2:
        raise ModelError(f"{weights.where}: fewer than two output_blocks; not a published U-Net")
    second = re.compile(re.escape(UNET) + r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight")
    rising = {int(match[1]) for match in map(second.fullmatch, weights.shapes) if match}
    return [block in rising for block in range(number)]


class Inferred(NamedTuple):
    """The configuration of given weights, and where it differs from the preset."""

    config: ModelConfig
    changes: list[str]


def infer(
    preset: str,
    overrides: Iterable[str],
    autoencoder: Weights | None,
    denoiser: Weights | None,
) -> Inferred:
    """Describe networks by their weights, and by a preset with overrides where weights are mute.

    Raises:
        ModelError: If an override contradicts the weights, or one file the other.
        ConfigError: If the preset cannot describe the networks.
    """
    explicit = apply_overrides({}, overrides)
    values = apply_overrides(read_yaml(preset_path(preset)), overrides)
    if denoiser is not None and not {"denoiser", "diffusion"} <= values.keys():
        raise ConfigError(
            f"{preset}: has no denoiser and diffusion sections; give --preset a diffusion preset"
        )
    _refuse_idle(explicit, denoiser is not None)
    facts: Facts = {}
    if autoencoder is not None:
        facts |= autoencoder_facts(autoencoder)
        facts |= head_facts(
            autoencoder, _section(values, "autoencoder"), _section(explicit, "autoencoder")
        )
    if denoiser is not None:
        told = denoiser_facts(denoiser)
        _check_agreement(facts, told)
        facts = told | facts
    values, changes = _settle(values, explicit, facts)
    if denoiser is None:  # an autoencoder alone need not fit the U-Net of a diffusion preset
        values |= {"stage": "autoencoder", "denoiser": None, "diffusion": None}
    return Inferred(parse_config(RunConfig, values, where=preset).model(), changes)


def _refuse_idle(explicit: Mapping[str, Any], with_denoiser: bool) -> None:
    """Refuse overrides that could change nothing: of training, or of a network not given."""
    used = ["clip", "autoencoder", *(("denoiser", "diffusion") if with_denoiser else ())]
    for section in explicit:
        if section in RunConfig.model_fields and section not in used:
            raise ConfigError(
                f"{section}: an override of it would change nothing in this conversion; "
                f"those of {', '.join(used)} do"
            )


def _check_agreement(one: Facts, two: Facts) -> None:
    """Refuse two files that tell different values of one key."""
    for key in one.keys() & two.keys():
        if one[key].value != two[key].value:
            raise ModelError(
                f"the files do not belong together: {key} is {one[key].value} by "
                f"{one[key].told_by}, but {two[key].value} by {two[key].told_by}"
            )


def _settle(
    values: dict[str, Any], explicit: dict[str, Any], facts: Facts
) -> tuple[dict[str, Any], list[str]]:
    """Set what weights tell; refuse overrides that say otherwise, note presets that do."""
    settled = dict(values)
    changes = []
    for dotted, fact in facts.items():
        section, key = dotted.split(".")
        given = _plain(_section(values, section), key, facts)
        if key in _section(explicit, section):
            if given == fact.value:
                continue
            raise ModelError(
                f"{dotted}={_shown(given)} contradicts the weights, which mean "
                f"{_shown(fact.value)} ({fact.told_by})"
            )
        if given not in (None, fact.value):
            changes.append(f"{dotted} is {_shown(fact.value)} ({_shown(given)} in the preset)")
        settled[section] = {**_section(settled, section), key: fact.value}
    return settled, changes


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section of a configuration, empty where it is missing.

    Raises:
        ConfigError: If something else than a section has its name.
    """
    section = values.get(name)
    if section is not None and not isinstance(section, dict):
        raise ConfigError(f"{name}={section!r}: expected a section, as in {name}.key=value")
    return section or {}


def _plain(section: dict[str, Any], key: str, facts: Facts) -> Any:
    """Return a configured value in the form in which facts hold it."""
    given = section.get(key)
    if not isinstance(given, list | tuple):
        return given
    if key == "attention_downsamplings":  # those beyond the last level mean nothing
        lowest = 2 ** (len(facts["denoiser.channel_multipliers"].value) - 1)
        return tuple(sorted(v for v in given if not isinstance(v, int) or v <= lowest))
    return tuple(given)


def _shown(value: Any) -> str:
    """Write a value as an override would: no spaces, lists in brackets."""
    return str(list(value) if isinstance(value, tuple) else value).replace(" ", "")
