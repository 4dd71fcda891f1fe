"""Pictures of a result: seconds against frames, and memory against the batch."""

import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pvdm_cli import files
from pvdm_cli.benchmark.figure import Figure
from pvdm_cli.errors import PvdmError
from pvdm_cli.report.chart import HEIGHT, WIDTH, Curve, Look, draw
from pvdm_cli.report.markup import Markup, tag
from pvdm_cli.report.page import STYLE
from pvdm_cli.report.series import Point

GAP, LINE = 24, 17
GB = 2**30

Lines = dict[str, list[Point]]  # by label


def lines_of(figures: Sequence[Figure]) -> dict[str, Lines]:
    """Return the lines of each picture by its title; pictures without points are left out."""
    time: defaultdict[str, dict[int, float]] = defaultdict(dict)
    memory: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for figure in figures:
        chosen = {k: v for k, v in figure.settings.items() if k != "frames"}
        label = " ".join([figure.bench, figure.subject, *map(str, chosen.values()), figure.dtype])
        frames = figure.settings.get("frames", 0)
        if figure.bench == "sample" and figure.timing:
            time[f"{label}, batch {figure.batch}"][frames] = figure.timing.median
        if figure.bench == "io":
            continue
        label = f"{label}, {frames} frames"
        peaks = [(figure.batch, figure.peak)]
        peaks += [
            (each.batch, each.peak) for each in (figure.search.tries if figure.search else ())
        ]
        for batch, peak in peaks:
            if peak is not None and peak.bytes is not None:
                memory[label][batch] = peak.bytes / GB
    drawn = {"seconds against frames": time, "GB of memory against the batch": memory}
    return {
        title: {label: [Point(*at) for at in sorted(line.items())] for label, line in lines.items()}
        for title, lines in drawn.items()
        if lines
    }


def plot(figures: Sequence[Figure], path: Path) -> None:
    """Draw a result into an SVG or PNG file.

    Raises:
        PvdmError: If the suffix is another, there is nothing to draw, or a PNG cannot be drawn.
    """
    check_plot(path)
    pictures = lines_of(figures)
    if not pictures:
        raise PvdmError(f"--plot {path}: no figure of sampling, training, encoding or decoding")
    with files.atomic_file(path) as temporary:
        if path.suffix == ".svg":
            temporary.write_text(_svg(pictures), encoding="utf-8")
        else:
            _png(pictures, temporary)


def check_plot(path: Path) -> None:
    """Refuse what cannot be drawn, before anything is measured.

    Raises:
        PvdmError: Saying what can.
    """
    if path.suffix not in (".svg", ".png"):
        raise PvdmError(f"--plot {path}: expected a name that ends in .svg or .png")
    if path.suffix == ".png" and importlib.util.find_spec("matplotlib") is None:
        raise PvdmError(
            f"--plot {path}: PNG needs matplotlib (`pip install matplotlib`); .svg does not"
        )


def _svg(pictures: dict[str, Lines]) -> str:
    """Put the charts side by side, each above the names of its lines."""
    most = max(len(lines) for lines in pictures.values())
    parts = [_panel(title, lines, k) for k, (title, lines) in enumerate(pictures.items())]
    width = len(parts) * (WIDTH + GAP) + GAP
    height = HEIGHT + (most + 2) * LINE + GAP
    style = STYLE.read_text(encoding="utf-8")
    whole = tag(
        "svg",
        tag("style", Markup(style + "svg text.name{text-anchor:start}")),
        tag("rect", width=width, height=height, fill="var(--paper)"),
        parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        font_family="system-ui, sans-serif",
    )
    return f"{whole}\n"


def _panel(title: str, lines: Lines, number: int) -> Markup:
    """Draw one chart: title, curves, names."""
    curves = [Curve(label, line, k) for k, (label, line) in enumerate(lines.items())]
    along = "frames" if "frames" in title else "batch"
    look = Look(title, floor=0.0, dots=True, smooth=False, along=along)
    chart = draw(curves, look, f"chart{number}")
    names = [
        tag(
            "g",
            tag("path", d=f"M0 {LINE * k}h22"),
            tag("text", curve.label, x=28, y=LINE * k + 4, class_="name"),
            class_=f"curve {curve.tone}",
        )
        for k, curve in enumerate(curves)
    ]
    return tag(
        "g",
        tag("text", title, x=0, y=LINE, class_="name"),
        tag("svg", chart, y=LINE, width=WIDTH, height=HEIGHT),
        tag("g", names, transform=f"translate(0 {HEIGHT + 2 * LINE + 6})"),
        transform=f"translate({GAP + number * (WIDTH + GAP)} 0)",
    )


def _png(pictures: dict[str, Lines], path: Path) -> None:
    """Draw the same lines with matplotlib."""
    sheet = importlib.import_module("matplotlib.figure").Figure(
        figsize=(6 * len(pictures), 4.5), layout="constrained"
    )
    for axes, (title, lines) in zip(
        sheet.subplots(1, len(pictures), squeeze=False)[0], pictures.items(), strict=True
    ):
        for label, line in lines.items():
            axes.plot([p.step for p in line], [p.value for p in line], marker="o", label=label)
        axes.set(title=title, xlabel="frames" if "frames" in title else "batch", ylim=(0, None))
        axes.legend(fontsize="x-small")
    sheet.savefig(path, format="png")
