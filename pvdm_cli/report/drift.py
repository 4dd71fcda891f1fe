"""How clips of long videos change: what `pvdm sample --drift` writes, drawn as a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pvdm_cli.report.chart import HEIGHT, WIDTH, Curve, Look, draw
from pvdm_cli.report.markup import Markup, tag
from pvdm_cli.report.series import Point, Series

STYLE = Path(__file__).with_name("style.css")
ROWS = "clips"  # the list of rows in the JSON
ALONG = "clip"  # what a row is about
GAP, CAPTION, COLUMNS = 16, 20, 2


class Panel(NamedTuple):
    """One chart: a title, and the keys of a row that it shows."""

    title: str
    curves: dict[str, str]  # name in the legend by key


PANELS = (
    Panel("latents: mean", {"latent_mean": "mean"}),
    Panel("latents: standard deviation", {"latent_std": "std"}),
    Panel("colours: distance to the first clip, 0 to 1", {"colour_distance": "distance"}),
    Panel(
        "PSNR of neighbours, dB",
        {"psnr_inside": "inside clips", "psnr_border": "where clips meet"},
    ),
)
TITLES = {
    f"{ROWS}.{key}": f"{panel.title}, {name}" if len(panel.curves) > 1 else panel.title
    for panel in PANELS
    for key, name in panel.curves.items()
}


def column(rows: list[dict[str, Any]], key: str) -> Series:
    """Take one figure of all rows that have it."""
    return [Point(row[ALONG], row[key]) for row in rows if row.get(key) is not None]


def drift_picture(rows: list[dict[str, Any]]) -> str:
    """Draw rows as an SVG that stands by itself."""
    charts = [
        (
            panel.title,
            [
                Curve(name, series, number)
                for number, (key, name) in enumerate(panel.curves.items())
                if (series := column(rows, key))
            ],
        )
        for panel in PANELS
    ]
    return picture([(title, curves) for title, curves in charts if curves])


def picture(charts: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """Draw charts, each with its title, as one SVG that stands by itself."""
    cards: list[Markup] = []
    for place, (title, curves) in enumerate(charts):
        left = GAP + place % COLUMNS * (WIDTH + GAP)
        top = GAP + place // COLUMNS * (HEIGHT + CAPTION + GAP)
        legend = [
            tag("tspan", f"{curve.label}", dx=10, class_=curve.tone, fill="currentColor")
            for curve in curves[: len(curves) if len(curves) > 1 else 0]
        ]
        caption = tag("text", title, legend, x=left, y=top + 12, style="text-anchor: start")
        chart = draw(curves, Look(title, along=ALONG, smooth=False), f"drift-{place}")
        box = {"x": left, "y": top + CAPTION, "width": WIDTH, "height": HEIGHT}
        cards += [caption, tag("svg", chart, **box)]
    width = GAP + COLUMNS * (WIDTH + GAP)
    height = GAP + -(-len(charts) // COLUMNS) * (HEIGHT + CAPTION + GAP)
    return tag(
        "svg",
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
        tag("rect", width=width, height=height, style="fill: var(--card)"),
        cards,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        font_family="system-ui, sans-serif",
    )
