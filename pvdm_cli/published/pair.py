"""Published `.pth` files as they are: which network each holds, and the preset that describes both.

Weights do not tell the number of heads, the diffusion and how clips were prepared. Where every size
that they do tell is that of a shipped preset, they are taken for weights of that recipe; anything
else is for `pvdm convert`, where the user says what they are.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pvdm_cli.config import ModelConfig
from pvdm_cli.errors import ModelError, PvdmError
from pvdm_cli.published.files import read_states
from pvdm_cli.published.names import NETWORKS, build, from_published
from pvdm_cli.published.sizes import Inferred, Weights, infer
from pvdm_cli.shipped import preset_names

CONVERT = "`pvdm convert --autoencoder AE.pth --denoiser UNET.pth --preset PRESET --out MODEL`"


class Pair(NamedTuple):
    """The networks of published files.

    Attributes:
        config: Their sizes, and from the preset what no shape tells.
        preset: Its name.
        weights: By network and our names, float32.
        files: Where each network was found.
    """

    config: ModelConfig
    preset: str
    weights: dict[str, dict[str, Tensor]]
    files: dict[str, Path]


def read_pair(paths: Sequence[Path]) -> Pair:
    """Read an autoencoder and, if there is one, a U-Net, told apart by what the files hold.

    Raises:
        ModelError: If a file is not readable or holds neither, two hold the same network, there is
            no autoencoder, or no one shipped preset describes the networks.
    """
    states: dict[str, dict[str, Tensor]] = {}
    files: dict[str, Path] = {}
    for path in paths:
        for kind, state in read_states(path).items():
            if kind in files:
                raise ModelError(
                    f"{files[kind]} and {path} both hold a published {kind}; name those that are "
                    "meant, as AE.pth+UNET.pth"
                )
            states[kind], files[kind] = state, path
    if "autoencoder" not in states:
        raise ModelError(
            f"{files['denoiser']}: a published U-Net without its autoencoder; name both, as "
            "AE.pth+UNET.pth"
        )
    shapes = {kind: Weights(state, str(files[kind])) for kind, state in states.items()}
    preset, config = fitting_preset(shapes["autoencoder"], shapes.get("denoiser"))
    weights = {
        kind: _ours(kind, state, config, where=str(files[kind])) for kind, state in states.items()
    }
    return Pair(config, preset, weights, files)


def fitting_preset(autoencoder: Weights, denoiser: Weights | None) -> tuple[str, ModelConfig]:
    """Find the shipped preset of which the weights have every size.

    Raises:
        ModelError: If there is none, or several that mean different models.
    """
    found: dict[str, ModelConfig] = {}
    for name in preset_names():
        fit = _fit(name, autoencoder, denoiser)
        if fit is not None and not fit.changes:
            found[name] = _drawn_by(fit.config)
    if not found:
        raise ModelError(
            f"{autoencoder.where}: published weights of sizes that no shipped preset has; say what "
            f"they are by {CONVERT}"
        )
    name, config = next(iter(found.items()))
    if any(other != config for other in found.values()):
        raise ModelError(
            f"{autoencoder.where}: published weights that may be of {' or '.join(found)}; say of "
            f"which by {CONVERT}"
        )
    return name, config


def _fit(name: str, autoencoder: Weights, denoiser: Weights | None) -> Inferred | None:
    """Describe networks by a preset; None where it is one of other networks."""
    try:
        return infer(name, [], autoencoder, denoiser)
    except PvdmError:
        return None


def _drawn_by(config: ModelConfig) -> ModelConfig:
    """Leave out what only training uses: by that published presets of one size differ."""
    if config.diffusion is None:
        return config
    plain = type(config.diffusion)().prefix_prob
    diffusion = config.diffusion.model_copy(update={"prefix_prob": plain})
    return config.model_copy(update={"diffusion": diffusion})


def _ours(
    kind: str, state: dict[str, Tensor], config: ModelConfig, *, where: str
) -> dict[str, Tensor]:
    """Give the weights of a network our names, as float32."""
    ours = from_published(state, build(NETWORKS[kind], config), where=where)
    return {key: value.float() for key, value in ours.items()}
