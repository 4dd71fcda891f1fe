"""Which published weight is which of ours, key for key and without loss.

Published names appear here and nowhere else. Every difference of shape is an axis of length one
(1x1 convolutions where we have linear maps), but for one: the scale-shift maps of all residual
blocks lie under each other in our one `film` layer.
"""

import re
from collections.abc import Mapping
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from pvdm_cli.config import ModelConfig
from pvdm_cli.errors import ModelError, did_you_mean
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.blocks import ResBlock
from pvdm_cli.models.denoiser import Denoiser

UNET = "diffusion_model."  # prefix of every key in a published U-Net file
NETWORKS: dict[str, type[Autoencoder] | type[Denoiser]] = {
    "autoencoder": Autoencoder,
    "denoiser": Denoiser,
}


class Entry(NamedTuple):
    """One published weight and where it lies in ours: rows start to stop of a weight."""

    published: str
    shape: tuple[int, ...]
    ours: str
    start: int
    stop: int


# Ours -> published, applied in turn to whole keys of the autoencoder.
AUTOENCODER_NAMES = (
    (r"^encoder\.patch_embedding\.", "encoder.to_patch_embedding."),
    (r"^to_pixels\.", "to_pixel.1."),
    (r"^from_latent\.(\w+)\.", r"post_\1."),
    (r"^projections\.(\w+)\.to_latent\.", r"pre_\1."),
    (r"^projections\.(\w+)\.token$", r"\1_token"),
    (r"^projections\.(\w+)\.positions$", r"\1_pos_embedding"),
    (r"^projections\.(\w+)\.blocks\.", r"\1_quant_attn.layers."),
    (r"\.blocks\.", ".layers."),
    (r"\.(\d+)\.(time|attention)\.", r".\1.0."),
    (r"(_attn\.layers\.\d+)\.feed_forward\.", r"\1.1."),
    (r"\.space\.", ".1."),
    (r"\.feed_forward\.", ".2."),
    (r"\.qkv\.", ".fn.to_qkv."),
    (r"\.out\.", ".fn.to_out.0."),
    (r"\.up\.", ".fn.net.0."),
    (r"\.down\.", ".fn.net.3."),
    # Planes: the published t counts frames, x columns, y rows, and two names are crossed over.
    (r"^((?:pre|post)_)?hw(?=[_.])", r"\1xy"),
    (r"^((?:pre|post)_)?sw(?=[_.])", r"\1yt"),
    (r"^((?:pre|post)_)?sh(?=[_.])", r"\1xt"),
)

DENOISER_NAMES = (
    (r"^time_embedding\.", "time_embed."),
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"\.residual\.", ".0."),
    (r"\.plane_attention\.", ".1."),
    (r"^input_blocks\.(\d+)\.joint_attention\.", r"input_attns.\1."),
    (r"^middle_block\.joint_attention\.", "mid_attn."),
    (r"^output_blocks\.(\d+)\.joint_attention\.", r"output_attns.\1."),
    (r"\.norm_in\.", ".in_layers.0."),
    (r"\.conv_in\.", ".in_layers.2."),
    (r"\.norm_out\.", ".out_layers.0."),
    (r"\.conv_out\.", ".out_layers.3."),
    (r"\.skip\.", ".skip_connection."),
    (r"\.out\.(?=weight|bias)", ".proj_out."),
)

# Axes of length one that the published weight has before and after ours.
SINGLE_AXES = (
    (r"_token$", 2, 0),
    (r"_pos_embedding$", 1, 0),
    (r"^(pre|post)_\w\w\.weight$", 0, 2),
    (r"\.skip_connection\.weight$", 0, 2),
    (r"(attns\.\d+|mid_attn|blocks?\.[\d.]+)\.(qkv|proj_out)\.weight$", 0, 1),
)


def build(kind: type[Autoencoder] | type[Denoiser], config: ModelConfig) -> Autoencoder | Denoiser:
    """Build a network without memory, for its names and shapes."""
    with torch.device("meta"):
        return kind(config)


def entries(network: Autoencoder | Denoiser) -> list[Entry]:
    """List every published weight of a network, in the order of ours."""
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    if isinstance(network, Autoencoder):
        return [_whole(_rename(key, AUTOENCODER_NAMES), key, shapes[key]) for key in shapes]
    return [
        *(
            _whole(UNET + _unet_name(key, shapes), key, shapes[key])
            for key in shapes
            if not key.startswith("film.")
        ),
        *_film_entries(network, shapes),
    ]


def _whole(published: str, ours: str, shape: tuple[int, ...]) -> Entry:
    """Make the entry of a weight that is one weight on both sides."""
    for pattern, before, after in SINGLE_AXES:
        if re.search(pattern, published):
            return Entry(published, (1,) * before + shape + (1,) * after, ours, 0, shape[0])
    return Entry(published, shape, ours, 0, shape[0])


