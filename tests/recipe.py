"""Seeded weights and inputs of the numerical reference, in published names (its README's recipe)."""

from collections.abc import Mapping
from math import sqrt
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from pvdm_cli.config import ModelConfig
from pvdm_cli.published.names import NETWORKS, buffers, build, entries
from pvdm_cli.published.sizes import Weights

SALT = "pvdm-public"
SALTS = {"autoencoder": f"{SALT}/ae", "denoiser": f"{SALT}/unet"}


def seeded(key: str, shape: tuple[int, ...], salt: str) -> Tensor:
    """Draw a normal tensor that depends on its name."""
    random = np.random.RandomState(crc32(f"{salt}:{key}".encode()))
    return torch.from_numpy(random.standard_normal(shape).astype(np.float32))


def seeded_input(name: str, shape: tuple[int, ...]) -> Tensor:
    """Draw an input."""
    return seeded(f"input.{name}", shape, SALT)


def seeded_weight(key: str, shape: tuple[int, ...], salt: str) -> Tensor:
    """Draw a weight."""
    n = seeded(key, shape, salt)
    if len(shape) == 1:
        return 1 + 0.1 * n if key.endswith("weight") else 0.1 * n
    if key.endswith(("_token", "_pos_embedding")):
        return 0.5 * n
    return n / np.float32(sqrt(np.prod(shape[1:])))


def seeded_state(shapes: Mapping[str, tuple[int, ...]], kind: str) -> dict[str, Tensor]:
    """Draw all weights of a published state dict, without its buffers."""
    return {key: seeded_weight(key, tuple(shapes[key]), SALTS[kind]) for key in shapes}


def published_state(kind: str, config: ModelConfig) -> dict[str, Tensor]:
    """Draw the published state dict of a network of any size, buffers included."""
    network = build(NETWORKS[kind], config)
    shapes = {entry.published: entry.shape for entry in entries(network)}
    return {**seeded_state(shapes, kind), **buffers(network, config)}


def weights(kind: str, config: ModelConfig) -> Weights:
    """Shapes of the published state dict of a network of any size."""
    return Weights(published_state(kind, config), f"{kind}.pth")


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Relative L2 error."""
    return float((found - expected).norm() / expected.norm())
