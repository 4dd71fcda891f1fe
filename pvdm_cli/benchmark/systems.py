"""Other people's systems: how each is built, what its network is fed, what a clip takes.

Sizes are those of the published models, weights are random, and one clip has 16 frames (17 where
an autoencoder folds time by 4 or 8). Encoders of text are left out: they run once.

Axes: b videos, c channels, s frames, h x w latent grid, k tokens of a text.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pvdm_cli.benchmark.foreign import DIFFUSERS, EXTRA, VDM, Network, Values
from pvdm_cli.errors import PvdmError, did_you_mean


@dataclass(frozen=True, eq=False)
class System:
    """A system beside ours.

    Attributes:
        name: On the command line.
        title: In tables.
        frames: Of a clip.
        pixels: Height and width of a frame.
        step: The network that is called at each step; as often as its users do.
        decode: What makes frames of latents; None: it works on frames.
        live: Whether it is run, not only counted.
    """

    name: str
    title: str
    frames: int
    pixels: int
    step: Network
    decode: Network | None = None
    live: bool = False

    @property
    def lacks(self) -> str | None:
        """Say which package is not installed; None if all are."""
        package = self.step.package
        if importlib.util.find_spec(package) is not None:
            return None
        return f"{package.replace('_', '-')} is not installed: {EXTRA}"


def find_systems(text: str) -> list[System]:
    """Read "vdm,latte-s"; "all" stands for every one.

    Raises:
        PvdmError: If one is not known.
    """
    names = list(SYSTEMS) if text == "all" else text.split(",")
    for name in names:
        if name not in SYSTEMS:
            raise PvdmError(
                f"--systems {name!r} is not known{did_you_mean(name, SYSTEMS)}; "
                f"choose of {', '.join(SYSTEMS)}"
            )
    return [SYSTEMS[name] for name in names]


def _latent(*shape: int) -> Tensor:
    """Values of latents; neither time nor memory depends on them."""
    return torch.ones(1, *shape)


def _time() -> Tensor:
    """A timestep [b]."""
    return torch.full((1,), 500)


def _unet3d(pixels: int) -> Network:
    """Video Diffusion Models (Ho et al. 2022), as its reimplementation recommends it."""

    def inputs() -> Values:
        attend = torch.zeros(1, dtype=torch.bool, device="cpu")  # it is looked at, so not on meta
        return {"x": _latent(3, 16, pixels, pixels), "time": _time(), "focus_present_mask": attend}

    options = {"dim": 64, "dim_mults": (1, 2, 4, 8)}
    return Network(VDM, "Unet3D", inputs, options, calls=1000)


def _latte(heads: int, head_dim: int, layers: int) -> Network:
    """Latte (Ma et al. 2024) without classes; diffusers shares the conditioning of its layers."""
    return Network(
        DIFFUSERS,
        "LatteTransformer3DModel",
        lambda: {
            "hidden_states": _latent(4, 16, 32, 32),
            "timestep": _time(),
            "encoder_hidden_states": torch.zeros(1, 1, 8),
        },
        {
            "num_attention_heads": heads,
            "attention_head_dim": head_dim,
            "num_layers": layers,
            "in_channels": 4,
            "out_channels": 8,
            "cross_attention_dim": None,
            "attention_bias": True,
            "sample_size": 32,
            "patch_size": 2,
            "activation_fn": "gelu-approximate",
            "num_embeds_ada_norm": 1000,
            "norm_type": "ada_norm_single",
            "norm_elementwise_affine": False,
            "norm_eps": 1e-6,
            "caption_channels": 8,
            "video_length": 16,
        },
        calls=250,
    )


def _from_text(kind: str, inputs: Callable[[], Values], **options: Any) -> Network:
    """Take 50 steps of two calls each: with the text and without."""
    return Network(DIFFUSERS, kind, inputs, options, calls=100)


def _decoder(kind: str, *latent: int, **options: Any) -> Network:
    """Decode the latents of a whole clip at once."""
    return Network(DIFFUSERS, kind, lambda: {"z": _latent(*latent)}, options, method="decode")


# The autoencoder of Stable Diffusion decodes frame by frame.
_FRAMES = Network(
    DIFFUSERS,
    "AutoencoderKL",
    lambda: {"z": _latent(4, 32, 32)},
    {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 256,
    },
    method="decode",
    calls=16,
)

_UNET3D = _from_text(
    "UNet3DConditionModel",
    lambda: {
        "sample": _latent(4, 16, 32, 32),
        "timestep": _time(),
        "encoder_hidden_states": torch.zeros(1, 77, 1024),
    },
)
_MOTION = _from_text(
    "UNetMotionModel",
    lambda: {
        "sample": _latent(4, 16, 32, 32),
        "timestep": _time(),
        "encoder_hidden_states": torch.zeros(16, 77, 768),
    },
    cross_attention_dim=768,
)
_COGVIDEOX = _from_text(
    "CogVideoXTransformer3DModel",
    lambda: {
        "hidden_states": _latent(5, 16, 32, 32),
        "encoder_hidden_states": torch.zeros(1, 226, 4096),
        "timestep": _time(),
    },
)
_WAN = _from_text(
    "WanTransformer3DModel",
    lambda: {
        "hidden_states": _latent(16, 5, 32, 32),
        "timestep": _time(),
        "encoder_hidden_states": torch.zeros(1, 512, 4096),
    },
    num_attention_heads=12,
    attention_head_dim=128,
    ffn_dim=8960,
    num_layers=30,
)
_LTX = _from_text(
    "LTXVideoTransformer3DModel",
    lambda: {
        "hidden_states": _latent(3 * 8 * 8, 128),
        "encoder_hidden_states": torch.zeros(1, 128, 4096),
        "encoder_attention_mask": torch.ones(1, 128),
        "timestep": _time(),
        "num_frames": 3,
        "height": 8,
        "width": 8,
    },
)

SYSTEMS = {
    system.name: system
    for system in (
        System("vdm", "VDM", 16, 64, _unet3d(64), live=True),
        System("latte-s", "Latte-S", 16, 256, _latte(6, 64, 6), _FRAMES, live=True),
        System("latte-xl", "Latte-XL", 16, 256, _latte(16, 72, 14), _FRAMES, live=True),
        System("vdm-256", "VDM", 16, 256, _unet3d(256)),
        System("unet3d", "UNet3DCondition", 16, 256, _UNET3D, _FRAMES),
        System("animatediff", "UNetMotion", 16, 256, _MOTION, _FRAMES),
        System(
            "cogvideox",
            "CogVideoX-2B",
            17,
            256,
            _COGVIDEOX,
            _decoder("AutoencoderKLCogVideoX", 16, 5, 32, 32),
        ),
        System("wan", "Wan-1.3B", 17, 256, _WAN, _decoder("AutoencoderKLWan", 16, 5, 32, 32)),
        System("ltx", "LTX", 17, 256, _LTX, _decoder("AutoencoderKLLTXVideo", 128, 3, 8, 8)),
    )
}
