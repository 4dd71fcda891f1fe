"""Published weights of the original implementation to a model folder, and back, exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from pvdm_cli.config import ModelConfig, parse_config
from pvdm_cli.errors import ModelError
from pvdm_cli.files import make_folder, sha256
from pvdm_cli.model import (
    Checkpoint,
    Model,
    assign_weights,
    read_card,
    read_weights,
    resolve_model,
    save_model,
)
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.published.files import read_state, write_state
from pvdm_cli.published.names import NETWORKS, build, from_published, to_published
from pvdm_cli.published.sizes import Weights, infer


@dataclass(frozen=True)
class Conversion:
    """What was converted.

    Attributes:
        out: The folder that was written.
        files: Names of the weight files in it.
        parameters: Number of parameters of each network.
        changes: Sizes that the weights tell differently from the preset, one sentence each.
    """

    out: Path
    files: list[str]
    parameters: dict[str, int]
    changes: list[str]


def import_published(
    out: Path,
    *,
    preset: str,
    autoencoder: Path | None = None,
    denoiser: Path | None = None,
    overrides: Sequence[str] = (),
    fps: float | None = None,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> Conversion:
    """Turn published `.pth` files into a model folder.

    Sizes come from the shapes of the weights; what these cannot tell comes from the preset and its
    overrides.

    Args:
        out: The model folder to write.
        preset: Name or path of a preset.
        autoencoder: Published autoencoder file.
        denoiser: Published U-Net file.
        overrides: Changes to the preset, key=value.
        fps: Frame rate of the videos that the weights were trained on.
        overwrite: Replace a model folder that is there already.
        reporter: Receives progress.

    Raises:
        ModelError: If a file is damaged or not of its kind, or an override contradicts the weights.
        ConfigError: If the preset cannot describe the networks.
    """
    given = {"autoencoder": autoencoder, "denoiser": denoiser}
    sources = {kind: path for kind, path in given.items() if path is not None}
    if not sources:
        raise ModelError(
            "nothing to convert: give --autoencoder AE.pth, --denoiser UNET.pth or both"
        )
    _check_free(out, overwrite)
    reporter.start("reading", total=len(sources), unit="files")
    states: dict[str, dict[str, Tensor]] = {}
    for kind, path in sources.items():
        states[kind] = read_state(path, kind)
        reporter.advance()
    reporter.done()
    weights = {kind: Weights(state, str(sources[kind])) for kind, state in states.items()}
    config, changes = infer(preset, overrides, weights.get("autoencoder"), weights.get("denoiser"))
    networks = {
        kind: _filled(kind, config, state, str(sources[kind])) for kind, state in states.items()
    }
    provenance = {"converted_from": _origins(sources), "preset": preset, "overrides": [*overrides]}
    save_model(_model(config, networks, fps, provenance), out)
    files = [f"{kind}.safetensors" for kind in networks]
    parameters = {kind: _count(network) for kind, network in networks.items()}
    return Conversion(out, files, parameters, changes)


def export_published(
    model: str | Path,
    out: Path,
    *,
    checkpoint: Checkpoint | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Write the networks of a model as published state dicts, autoencoder.pth and denoiser.pth.

    Args:
        model: A model folder, a run folder or `demo`.
        out: The folder to write into.
        checkpoint: Step of a run folder, or "best"; the latest otherwise.
        overwrite: Replace files that are there already.

    Raises:
        ModelError: If the model is missing or damaged, or a file is in the way.
    """
    folder = resolve_model(model, checkpoint)
    card = read_card(folder)
    config = parse_config(ModelConfig, card["config"], where=f"{folder}/model.json")
    kinds = [kind for kind in NETWORKS if f"{kind}.safetensors" in card["files"]]
    _refuse_unpublishable(config, folder, kinds)
    make_folder(out)
    for kind in kinds:
        if (out / f"{kind}.pth").exists() and not overwrite:
            raise ModelError(f"{out / kind}.pth exists; give --overwrite to replace it")
    parameters = {}
    for kind in kinds:
        path = folder / f"{kind}.safetensors"
        network = build(NETWORKS[kind], config)
        assign_weights(network, read_weights(path, card["files"][path.name]), where=str(path))
        write_state(to_published(network.state_dict(), network, config), out / f"{kind}.pth")
        parameters[kind] = _count(network)
    return Conversion(out, [f"{kind}.pth" for kind in kinds], parameters, [])


def _refuse_unpublishable(config: ModelConfig, folder: Path, kinds: Sequence[str]) -> None:
    """Refuse a denoiser with parts that the published network does not have."""
    if "denoiser" not in kinds or config.denoiser is None:
        return
    more = {f"denoiser.{key}": getattr(config.denoiser, key) for key in ("positions", "normalise")}
    if config.diffusion is not None:
        more["diffusion.prefix_noise"] = config.diffusion.prefix_noise
    more["data.labels"] = bool(config.classes)
    for key, value in more.items():
        if value:
            raise ModelError(
                f"{folder}: was trained with {key}={str(value).lower()}, which the published U-Net "
                "cannot hold; only models trained without it can be written as published"
            )


def _check_free(out: Path, overwrite: bool) -> None:
    """Refuse to replace anything but, when asked to, a model folder."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "model.json").is_file():
        raise ModelError(f"{out} exists and is not a model folder; choose another --out")
    if not overwrite:
        raise ModelError(f"{out} exists; give --overwrite to replace it")


def _filled(
    kind: str, config: ModelConfig, state: Mapping[str, Tensor], where: str
) -> Autoencoder | Denoiser:
    """Build a network and give it published weights, as float32."""
    network = build(NETWORKS[kind], config)
    ours = from_published(state, network, where=where)
    assign_weights(network, {key: value.float() for key, value in ours.items()}, where=where)
    return network


def _model(
    config: ModelConfig,
    networks: dict[str, Autoencoder | Denoiser],
    fps: float | None,
    provenance: dict[str, Any],
) -> Model:
    """Put a model together; one of its networks may be missing in a folder."""
    autoencoder = cast("Autoencoder", networks.get("autoencoder"))
    denoiser = cast("Denoiser | None", networks.get("denoiser"))
    return Model(config, autoencoder, denoiser, fps=fps, provenance=provenance)


def _origins(sources: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Name and hash of each source file."""
    return {kind: {"file": path.name, "sha256": sha256(path)} for kind, path in sources.items()}


def _count(network: Autoencoder | Denoiser) -> int:
    """Count parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
