"""The charts of one or several runs, each with a table of its last and best values."""

import re
from collections.abc import Sequence

from pvdm_cli.report.chart import Curve, Look, draw
from pvdm_cli.report.markup import Markup, table, tag
from pvdm_cli.report.panels import Panel, panels_for
from pvdm_cli.report.records import Record
from pvdm_cli.report.series import Point, Series, highest, lowest

BASELINES = {"val_psnr_mean_frame"}  # to compare with; training does not change them

# Settings that decide what a loss means: where they differ, losses are not to be compared.
MEANING = ("stage", "clip.", "autoencoder.", "diffusion.", "denoiser.normalise", "loss.")


def caution(records: Sequence[Record]) -> Markup | None:
    """Say that the losses of runs are not to be compared, where that is so."""
    first, *others = (record.settings for record in records)
    keys = sorted(
        key
        for key in set(first).union(*others)
        if key.startswith(MEANING) and any(first.get(key) != other.get(key) for other in others)
    )
    if not keys:
        return None
    words = f"Their losses do not mean the same: these runs differ in {', '.join(keys)}."
    return tag("p", words, class_="note")


def cards(records: Sequence[Record]) -> tuple[list[Markup], list[str]]:
    """Draw all charts, and name them."""
    names = sorted({name for record in records for name in record.metrics})
    panels = panels_for(names, apart=len(records) > 1)
    drawn = [card(panel, records, f"chart-{number}") for number, panel in enumerate(panels)]
    return drawn, [panel.title for panel in panels]


def card(panel: Panel, records: Sequence[Record], identity: str) -> Markup:
    """Draw one chart and the table of its values."""
    found = curves_of(panel, records)
    look = Look(
        panel.title,
        logarithmic=panel.logarithmic,
        floor=panel.floor,
        ceiling=panel.ceiling,
        share=panel.share,
        dots=panel.held_out,
        smooth=not panel.exact,
    )
    return tag(
        "figure",
        tag("figcaption", tag("b", panel.title), " ", tag("small", panel.about)),
        draw(found, look, identity),
        _values(found, panel, look),
    )


def curves_of(panel: Panel, records: Sequence[Record]) -> list[Curve]:
    """Make the curves of a chart: of one run its metrics, of several runs one metric of each."""
    found = []
    for number, record in enumerate(records):
        names = sorted(name for name in record.metrics if re.fullmatch(panel.names, name))
        for k, name in enumerate(names):
            series = record.metrics[name]
            judged = panel.held_out and k == 0
            best = best_of(series, panel.better) if judged else None
            if len(records) == 1:
                found.append(Curve(name, series, k, best))
            else:
                found.append(Curve(record.name, series, number, best))
    return found


def best_of(series: Series, better: str | None) -> Point | None:
    """The best point, where one direction is better."""
    if not series or better is None:
        return None
    return highest(series) if better == "higher" else lowest(series)


def _values(curves: Sequence[Curve], panel: Panel, look: Look) -> Markup:
    """Tell the last value of each curve and its best, or its range; this is the legend too."""
    head = ["", "last", *(["best", "at step"] if panel.better else ["lowest", "highest"])]
    rows = []
    for curve in curves:
        cells = [look.told(curve.series[-1].value)]
        best = best_of(curve.series, panel.better)
        if {curve.label, panel.names} & BASELINES:
            cells += ["", ""]
        elif best:
            cells += [look.told(best.value), f"{best.step:,}"]
        else:
            cells += [look.told(end(curve.series).value) for end in (lowest, highest)]
        rows.append([swatch(curve), *cells])
    return table(head, rows, caption=f"{panel.title}: values", class_="values")


def swatch(curve: Curve) -> Markup:
    """Show the line a curve is drawn by, and its name, which may be broken after each _."""
    line = tag("path", d="M0 5H22")
    drawn = tag("svg", line, viewBox="0 0 22 10", class_=f"swatch {curve.tone}", aria_hidden="true")
    name = [[part, tag("wbr")] for part in re.split("(?<=_)", curve.label)]
    return tag("span", drawn, tag("span", name), class_="key")
