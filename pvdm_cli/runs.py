"""One training run: its folder, the stage its configuration asks for, what it shows on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pvdm_cli import weights
from pvdm_cli.config import AUTO, RunConfig, differing_keys, dump_yaml, parse_config, read_yaml
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_format import read_manifest
from pvdm_cli.data.cache_shard import require_hash
from pvdm_cli.data.catalog import split
from pvdm_cli.data.clips import Clips
from pvdm_cli.data.labels import Labelled, folder_labels, say_missing
from pvdm_cli.data.live import LiveLatents
from pvdm_cli.data.selection import select
from pvdm_cli.decoding import load_maker
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import ConfigError, DataError, ModelError
from pvdm_cli.evaluation.reconstruction import FeatureDistance
from pvdm_cli.files import Hold, make_folder, only_writer, remove_folder, tidy, write_text
from pvdm_cli.model import Model, list_checkpoints, load_model, refuse_misfit
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.models.perceptual import LPIPS
from pvdm_cli.monitor import FewVideos
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.ranks import here, restarted
from pvdm_cli.rollout import rollout
from pvdm_cli.runtime import generator, resolve_device, resolve_precision
from pvdm_cli.sampling import Sampling, Steps
from pvdm_cli.training.adversary import Adversary
from pvdm_cli.training.autoencoder import AutoencoderStage
from pvdm_cli.training.diffusion import DiffusionStage, check_geometry, check_stride
from pvdm_cli.training.loop import TrainResult, train
from pvdm_cli.training.players import Portion, Stage
from pvdm_cli.training.starts import FILE as STARTS
from pvdm_cli.training.starts import record_start
from pvdm_cli.video.pixels import to_uint8
from pvdm_cli.video.sheets import grid
from pvdm_cli.video.write import write_video

# Keys that may change between one start of a run and the next: they do not change what is learned.
HARMLESS = {
    f"training.{key}"
    for key in (
        *("log_every", "validate_every", "sample_every", "checkpoint_every", "checkpoint_minutes"),
        *("score_every", "score_videos"),
        *("keep_last", "keep_every", "activation_checkpointing", "tensorboard"),
        *("clips_per_step", "compile", "zero"),
    )
} | {"data.memory_gb", "data.num_workers", "data.verify"}

SHOWN_STEPS = 50  # of the videos drawn during training


def run_training(
    config: RunConfig,
    run: Path,
    *,
    data: Path | None = None,
    cache: Path | None = None,
    autoencoder: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
    provenance: dict[str, Any] | None = None,
    reporter: Reporter,
    stop: Callable[[], bool] = lambda: False,
    find_batch: Callable[[RunConfig], int] | None = None,
) -> TrainResult:
    """Train one stage in a run folder; the same call again goes on where it stopped.

    Args:
        config: The resolved configuration.
        run: The run folder; made if it is not there.
        data: Folder of videos, for the autoencoder.
        cache: Latent cache, for the denoiser.
        autoencoder: The model that made the cache; by default the one the cache names.
        device: cpu | cuda | mps | auto.
        overwrite: Remove what is in the run folder and start afresh.
        provenance: Kept in the models of this run.
        reporter: Told of progress.
        stop: Asked after every step; True saves and returns.
        find_batch: Finds the largest batch that fits, for `training.batch_size=auto`.

    Raises:
        PvdmError: If something needed is missing or does not fit.
    """
    target = resolve_device(device)
    if config.training.precision == "fp16" and target.type == "cpu":
        raise ConfigError("training.precision=fp16 needs a GPU; use bf16 or fp32 on the CPU")
    if config.stage == "autoencoder" and data is None:
        raise DataError("an autoencoder trains on videos: give --data DIR")
    live = config.stage == "diffusion" and not config.data.cache
    if live and (data is None or autoencoder is None or cache is not None):
        raise DataError(
            "data.cache=off trains on videos without a cache: give --data DIR and --autoencoder "
            "MODEL, and no --cache"
        )
    if config.stage == "diffusion" and not live and cache is None:
        raise DataError(
            "diffusion trains on latents: run `pvdm encode VIDEOS --autoencoder MODEL "
            "--out CACHE` and give --cache CACHE"
        )
    config = with_classes(config, data, cache)
    latents: Cache | LiveLatents
    ranks = here()
    overwrite = overwrite and not restarted()  # else all would go with each process that dies
    with _hold(run) if ranks.main else nullcontext() as hold:
        ranks.barrier()  # the folder is there, and tidy
        goes_on = bool(list_checkpoints(run)) and not overwrite
        if config.training.batch_size == AUTO:
            settled = partial(_with_batch, config, run if goes_on else None, find_batch, reporter)
            config = ranks.first(settled)
        to_build = config
        if goes_on:
            if ranks.main:
                _refuse_other(run, config)
            to_build = config.model_copy(update={"init": None})  # the checkpoint has all weights
        if data is not None and config.stage == "autoencoder":
            stage: Stage[Any] = _autoencoder_stage(to_build, data, target, reporter)
        else:
            if live and data is not None and autoencoder is not None:
                latents, encoder = _live_latents(to_build, data, autoencoder, target, reporter)
            else:
                latents, encoder = _cached_latents(config, cache, autoencoder, target, reporter)
            stage = _diffusion_stage(to_build, latents, encoder, target)
        Portion.of(config.training, ranks)
        ranks.barrier()
        if ranks.main:
            if overwrite:  # only now that nothing is left to refuse
                _clear(run)
            write_text(run / "config.yaml", dump_yaml(config))
            inputs = {"data": data, "cache": cache, "autoencoder": autoencoder}
            record_start(run, provenance or {}, inputs, str(target), ranks.size)
        ranks.barrier()
        return train(stage, config, run, hold, provenance=provenance, reporter=reporter, stop=stop)


def with_classes(config: RunConfig, data: Path | None, cache: Path | None) -> RunConfig:
    """Fill in the names of the classes where a run asks for labels and does not name them.

    Raises:
        DataError: If there are none.
    """
    if not config.data.labels or config.classes:
        return config
    if cache is not None:
        names = read_manifest(cache).labels
        lacking = (
            f"cache {cache} has no classes: give it some by `pvdm encode VIDEOS --labels folders "
            f"--out {cache}`; clips are not encoded again"
        )
    else:
        assert data is not None
        names = _videos(config, data).names
        lacking = f"no video below {data} lies in a folder of its class; move them there"
    if not names:
        raise DataError(f"data.labels=true, but {lacking}")
    assert config.denoiser is not None
    denoiser = config.denoiser.model_copy(update={"classes": names})
    return config.model_copy(update={"denoiser": denoiser})


@contextmanager
def _hold(run: Path) -> Iterator[Hold]:
    """Make the run folder, keep other processes out of it, clear away what killed ones left.

    Raises:
        PvdmError: If it cannot be written, holds something else, or another process trains in it.
    """
    make_folder(run)
    shown = [path for path in run.iterdir() if not path.name.startswith(".")]
    if shown and not (run / "config.yaml").exists():
        raise ConfigError(
            f"{run} is not empty and holds no run (config.yaml); choose another --out"
        )
    with only_writer(run, "training in") as hold:
        for folder in (run, run / "checkpoints", run / "samples"):
            tidy(folder)
        yield hold


def _refuse_other(run: Path, config: RunConfig) -> None:
    """Check that a run belongs to this configuration."""
    kept = run / "config.yaml"
    before = parse_config(RunConfig, read_yaml(kept), where=str(kept))
    if before.classes and config.classes and before.classes != config.classes:
        raise ConfigError(
            f"{run} was started with other classes ({_changes(before.classes, config.classes)}); "
            "use those, another --out, or --overwrite to start afresh"
        )
    allowed = set(HARMLESS)
    if config.training.lr_schedule == "constant":
        allowed.add("training.steps")
    if config.training.judge == "fvd":  # scores of other numbers of videos do not compare
        allowed.discard("training.score_videos")
    if keys := [key for key in differing_keys(config, before) if key not in allowed]:
        raise ConfigError(
            f"{run} was started with another {', '.join(keys)}; use its settings, another "
            "--out, or --overwrite to start afresh"
        )


def _with_batch(
    config: RunConfig,
    run: Path | None,
    find_batch: Callable[[RunConfig], int] | None,
    reporter: Reporter,
) -> RunConfig:
    """Settle `training.batch_size=auto`: that of the run that goes on, else the largest."""
    settings = config.training
    if run is not None:
        kept = run / "config.yaml"
        before = parse_config(RunConfig, read_yaml(kept), where=str(kept)).training
        chosen = {"batch_size": before.batch_size}
        if settings.clips_per_step:  # it may be shared out as it was
            chosen["accumulation"] = before.accumulation
        return config.model_copy(update={"training": settings.model_copy(update=chosen)})
    if find_batch is None:
        raise ConfigError("training.batch_size=auto: nothing here can search for it; give a number")
    largest = find_batch(config)
    if not largest:
        raise ConfigError(
            "training.batch_size=auto: not even one clip fits in memory; use "
            "training.activation_checkpointing=block, training.precision=bf16 or a smaller network"
        )
    batch = largest
    if total := settings.clips_per_step:
        batch = max(size for size in range(1, largest + 1) if total % size == 0)
    settings = settings.with_batch(batch)
    reporter.say(
        f"training.batch_size=auto: {largest} clips fit, so a step is {batch} x "
        f"{settings.accumulation}"
    )
    return config.model_copy(update={"training": settings})


def _changes(before: tuple[str, ...], now: tuple[str, ...]) -> str:
    """Say how two lists of classes differ."""
    new = [f"{name} new" for name in now if name not in before]
    gone = [f"{name} gone" for name in before if name not in now]
    return ", ".join(new + gone) or "in another order"


def _clear(run: Path) -> None:
    """Remove what a run has written, and nothing else that may lie in its folder."""
    for path in (run / "checkpoints", run / "samples", run / "tensorboard"):
        if path.exists():
            remove_folder(path)
    for path in (run / "latest", run / "best", run / "metrics.jsonl", run / STARTS):
        path.unlink(missing_ok=True)


def _videos(config: RunConfig, data: Path, reporter: Reporter = SILENT) -> Labelled:
    """Find the videos of a run and their classes: those of a table, or their folders."""
    found = select(data, config.data)
    if found.missing:
        reporter.say(say_missing(found.missing))
    return found if found.names else folder_labels(found.sources)


def _autoencoder_stage(
    config: RunConfig, data: Path, device: torch.device, reporter: Reporter
) -> AutoencoderStage:
    """Read the videos and build (or take over) the autoencoder."""
    found = _videos(config, data, reporter)
    train_sources, held_out_sources = split(found.sources, config.data.holdout)
    perceptual = _perceptual(config.loss.lpips, device)
    rfvd = None
    if config.training.judge == "rfvd":
        rfvd = FeatureDistance.load(device, config.clip.frames)
    settings, memory = config.training, config.data.memory_gb
    with _seeded(settings.seed):
        network = Autoencoder(config.model())
    if config.init:
        before = load_model(config.init, "cpu", reporter=reporter)
        _take_over(network, before.autoencoder, config.init)
    load = partial(
        Clips.load, clip=config.clip, memory_gb=memory, policy=config.policy, reporter=reporter
    )
    held_out = None
    if held_out_sources:
        chosen = held_out_sources[: settings.validation_clips]
        try:
            held_out = load(chosen)
        except DataError:
            reporter.say("no held-out video is long enough: training goes without validation")
    clips = load(train_sources)
    for name, reason in clips.skipped.items():
        reporter.say(f"left out {name}: {reason}")

    def show(originals: Tensor, reconstructions: Tensor, path: Path) -> None:
        pairs = [
            np.concatenate([a, b], axis=2)
            for a, b in zip(originals.numpy(), reconstructions.numpy(), strict=True)
        ]
        write_video(path.with_suffix(".mp4"), grid(pairs), clips.fps or 8)

    adversary = None
    if config.adversarial is not None:
        with _seeded(settings.seed + 1):
            adversary = Adversary(config.adversarial).to(device)
    return AutoencoderStage(
        config, network.to(device), clips, held_out, show, perceptual, adversary, rfvd
    )


def _perceptual(weight: float, device: torch.device) -> LPIPS | None:
    """Make the perceptual loss with its published weights, if it is asked for."""
    if not weight:
        return None
    loss, asked = LPIPS(), {"needed_by": f"loss.lpips={weight:g}", "without": "loss.lpips=0"}
    loss.load_published(
        weights.load(weights.VGG16, **asked), weights.load(weights.LPIPS_VGG, **asked)
    )
    return loss.to(device)


def _live_latents(
    config: RunConfig, data: Path, autoencoder: str, device: torch.device, reporter: Reporter
) -> tuple[LiveLatents, Model]:
    """Read the videos and the autoencoder that encodes them as training goes."""
    encoder = load_model(autoencoder, str(device), reporter=reporter)
    check_geometry(config, encoder)
    found = _videos(config, data, reporter)
    clips = Clips.load(
        found.sources,
        config.clip,
        memory_gb=config.data.memory_gb,
        policy=config.policy,
        reporter=reporter,
    )
    precision = resolve_precision(config.training.precision, device)
    latents = LiveLatents(
        data,
        clips,
        partial(encode_clips, encoder, precision=precision),
        config.latent,
        fingerprint=encoder.fingerprint,
        labels=found.names,
        class_of=found.of,
        flip=config.data.flip,
    )
    return latents, encoder


def _cached_latents(
    config: RunConfig,
    cache_path: Path | None,
    autoencoder: str | None,
    device: torch.device,
    reporter: Reporter,
) -> tuple[Cache, Model]:
    """Open the cache, in memory if it is no larger than memory_gb, and find its autoencoder.

    Every byte is checked, that of a cache on disk by the first of several processes.
    """
    assert cache_path is not None
    fits = read_manifest(cache_path).bytes <= config.data.memory_gb * 1e9
    cache = Cache.open(cache_path, in_memory=fits)
    check_stride(cache, config.clip)
    encoder = load_maker(cache, autoencoder, str(device))
    if config.data.verify and not fits:
        here().first(partial(_require_hashes, cache, reporter))
    return cache, encoder


def _require_hashes(cache: Cache, reporter: Reporter) -> None:
    """Check every byte of a cache.

    Raises:
        DataError: Naming the first shard that is damaged.
    """
    reporter.start("checking the cache", len(cache.manifest.shards), "shard")
    for shard in cache.manifest.shards:
        require_hash(cache.path / shard.name, shard)
        reporter.advance()
    reporter.done()


def _diffusion_stage(
    config: RunConfig, cache: Cache | LiveLatents, encoder: Model, device: torch.device
) -> DiffusionStage:
    """Build (or take over) the denoiser."""
    check_geometry(config, encoder)
    with _seeded(config.training.seed):
        network = Denoiser(config.model())
    if network.scale is not None:
        network.scale.set(cache.manifest.mean, cache.manifest.std)
    if config.init:  # brings the scale that its weights are made for
        before = load_model(config.init, "cpu")
        if before.denoiser is None:
            raise ModelError(f"init={config.init}: holds no denoiser to start from")
        _refuse_other_classes(before, config)
        # Weights that know no classes can learn some: the embedding alone starts anew.
        anew = () if before.config.classes else ("class_embedding.",)
        _take_over(network, before.denoiser, config.init, anew)

    assert config.diffusion is not None
    steps = min(SHOWN_STEPS, config.diffusion.num_timesteps)
    sampling = Sampling(steps=Steps(steps, steps), eta=0.0)

    def show(model: Model, path: Path) -> None:
        draws = [generator(model.device, config.training.seed, i) for i in range(4)]
        some = [len(config.classes) * i // 4 for i in range(4)]
        labels = torch.tensor(some, device=model.device) if config.classes else None
        clips = list(rollout(model, 2, generators=draws, sampling=sampling, labels=labels))
        frames = to_uint8(torch.cat(clips, dim=2).cpu()).numpy()
        write_video(path.with_suffix(".mp4"), grid(list(frames)), model.fps or 8)

    few = FewVideos(config, cache, device) if config.training.score_every else None
    return DiffusionStage(config, network.to(device), encoder.autoencoder, cache, show, few)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let a seed alone fix the initial weights of networks built inside."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _refuse_other_classes(before: Model, config: RunConfig) -> None:
    """Check that weights to start from know the classes of the run, in the same order.

    Raises:
        ModelError: If they know others.
    """
    if before.config.classes and before.config.classes != config.classes:
        raise ModelError(
            f"init={config.init}: knows the classes {', '.join(before.config.classes)}, this run "
            f"{', '.join(config.classes) or 'none'}; to go on with the same classes in another "
            "cache, give them by denoiser.classes in the order of the former"
        )


def _take_over(
    network: nn.Module, source: nn.Module, name: str, anew: tuple[str, ...] = ()
) -> None:
    """Start from given weights; those whose names start as in `anew` stay as they are.

    Raises:
        ModelError: If they are of another shape than the configuration's network.
    """
    own = {key: value for key, value in network.state_dict().items() if key.startswith(anew)}
    weights = own | source.state_dict()
    refuse_misfit(network, weights, where=f"init={name}")
    network.load_state_dict(weights)
