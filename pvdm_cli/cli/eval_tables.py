"""What `pvdm eval` shows: scores, what they rest on, and the published rows above them."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import typer

from pvdm_cli.cli import render

if TYPE_CHECKING:
    from pvdm_cli.comparison import Comparison
    from pvdm_cli.evaluation.fvd import FvdResult
    from pvdm_cli.evaluation.inception import InceptionResult
    from pvdm_cli.evaluation.reconstruction import ReconstructionResult

NAMED = 5  # videos left out that are named; --json names all
LONGEST = 24  # characters of a name in a table
NONE = "-"
MARK = "*"  # of a score that may not be compared with the rows above it


def show_fvd(result: "FvdResult") -> None:
    """Print a score and what it rests on."""
    used, sides = result.protocol, (("real", result.real), ("fake", result.fake))
    rows = [("FVD", f"{result.fvd:.2f}")]
    for name, side in sides:
        resized = f", {side.resized} resized" if side.resized else ""
        kept = ", features kept from before" if side.kept else ""
        about = f"{side.clips:,} clips of {side.videos:,} videos{resized}{kept}"
        rows.append((name, f"{about}: {side.path}"))
    stride = f" at stride {used['frame_stride']}" if used["frame_stride"] > 1 else ""
    start = f"; fake ones from frame {used['fake_start']}" if used["fake_start"] else ""
    rows += [
        ("clips", f"{used['frames']} frames{stride}, {used['height']} x {used['width']}{start}"),
        ("protocol", f"{used['name']}: {used['resize']}; covariance {used['covariance']}"),
        ("seed", f"{used['seed']}"),
        ("detector", f"{used['detector']}, sha256 {used['detector_sha256'][:16]}"),
    ]
    render.print_columns([rows[0], *_spread(result), *rows[1:]])
    _show_differences(result.differs)
    for name, side in sides:
        _show_skipped(side.skipped, f"{name} videos")


def _spread(result: "FvdResult") -> list[tuple[str, str]]:
    """What was asked for beside the score."""
    rows = []
    for name, scores in (("repeats", result.repeats), ("bootstrap", result.bootstrap)):
        if len(scores) > 1:
            about = f"{fmean(scores):.2f} ± {stdev(scores):.2f} over {len(scores)}"
            rows.append((name, about))
    rows += [(f"FVD of {count:,}", f"{score:.2f}") for count, score in result.counts.items()]
    if result.extrapolated is not None:
        rows.append(("of infinitely many", f"{result.extrapolated:.2f} (line through 1/n)"))
    names = {"real_halves": "real halves", "still": "stills", "shuffled": "shuffled frames"}
    for name, score in result.yardsticks.items():
        apart = "each other" if name == "real_halves" else "the real clips"
        rows.append((names[name], NONE if score is None else f"{score:.2f} from {apart}"))
    return rows


def show_comparison(result: "Comparison", *, markdown: bool) -> None:
    """Print table 1 of the paper with a row of ours."""
    names = list(result.columns)
    rows = [
        [method, *(_figure(figures.get(name)) for name in names)]
        for method, figures in result.published
    ]
    ours = [f"{score.fvd:.2f}{MARK if score.differs else ''}" for score in result.columns.values()]
    rows.append([f"ours: {_cut(result.model)}, {result.steps} steps", *ours])
    _print_table(["method", *(_title(name) for name in names)], rows, markdown=markdown)
    _show_source(len(result.published), "table 1", result.dataset)
    reasons = {reason for score in result.columns.values() for reason in score.differs}
    if reasons:
        typer.echo(f"{MARK} not comparable with published figures:")
    for reason in sorted(reasons):
        typer.echo(_wrapped(f"  {reason}"))
    for score in result.columns.values():
        _show_skipped(score.real.skipped, "real videos")
        _show_skipped(score.fake.skipped, "fake videos")


def _show_source(rows: int, table: str, dataset: str | None) -> None:
    """Say where the published rows are from, or why there are none."""
    from pvdm_cli.evaluation.published import SOURCE

    if rows:
        typer.echo(f"published: {SOURCE}, {table}" + (f", {dataset}" if dataset else ""))
    else:
        typer.echo("no published rows: --dataset ucf101 or sky shows those of the paper")


def _title(name: str) -> str:
    """Head of a column."""
    span, _, every = name.replace("f", "").partition("_subsample")
    return f"FVD {span}" + (f" / {every}" if every else "")


def _cut(name: str) -> str:
    """Cut a long name from the left, so that the table fits the terminal."""
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def _figure(value: float | None) -> str:
    """Show a published figure with the digits of the paper."""
    if value is None:
        return NONE
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


def show_inception(result: "InceptionResult", *, markdown: bool) -> None:
    """Print table 2 of the paper with a row of ours."""
    from pvdm_cli.evaluation.published import TABLE_2

    rows = [
        [row.method + (" (train + test)" if row.on_all else ""), f"{row.mean:.2f} ± {row.std:.2f}"]
        for row in TABLE_2
    ]
    used = result.protocol
    rows.append(
        [
            f"ours: {_cut(str(result.fake))}",
            f"{result.mean:.2f} ± {result.std:.2f}{MARK * bool(result.differs)}",
        ]
    )
    _print_table(["method", "inception score, UCF-101"], rows, markdown=markdown)
    _show_source(len(rows), "table 2", None)
    typer.echo(
        f"ours: {result.clips:,} clips of {used['frames']} frames, convention "
        f"{used['convention']}, {used['splits']} splits"
    )
    typer.echo(f"detector: {used['detector']}, sha256 {used['detector_sha256'][:16]}")
    _show_differences(result.differs)
    _show_skipped(result.skipped, "videos")


def _print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, markdown: bool) -> None:
    """Print a table for the terminal, or as Markdown."""
    if not markdown:
        render.print_table(columns, rows, right=columns[1:])
        return
    for cells in (columns, ["---"] + ["---:"] * (len(columns) - 1), *rows):
        typer.echo("| " + " | ".join(cells) + " |")
    typer.echo("")


def show_reconstruction(result: "ReconstructionResult", worst: int) -> None:
    """Print means over clips."""
    rows = [
        ("PSNR", f"{result.psnr:.2f} dB"),
        ("of a still picture", f"{result.psnr_mean_frame:.2f} dB"),
        ("SSIM", "-" if result.ssim is None else f"{result.ssim:.4f}"),
        ("LPIPS", "-" if result.lpips is None else f"{result.lpips:.4f}"),
        ("rFVD", "-" if result.rfvd is None else f"{result.rfvd:.2f}"),
        ("clips", f"{len(result.clips):,}: first window of each video, {_split(result)}"),
        ("model", result.model),
        ("data", str(result.data)),
    ]
    used = result.protocol
    if "detector" in used:
        rows.append(("detector", f"{used['detector']}, sha256 {used['detector_sha256'][:16]}"))
    render.print_columns(rows)
    for clip in result.worst(worst):
        typer.echo(f"worst: {clip.psnr:.2f} dB, still {clip.psnr_mean_frame:.2f} dB: {clip.video}")
    if "missing" in used:
        typer.echo(_wrapped(f"no rFVD: {used['missing']}"))
    _show_differences(result.differs)
    _show_skipped(result.skipped, "videos")


def _split(result: "ReconstructionResult") -> str:
    """Name the split, with the share that decides it."""
    return result.split if result.split == "all" else f"{result.split} ({result.holdout:g})"


def _show_differences(differs: Iterable[str]) -> None:
    """Say why a score may not be compared with published figures."""
    for number, reason in enumerate(differs):
        lead = "not comparable with published figures: " if number == 0 else "and: "
        typer.echo(_wrapped(lead + reason))


def _show_skipped(skipped: Mapping[str, str], what: str) -> None:
    """Name some videos that were left out."""
    if skipped:
        typer.echo(f"left out of the {what}: {len(skipped)}", err=True)
    for name, reason in list(skipped.items())[:NAMED]:
        typer.echo(f"  {name}: {reason}", err=True)
    if len(skipped) > NAMED:
        typer.echo(f"  and {len(skipped) - NAMED} more; --json names them", err=True)


def _wrapped(line: str) -> str:
    """Break a long line for the terminal."""
    return textwrap.fill(line, width=79, subsequent_indent="  ")