def _rename(key: str, names: tuple[tuple[str, str], ...]) -> str:
    """Apply a table of replacements in turn."""
    for pattern, replacement in names:
        key = re.sub(pattern, replacement, key)
    return key


def _unet_name(key: str, shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Name a denoiser weight as published; blocks are numbered after what they hold."""
    block, second, _ = key.partition(".second.")
    if second:  # comes after the in-plane attention, where there is one
        attends = f"{block}.plane_attention.norm.weight" in shapes
        key = key.replace(".second.", ".2." if attends else ".1.")
    # The first convolution is input block 0 there, and a layer of its own here.
    key = re.sub(r"^input_blocks\.(\d+)", lambda m: f"input_blocks.{int(m[1]) + 1}", key)
    return _rename(key, DENOISER_NAMES)


def _film_entries(network: Denoiser, shapes: Mapping[str, tuple[int, ...]]) -> list[Entry]:
    """Find each residual block's rows of the film layer."""
    found, start = [], 0
    blocks = [
        (module.film_index, name, module)
        for name, module in network.named_modules()
        if isinstance(module, ResBlock)
    ]
    for _, name, block in sorted(blocks, key=lambda item: item[0]):
        stop = start + 2 * block.out_channels
        prefix = UNET + _unet_name(f"{name}.", shapes).removesuffix(".")
        for leaf in ("weight", "bias"):
            shape = (stop - start, *shapes[f"film.{leaf}"][1:])
            found.append(Entry(f"{prefix}.emb_layers.1.{leaf}", shape, f"film.{leaf}", start, stop))
        start = stop
    return found


def from_published(
    state: Mapping[str, Tensor], network: Autoencoder | Denoiser, *, where: str
) -> dict[str, Tensor]:
    """Turn a published state dict into ours; buffers may be present and are left out.

    Raises:
        ModelError: Naming the first weight that is missing, unknown or of another shape.
    """
    table = entries(network)
    _check_keys(state, table, where)
    parts: dict[str, list[Tensor]] = {}
    for entry in table:
        found = state[entry.published]
        if tuple(found.shape) != entry.shape:
            raise ModelError(
                f"{where}: {entry.published} has shape {list(found.shape)}, the configuration "
                f"needs {list(entry.shape)}; describe the network by key=value"
            )
        parts.setdefault(entry.ours, []).append(found)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    return {
        key: (tensors[0] if len(tensors) == 1 else torch.cat(tensors)).reshape(shapes[key])
        for key, tensors in parts.items()
    }


def _check_keys(state: Mapping[str, Tensor], table: list[Entry], where: str) -> None:
    """Refuse a state dict with missing or unknown weights."""
    wanted = {entry.published for entry in table}
    for key in sorted(wanted - state.keys()):
        raise ModelError(f"{where}: weight {key} is missing; the file is not complete")
    for key in sorted(state.keys() - wanted):
        if not is_buffer(key):
            raise ModelError(
                f"{where}: weight {key} is not part of this network{did_you_mean(key, wanted)}"
            )


def to_published(
    weights: Mapping[str, Tensor], network: Autoencoder | Denoiser, config: ModelConfig
) -> dict[str, Tensor]:
    """Turn our state dict into a published one, with its buffers."""
    state = {}
    for entry in entries(network):
        rows = weights[entry.ours][entry.start : entry.stop].reshape(entry.shape)
        # A copy of its own: a view would drag the whole film layer into the file.
        state[entry.published] = rows.clone(memory_format=torch.contiguous_format)
    return state | buffers(network, config)


def is_buffer(key: str) -> bool:
    """Whether a published key is a table that is computed, not trained."""
    pattern = r"coords|(encoder|decoder)\.(frame|image)_rot_emb\.\w+|diffusion_model\.zeros"
    return re.fullmatch(pattern, key) is not None


def buffers(network: Autoencoder | Denoiser, config: ModelConfig) -> dict[str, Tensor]:
    """Compute the tables that published files hold beside the weights."""
    latent, d = config.latent, config.autoencoder.head_dim
    if isinstance(network, Denoiser):
        return {f"{UNET}zeros": torch.zeros(1, latent.c, latent.flat)}
    tables = {"coords": torch.linspace(-1, 1, steps=latent.s).unsqueeze(-1)}
    for half in ("encoder", "decoder"):
        frequencies = 1.0 / (10000 ** (torch.arange(0, d, 2).float() / d))
        tables[f"{half}.frame_rot_emb.inv_freqs"] = frequencies
        scales = torch.logspace(0.0, log(10 / 2) / log(2), d // 4, base=2)
        tables[f"{half}.image_rot_emb.scales"] = scales
    return tables
