"""A report in a browser: no complaint, nothing fetched, videos that play, room on a phone."""

import json
import os
from pathlib import Path

import browser
import pytest
from run_folders import checkpoint, lines, write_run

from pvdm_cli.report.page import write_report

NEEDED = "PVDM_TEST_BROWSER"  # set where its absence is a failure: in CI


@pytest.fixture(scope="module")
def chromium() -> str:
    """The browser, or a reason why there is none."""
    program = browser.find()
    if program is None:
        reason = f"needs one of {', '.join(browser.NAMES)}, to look at a page"
        if os.environ.get(NEEDED):
            pytest.fail(f"{reason}; {NEEDED} is set")
        pytest.skip(reason)
    return program


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on two runs, one of them under way and with a hostile name."""
    root = tmp_path_factory.mktemp("report")
    shares = {"adversary_real_accuracy": 0.7, "l1_share": 0.4, "generator_share": 0.6}
    first = write_run(root / '<b>"run"', lines(range(5, 500, 5), **shares), samples=(5, 10, 15))
    checkpoint(first, 495, preset="demo/autoencoder", overrides=["training.steps=100"])
    score = {"metric": "fvd16", "results": {"fvd16": 400.5}, "protocol": {"frames": 16}}
    (first / "metric-fvd16.jsonl").write_text(json.dumps(score) + "\n")
    (first / "drift.json").write_text('{"psnr": [30.0, 29.5, 28.0]}')
    second = write_run(root / "second", lines([5, 10], val_psnr=20.0), cut='{"step": 15')
    return write_report([first, second], root / "report.html").path


def test_the_browser_has_no_complaint_and_asks_for_nothing(chromium: str, page: Path) -> None:
    found = browser.visit(chromium, page)
    assert found.console == []
    assert found.asked == []
    assert "<h1>2 runs</h1>" in found.dom


def test_a_complaint_and_a_request_would_be_seen(chromium: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text('<title>x</title><img src="http://elsewhere.invalid/a"><script>no()</script>')
    found = browser.visit(chromium, bad)
    assert any("no is not defined" in line for line in found.console)
    assert found.asked == ["http://elsewhere.invalid/a"]


def test_what_gets_into_the_page_nevertheless_can_fetch_nothing(
    chromium: str, page: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.html"
    copy.write_text(page.read_text().replace("<main>", '<img src="http://elsewhere.invalid/a">'))
    found = browser.visit(chromium, copy)
    assert found.asked == []
    assert any("Content Security Policy" in line for line in found.console)


def test_videos_play_by_themselves(chromium: str, page: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.html"
    text = browser.without_policy(page.read_text())
    copy.write_text(text.replace("</body>", f"{browser.WATCH}</body>"))
    videos = json.loads(browser.title(browser.visit(chromium, copy).dom))
    assert len(videos) == 3
    for video in videos:
        assert video["ready"] == 4  # there is enough of it to play to the end
        assert video["duration"] == pytest.approx(12 / 8, abs=0.02)
        assert video["width"] == 48
        assert video["at"] > 0


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_the_page_fits_any_screen(chromium: str, page: Path, tmp_path: Path, width: int) -> None:
    (tmp_path / "copy.html").write_text(browser.without_policy(page.read_text()))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f'<title>x</title><iframe id="f" style="border:0" width="{width}" height="900"></iframe>'
        "<script>onload = () => { const r = document.getElementById('f').contentDocument."
        "documentElement; document.title = `${r.scrollWidth} ${r.clientWidth}`; }</script>"
    )
    text = (tmp_path / "copy.html").read_text().replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(frame.read_text().replace('id="f"', f'id="f" srcdoc="{text}"'))
    wide, room = map(int, browser.title(browser.visit(chromium, frame, width=1700).dom).split())
    assert wide <= room
    assert room >= width - 20  # a scroll bar
