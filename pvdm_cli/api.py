"""Everything the commands do, as functions: one per command, each returns its result.

>>> from pvdm_cli import api
>>> model = api.load_model("demo")
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pvdm_cli.acceleration import accelerate
from pvdm_cli.benchmark.coding import bench_coding
from pvdm_cli.benchmark.compare import compare_results as bench_compare
from pvdm_cli.benchmark.everything import bench_all
from pvdm_cli.benchmark.figure import Bench
from pvdm_cli.benchmark.io import bench_io
from pvdm_cli.benchmark.rivals import bench_rivals
from pvdm_cli.benchmark.sample import bench_sample
from pvdm_cli.benchmark.train import bench_train, fitting_batch
from pvdm_cli.comparison import Comparison, compare, draw_for_inception
from pvdm_cli.config import AS_STORED, Policy, Selection, load_config
from pvdm_cli.conversion import Conversion, export_published
from pvdm_cli.conversion import import_published as convert
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_appender import SHARD_BYTES, SHARD_SECONDS
from pvdm_cli.data.cache_writer import discard_cache
from pvdm_cli.data.selection import ALL, select
from pvdm_cli.decoding import DecodeResult, decode_cache, load_maker
from pvdm_cli.demo import DemoResult
from pvdm_cli.demo import estimate_hours as demo_hours
from pvdm_cli.demo import run_demo as demo
from pvdm_cli.describe import Description, describe
from pvdm_cli.encoding import EncodeResult, encode_videos, identity_of
from pvdm_cli.environment import environment
from pvdm_cli.errors import PvdmError
from pvdm_cli.evaluation.fvd import FvdResult, measure_fvd
from pvdm_cli.evaluation.inception import PER_RUN, SPLITS, InceptionResult, measure_inception
from pvdm_cli.evaluation.protocol import FvdRequest
from pvdm_cli.evaluation.reconstruction import (
    ReconstructionResult,
    Split,
    measure_reconstruction,
    run_config,
)
from pvdm_cli.generation.drift import CLIPS as DRIFT_CLIPS
from pvdm_cli.generation.request import QUALITY, STRENGTH, SampleRequest, SampleResult
from pvdm_cli.generation.run import generate
from pvdm_cli.inspection import PreviewResult, Verification
from pvdm_cli.inspection import preview_cache as cache_preview
from pvdm_cli.inspection import verify_cache as cache_verify
from pvdm_cli.model import Checkpoint, Model, load_model
from pvdm_cli.planning import Plan, plan_run
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.publishing import Publication
from pvdm_cli.publishing import publish as push
from pvdm_cli.ranks import here, restarted
from pvdm_cli.report.page import Report
from pvdm_cli.report.page import write_report as report
from pvdm_cli.runs import run_training
from pvdm_cli.runtime import resolve_device
from pvdm_cli.sampling import Sampler, Sampling, Spacing, Steps, Variance, parse_interval
from pvdm_cli.survey import Survey
from pvdm_cli.survey import survey as survey_videos
from pvdm_cli.training.loop import TrainResult
from pvdm_cli.video.synthetic import write_skies

__all__ = [
    "Bench",
    "Comparison",
    "Conversion",
    "DecodeResult",
    "DemoResult",
    "Description",
    "EncodeResult",
    "FvdResult",
    "InceptionResult",
    "Model",
    "Plan",
    "PreviewResult",
    "Publication",
    "ReconstructionResult",
    "Report",
    "SampleResult",
    "Survey",
    "TrainResult",
    "Verification",
    "accelerate",
    "bench_all",
    "bench_coding",
    "bench_compare",
    "bench_io",
    "bench_rivals",
    "bench_sample",
    "bench_train",
    "cache_preview",
    "cache_verify",
    "convert",
    "decode",
    "demo",
    "demo_hours",
    "describe",
    "draw_skies",
    "encode",
    "environment",
    "eval_fvd",
    "eval_inception",
    "eval_inception_model",
    "eval_model",
    "eval_reconstruction",
    "export_published",
    "load_model",
    "plan",
    "push",
    "report",
    "sample",
    "survey",
    "train",
]


def encode(
    videos: Path,
    out: Path,
    *,
    autoencoder: str = "demo",
    labels: str | Path | None = None,
    selection: Selection = ALL,
    holdout: float | None = None,
    window_stride: int | None = None,
    frame_stride: int | None = None,
    policy: Policy = AS_STORED,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: str = "fp32",
    compiled: bool = False,
    strict: bool = False,
    keep_partial: bool = False,
    by_hash: bool = False,
    shard_bytes: int = SHARD_BYTES,
    shard_seconds: float = SHARD_SECONDS,
    overwrite: bool = False,
    device: str = "auto",
    command: Sequence[str] = (),
    reporter: Reporter = SILENT,
) -> EncodeResult:
    """Encode a data set into a latent cache; see `encoding.encode_videos`.

    Which videos are taken, and their classes: see `data.selection.select`. The words of `command`
    are kept in the manifest, for whoever has to repair the cache.
    """
    ranks = here()
    choose = partial(select, holdout=holdout, labels=labels, strict=strict, flip=policy.flip)
    found = ranks.first(partial(choose, videos, selection))
    model = load_model(autoencoder, device, reporter=reporter).autoencoder_alone()
    accelerate(model, precision, compiled=compiled)
    if overwrite and ranks.main and not restarted():  # else it would go with each that dies
        discard_cache(out)
    return encode_videos(
        model,
        found.sources,
        out,
        window_stride=window_stride,
        frame_stride=frame_stride,
        policy=policy,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        compiled=compiled,
        strict=strict,
        keep_partial=keep_partial,
        by_hash=by_hash,
        shard_bytes=shard_bytes,
        shard_seconds=shard_seconds,
        reporter=reporter,
        hints=(autoencoder, str(videos)),
        command=command,
        origin={"selection": selection, "holdout": holdout},
        labelled=found,
    )


def survey(
    videos: Path,
    *,
    autoencoder: str = "demo",
    labels: str | Path | None = None,
    selection: Selection = ALL,
    holdout: float | None = None,
    window_stride: int | None = None,
    frame_stride: int | None = None,
    policy: Policy = AS_STORED,
    full: bool = False,
    timed: bool = True,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> Survey:
    """Say what a data set holds and what `encode` would make of it; see `survey.survey`."""
    found = select(videos, selection, holdout=holdout, labels=labels, flip=policy.flip)
    model = load_model(autoencoder, device, reporter=reporter).autoencoder_alone()
    accelerate(model)
    identity = identity_of(model, window_stride, frame_stride=frame_stride, policy=policy)
    return survey_videos(videos, found, model, identity, full=full, timed=timed, reporter=reporter)


def decode(
    cache: Path,
    out: Path,
    *,
    autoencoder: str | None = None,
    format: str = "mp4",
    num: int | None = None,
    fps: float | None = None,
    batch_size: int = 8,
    precision: str = "fp32",
    overwrite: bool = False,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> DecodeResult:
    """Decode a latent cache back into videos; see `decoding.decode_cache`."""
    opened = Cache.open(cache)
    return decode_cache(
        accelerate(load_maker(opened, autoencoder, device).autoencoder_alone(), precision),
        opened,
        out,
        format=format,
        num=num,
        fps=fps,
        batch_size=batch_size,
        precision=precision,
        overwrite=overwrite,
        reporter=reporter,
    )


def sample(
    model: str | Path = "demo",
    out: str | Path = "samples",
    *,
    frames: int | None = None,
    seconds: float | None = None,
    num: int = 1,
    steps: str = "100/20",
    sampler: Sampler = "ddim",
    spacing: Spacing = "published",
    eta: float | None = None,
    variance: Variance | None = None,
    guidance: float = 0.0,
    class_name: str | int | None = None,
    class_guidance: float = 0.0,
    guidance_interval: str = "0,1",
    prefix_noise: float = 0.0,
    clamp: bool = True,
    seed: int = 0,
    seeds: Sequence[int] = (),
    between: tuple[int, int] | None = None,
    prefix: str | Path | None = None,
    keep_prefix: bool = False,
    init: str | Path | None = None,
    strength: float | None = None,
    batch_size: int | None = None,
    format: str = "mp4",
    quality: int = QUALITY,
    fps: float | None = None,
    grid: str | None = None,
    columns: int | None = None,
    sheet: int | None = None,
    drift: bool = False,
    profile: bool = False,
    checkpoint: Checkpoint | None = None,
    device: str = "auto",
    precision: str = "fp32",
    compiled: bool = False,
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> SampleResult:
    """Draw long videos; the same call again makes what is missing; see `generation.run.generate`.

    What the options are is said in `generation.request.SampleRequest`, `sampling.Sampling` and
    `acceleration.accelerate`;
    frames are 128 where neither they nor seconds are given, with drift as many as 64 clips have.
    """
    if frames is not None and seconds is not None:
        raise PvdmError(f"--frames {frames} and --seconds {seconds:g}: give one of them")
    request = SampleRequest(
        frames=128 if frames is None else frames,
        seconds=seconds,
        clips=DRIFT_CLIPS if drift and frames is None and seconds is None else None,
        num=num,
        sampling=Sampling(
            steps=Steps.parse(steps),
            sampler=sampler,
            spacing=spacing,
            eta=eta,
            variance=variance,
            guidance=guidance,
            class_guidance=class_guidance,
            guidance_interval=parse_interval(guidance_interval),
            prefix_noise=prefix_noise,
            clamp=clamp,
            strength=(STRENGTH if init is not None else 1.0) if strength is None else strength,
        ),
        class_name=None if class_name is None else str(class_name),
        seed=seed,
        seeds=tuple(seeds),
        between=between,
        prefix=None if prefix is None else str(prefix),
        keep_prefix=keep_prefix,
        init=None if init is None else str(init),
        batch_size=batch_size,
        format=format,
        quality=quality,
        fps=fps,
        grid=grid,
        columns=columns,
        sheet=sheet,
        drift=drift,
        profile=profile,
        overwrite=overwrite,
    )
    request.check()  # before a large model is loaded
    origin = [str(model), *([] if checkpoint is None else ["--checkpoint", str(checkpoint)])]
    found = load_model(model, device, checkpoint, reporter=reporter)
    accelerate(found, precision, compiled=compiled)
    return generate(found, Path(out), request, origin=origin, reporter=reporter)


def train(
    preset: str,
    out: Path,
    *,
    data: Path | None = None,
    cache: Path | None = None,
    autoencoder: str | None = None,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    device: str = "auto",
    reporter: Reporter = SILENT,
    stop: Callable[[], bool] = lambda: False,
) -> TrainResult:
    """Train the stage a preset describes; see `runs.run_training`."""
    return run_training(
        load_config(preset, overrides),
        out,
        data=data,
        cache=cache,
        autoencoder=autoencoder,
        device=device,
        overwrite=overwrite,
        provenance={"preset": preset, "overrides": list(overrides)},
        reporter=reporter,
        stop=stop,
        find_batch=lambda config: fitting_batch(config, device, reporter),
    )


def eval_fvd(
    real: Path, fake: Path, *, device: str = "auto", reporter: Reporter = SILENT, **scoring: Any
) -> FvdResult:
    """Measure the Frechet video distance of two sets of videos; see `evaluation.fvd`.

    Args:
        real: The real videos.
        fake: The generated ones.
        device: Where the detector runs.
        reporter: Told of progress.
        scoring: How, by the names in `evaluation.protocol.FvdRequest`: frames=16, num=2048, seed=0, ...
    """
    request = FvdRequest(**scoring)
    return measure_fvd(Path(real), Path(fake), request, resolve_device(device), reporter)


def eval_model(
    real: Path,
    model: str | Path,
    out: Path,
    *,
    steps: str = "400/400",
    class_name: str | int | None = None,
    class_guidance: float = 0.0,
    length: int = 128,
    num: int = 2048,
    batch_size: int = 4,
    checkpoint: Checkpoint | None = None,
    dataset: Literal["ucf101", "sky"] | None = None,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter = SILENT,
    **scoring: Any,
) -> Comparison:
    """Draw videos from a model and set its scores below the paper's; see `comparison.compare`.

    Args:
        real: The real videos.
        model: What to draw from.
        out: Where drawn videos and `metric-*.jsonl` go; what is there already is not drawn again.
        steps: Of sampling.
        class_name: Of all videos; by default each class in turn.
        class_guidance: Weight of guidance on the class.
        length: Frames of a drawn video.
        num: Videos drawn, and most clips of either side.
        batch_size: Videos drawn at once.
        checkpoint: Of a run.
        dataset: Whose published rows to show.
        seed: Of drawing and of scoring.
        device: Where all of it runs.
        reporter: Told of progress.
        scoring: What else `evaluation.protocol.FvdRequest` takes.
    """
    drawing = _drawing(steps, class_name, class_guidance, length, num, batch_size, seed)
    request = FvdRequest(num=num, seed=seed, **scoring)
    request.check()
    origin = [str(model), *([] if checkpoint is None else ["--checkpoint", str(checkpoint)])]
    found = load_model(model, device, checkpoint, reporter=reporter)
    return compare(
        accelerate(found),
        origin,
        Path(real),
        Path(out),
        drawing,
        request,
        dataset=dataset,
        reporter=reporter,
    )


def _drawing(
    steps: str,
    class_name: str | int | None,
    class_guidance: float,
    length: int,
    num: int,
    batch_size: int,
    seed: int,
) -> SampleRequest:
    """What to draw for a score."""
    drawing = SampleRequest(
        frames=length,
        num=num,
        sampling=Sampling(steps=Steps.parse(steps), class_guidance=class_guidance),
        class_name=None if class_name is None else str(class_name),
        seed=seed,
        batch_size=batch_size,
        format="npz",
    )
    drawing.check()
    return drawing


def eval_inception_model(
    model: str | Path,
    out: Path,
    *,
    convention: Literal["tgan2", "stylegan-v"] = "stylegan-v",
    steps: str = "400/400",
    class_name: str | int | None = None,
    class_guidance: float = 0.0,
    length: int = 128,
    num: int | None = None,
    batch_size: int = 4,
    checkpoint: Checkpoint | None = None,
    seed: int = 0,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> InceptionResult:
    """Draw videos from a model and take their inception score; arguments as of `eval_model`.

    `num` is by default that of the convention: 2,048 videos, or ten times as many.
    """
    runs = SPLITS if convention == "tgan2" else 1
    drawing = _drawing(
        steps, class_name, class_guidance, length, num or runs * PER_RUN, batch_size, seed
    )
    origin = [str(model), *([] if checkpoint is None else ["--checkpoint", str(checkpoint)])]
    found = load_model(model, device, checkpoint, reporter=reporter)
    return draw_for_inception(
        accelerate(found), origin, Path(out), drawing, convention, reporter=reporter
    )


def eval_inception(
    fake: Path,
    *,
    convention: Literal["tgan2", "stylegan-v"] = "stylegan-v",
    num: int | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> InceptionResult:
    """Measure the inception score of generated videos; see `evaluation.inception`."""
    return measure_inception(
        Path(fake), resolve_device(device), convention=convention, num=num, reporter=reporter
    )


def eval_reconstruction(
    model: str | Path,
    data: Path,
    *,
    split: Split = "held-out",
    holdout: float | None = None,
    num: int | None = None,
    checkpoint: Checkpoint | None = None,
    device: str = "auto",
    reporter: Reporter = SILENT,
) -> ReconstructionResult:
    """Measure how well an autoencoder gives clips back; see `evaluation.reconstruction`."""
    found = load_model(model, device, checkpoint, reporter=reporter)
    run = run_config(Path(model))
    return measure_reconstruction(
        accelerate(found.autoencoder_alone()),
        str(model),
        Path(data),
        split_name=split,
        holdout=run.data.holdout if holdout is None else holdout,
        num=num,
        selection=run.data,
        policy=run.policy,
        reporter=reporter,
    )


def draw_skies(
    out: Path,
    *,
    num: int = 100,
    frames: int = 64,
    size: int = 64,
    seed: int = 0,
    reporter: Reporter = SILENT,
) -> list[Path]:
    """Write procedural sky time-lapses as mp4; see `video.synthetic`."""
    return write_skies(
        out, num, frames=frames, seed=seed, height=size, width=size, reporter=reporter
    )


def plan(preset: str, overrides: Sequence[str] = ()) -> Plan:
    """Say what a training run would be: resolved configuration, parameters, memory, disk."""
    return plan_run(load_config(preset, overrides))
