"""`pvdm bench encode | decode | io`: what happens to videos around training and sampling."""

from typing import Any

from pvdm_cli.cli import render
from pvdm_cli.cli.bench_options import (
    BaselineOpt,
    BatchesOpt,
    CsvOpt,
    FailAboveOpt,
    FileOpt,
    MarkdownOpt,
    MaxBatchOpt,
    MemoryOpt,
    ModelsArg,
    PlotOpt,
    PrecisionsOpt,
    RepeatsOpt,
)
from pvdm_cli.cli.bench_output import Output, read_memory
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, QuietOpt, SeedOpt


def encode(
    models: ModelsArg = None,
    precision: PrecisionsOpt = "fp32",
    batch_size: BatchesOpt = "1,4",
    memory_limit: MemoryOpt = None,
    max_batch: MaxBatchOpt = None,
    repeats: RepeatsOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    csv: CsvOpt = False,
    markdown: MarkdownOpt = False,
    out: FileOpt = None,
    plot: PlotOpt = None,
    baseline: BaselineOpt = None,
    fail_above: FailAboveOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure the time and peak memory of turning clips into latents, beside the hardware's floor.

    The autoencoder alone, with random weights: files are not read.

    Examples:
        pvdm bench encode
        pvdm bench encode sky/diffusion-s --batch-size 1 --repeats 1
        pvdm bench encode sky/autoencoder --precision fp32,bf16 --batch-size 1,8,max --device cuda
    """
    output = Output(as_json, csv, markdown, out, plot, baseline, fail_above)
    _measure_coding(
        "encode", output, models, precision, batch_size, memory_limit,
        max_batch=max_batch, repeats=repeats, seed=seed, device=device,
        reporter=render.reporter(quiet),
    )  # fmt: skip


def decode(
    models: ModelsArg = None,
    precision: PrecisionsOpt = "fp32",
    batch_size: BatchesOpt = "1,4",
    memory_limit: MemoryOpt = None,
    max_batch: MaxBatchOpt = None,
    repeats: RepeatsOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    csv: CsvOpt = False,
    markdown: MarkdownOpt = False,
    out: FileOpt = None,
    plot: PlotOpt = None,
    baseline: BaselineOpt = None,
    fail_above: FailAboveOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure the time and peak memory of turning latents into clips, beside the hardware's floor.

    The autoencoder alone, with random weights: files are not written.

    Examples:
        pvdm bench decode
        pvdm bench decode sky/diffusion-s --batch-size 1 --repeats 1
        pvdm bench decode sky/autoencoder --precision fp32,bf16 --batch-size 1,8,max --device cuda
    """
    output = Output(as_json, csv, markdown, out, plot, baseline, fail_above)
    _measure_coding(
        "decode", output, models, precision, batch_size, memory_limit,
        max_batch=max_batch, repeats=repeats, seed=seed, device=device,
        reporter=render.reporter(quiet),
    )  # fmt: skip


def _measure_coding(
    way: Any,
    output: Output,
    models: list[str] | None,
    precision: str,
    batch_size: str,
    memory_limit: str | None,
    **settings: Any,
) -> None:
    """Measure the autoencoder one way."""
    from pvdm_cli import api  # torch loads here, not for --help
    from pvdm_cli.benchmark.run import parse_batches, parse_precisions

    settings |= {
        "precisions": parse_precisions(precision),
        "batches": parse_batches(batch_size),
        "memory_limit": read_memory(memory_limit),
    }
    output.measure(lambda: api.bench_coding(way, models or ["demo"], **settings))


def io(
    models: ModelsArg = None,
    repeats: RepeatsOpt = None,
    seed: SeedOpt = 0,
    as_json: JsonOpt = False,
    csv: CsvOpt = False,
    markdown: MarkdownOpt = False,
    out: FileOpt = None,
    plot: PlotOpt = None,
    baseline: BaselineOpt = None,
    fail_above: FailAboveOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure how fast clips come out of video files, go into a latent cache and come out of it.

    On a video drawn for it and on random latents, of the sizes that the models have.

    Examples:
        pvdm bench io
        pvdm bench io demo sky/diffusion-s --json
    """
    output = Output(as_json, csv, markdown, out, plot, baseline, fail_above)
    from pvdm_cli import api  # torch loads here, not for --help

    output.measure(
        lambda: api.bench_io(
            models or ["demo"], repeats=repeats, seed=seed, reporter=render.reporter(quiet)
        )
    )
