"""The charts of one or several runs, each with a table of its last and best values."""

import re
from collections.abc import Sequence

from pvdm_cli.report.chart import Curve, Look, draw
from pvdm_cli.report.markup import Markup, table, tag
from pvdm_cli.report.panels import Panel, groups_for
from pvdm_cli.report.records import Record
from pvdm_cli.report.series import Point, Series, highest, lowest


def sections(records: Sequence[Record]) -> tuple[list[Markup], list[str]]:
    """Draw all charts, by groups, and name what is drawn."""
    names = sorted({name for record in records for name in record.metrics})
    drawn: list[Markup] = []
    titles: list[str] = []
    for group in groups_for(names, apart=len(records) > 1):
        cards = [
            card(panel, records, f"chart-{len(titles) + k}") for k, panel in enumerate(group.panels)
        ]
        titles += [panel.title for panel in group.panels]
        drawn.append(
            tag("section", tag("h3", group.title), tag("div", cards, class_="cards")),
        )
    return drawn, titles


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
            best = best_of(series, panel.better) if panel.held_out and k == 0 else None
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
        if best:
            cells += [look.told(best.value), f"{best.step:,}"]
        else:
            cells += [look.told(end(curve.series).value) for end in (lowest, highest)]
        rows.append([swatch(curve), *cells])
    return table(head, rows, caption=f"{panel.title}: values", class_="values")


def swatch(curve: Curve) -> list[Markup]:
    """Show the line a curve is drawn by, and its name."""
    line = tag("path", d="M0 5H22")
    drawn = tag("svg", line, viewBox="0 0 22 10", class_=f"swatch {curve.tone}", aria_hidden="true")
    return [drawn, tag("span", curve.label)]
