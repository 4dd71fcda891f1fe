"""`pvdm bench rivals`: other people's systems beside ours, on the same machine."""

from typing import Annotated

import typer

from pvdm_cli.cli import render
from pvdm_cli.cli.bench_options import (
    BaselineOpt,
    CsvOpt,
    FailAboveOpt,
    FileOpt,
    MarkdownOpt,
    MemoryOpt,
    ModelsArg,
    RepeatsOpt,
    SystemsOpt,
)
from pvdm_cli.cli.bench_output import Output, read_memory
from pvdm_cli.cli.options import DebugOpt, DeviceOpt, JsonOpt, QuietOpt, SeedOpt
from pvdm_cli.errors import PvdmError


def rivals(
    models: ModelsArg = None,
    systems: SystemsOpt = "all",
    steps: Annotated[
        int, typer.Option(min=1, help="Steps of a clip of ours; those of the others are fixed.")
    ] = 100,
    precision: Annotated[str, typer.Option(help="fp32, bf16 or fp16 of all of them.")] = "fp32",
    memory_limit: MemoryOpt = None,
    repeats: RepeatsOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    as_json: JsonOpt = False,
    csv: CsvOpt = False,
    markdown: MarkdownOpt = False,
    out: FileOpt = None,
    baseline: BaselineOpt = None,
    fail_above: FailAboveOpt = None,
    quiet: QuietOpt = False,
    debug: DebugOpt = False,
) -> None:
    """Measure one clip of ours and of other systems on this machine, one after the other.

    A few steps are timed and multiplied out; what is too large is counted. The systems come with
    `pip install 'pvdm[rivals]'`. Without a name it measures PVDM-S beside them.

    Examples:
        pvdm bench rivals
        pvdm bench rivals sky/diffusion-s sky/diffusion-l --systems vdm,latte-s,latte-xl
        pvdm bench rivals --precision bf16 --device cuda --markdown
    """
    output = Output(as_json, csv, markdown, out, None, baseline, fail_above)
    from pvdm_cli import api  # torch loads here, not for --help
    from pvdm_cli.benchmark.rivals import OURS
    from pvdm_cli.benchmark.run import parse_precisions

    if len(parse_precisions(precision)) > 1:
        raise PvdmError(f"--precision {precision!r}: give one, so that the rows can be compared")
    limit = read_memory(memory_limit)
    output.measure(
        lambda: api.bench_rivals(
            models or OURS,
            systems=systems,
            steps=steps,
            precision=precision,
            memory_limit=limit,
            repeats=repeats,
            seed=seed,
            device=device,
            reporter=render.reporter(quiet),
        )
    )
