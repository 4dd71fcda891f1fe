"""The whole page: one file of HTML that needs nothing else, written whole or not at all."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from pvdm_cli.environment import machine
from pvdm_cli.errors import PvdmError
from pvdm_cli.files import write_text
from pvdm_cli.report import curves, evaluation, overview, settings, videos
from pvdm_cli.report.chart import Curve
from pvdm_cli.report.markup import Markup, tag
from pvdm_cli.report.records import Record, names_of, read_record

VIDEO_MB = 20.0  # of all videos of a page
MARK = '<meta name="generator" content="pvdm report">'
# A browser then asks nobody for anything, whatever stands on the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
STYLE = Path(__file__).with_name("style.css")


@dataclass
class Report:
    """A page that was written.

    Attributes:
        path: Where.
        bytes: Its size.
        seconds: Time it took to make.
        runs: The run folders.
        charts: Titles of the charts.
        videos: Sample videos in the page.
        left_out: Sample videos there was no room for.
        evaluations: Results of evaluations.
        drift: Whether drift was measured.
        notes: What could not be read.
    """

    path: Path
    bytes: int = 0
    seconds: float = 0.0
    runs: list[Path] = field(default_factory=list)
    charts: list[str] = field(default_factory=list)
    videos: list[Path] = field(default_factory=list)
    left_out: list[Path] = field(default_factory=list)
    evaluations: int = 0
    drift: bool = False
    notes: list[str] = field(default_factory=list)


def write_report(
    runs: Sequence[Path], out: Path, *, video_mb: float = VIDEO_MB, overwrite: bool = False
) -> Report:
    """Write a page about one or several runs, finished or not.

    Args:
        runs: Run folders.
        out: The page, or a folder for `report.html`.
        video_mb: Room for sample videos, in megabytes.
        overwrite: Replace a file that is no earlier report.

    Raises:
        PvdmError: If a folder is no run, or the page cannot be written.
    """
    began = time.perf_counter()
    path = out / "report.html" if out.is_dir() else out
    if not overwrite:
        _refuse_other(path)
    distinct = list({run.resolve(): run for run in runs}.values())
    named = zip(distinct, names_of(distinct), strict=True)
    records = [read_record(run, name) for run, name in named]
    report = Report(path, runs=distinct)
    text = make_page(records, report, round(video_mb * 1e6))
    write_text(path, text)
    report.bytes = len(text.encode())
    report.seconds = round(time.perf_counter() - began, 3)
    return report


def _refuse_other(path: Path) -> None:
    """Check that what is at a path is an earlier report, if anything."""
    try:
        with path.open("rb") as file:
            begins = file.read(1024)
    except FileNotFoundError:
        return
    except OSError as error:
        raise PvdmError(f"{path}: {error.strerror}; give another --out") from error
    if MARK.encode() not in begins:
        raise PvdmError(f"{path} exists and is no report; give another --out, or --overwrite")


def make_page(records: Sequence[Record], report: Report, room: int) -> str:
    """Put the page together and note in the report what it shows."""
    now = time.time()
    charts, report.charts = curves.cards(records)
    report.evaluations = sum(
        len(evaluation.scores(line)) for record in records for line in record.evaluations
    )
    report.drift = any(record.drift is not None for record in records)
    report.notes = [note for record in records for note in record.notes]
    parts = [
        overview.header(records, now),
        overview.notes(records),
        overview.summary(records),
        *_section("videos", "Videos", _videos(records, report, room)),
        *_section("curves", "Curves", [curves.caution(records), _cards(charts, "No metrics yet.")]),
        *_section("evaluation", "Evaluation", [evaluation.results(records)]),
        *_section("drift", "Drift", evaluation.drift(records)),
        *_section("configuration", "Configuration", _configurations(records)),
        *_section("origin", "Origin", _each(records, settings.origin)),
        _footer(now),
    ]
    return _document(" · ".join(record.name for record in records), parts)


def _section(identity: str, title: str, parts: Sequence[Markup | None]) -> list[Markup]:
    """Make a section, unless there is nothing in it."""
    if not any(parts):
        return []
    return [tag("section", tag("h2", title), parts, id=identity)]


def _each(records: Sequence[Record], make: Callable[[Record], list[Markup]]) -> list[Markup]:
    """Make the same for each run, under its name where there are several."""
    if len(records) == 1:
        return make(records[0])
    return [tag("section", tag("h3", record.name), make(record)) for record in records]


def _cards(cards: Sequence[Markup], none: str) -> Markup:
    """Lay cards out, or say that there are none."""
    return tag("div", cards, class_="cards") if cards else tag("p", none)


def _videos(records: Sequence[Record], report: Report, room: int) -> list[Markup]:
    """Embed sample videos; each run gets an equal part of the room that is left."""
    cards = []
    for number, record in enumerate(records):
        part = room // (len(records) - number)
        shown, left = videos.pick(record.path, part)
        room -= part - left
        report.videos += [each.path for each in shown if each.content is not None]
        report.left_out += [each.path for each in shown if each.content is None]
        whose = curves.swatch(Curve(record.name, [], number)) if len(records) > 1 else None
        cards += [videos.figure(each, record.stage, whose) for each in shown]
    return [_cards(cards, "No sample videos yet.")]


def _configurations(records: Sequence[Record]) -> list[Markup]:
    """Compare the configurations of several runs, then show each."""
    own = _each(records, settings.configuration)
    return own if len(records) == 1 else [settings.comparison(records), *own]


def _footer(now: float) -> Markup:
    """Say what made the page, and when."""
    made = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return tag("footer", f"Made by pvdm {machine()['pvdm']} on {made}.")


def _document(title: str, parts: Sequence[Markup | None]) -> str:
    """Make a whole document of HTML."""
    head = [
        Markup('<meta charset="utf-8">'),
        Markup(MARK),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE.read_text(encoding="utf-8"))),
    ]
    body = tag("body", tag("main", parts))
    return f"<!doctype html>\n{tag('html', tag('head', head), body, lang='en')}\n"
