"""`pvdm report`: a page about runs, whatever state they are in."""

import json
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from run_folders import checkpoint, lines, write_run

Call = Callable[..., Any]
Refusal = Callable[..., str]
VOID = {"br", "img", "meta", "wbr"}


class Page(HTMLParser):
    """Elements of a page; insists that all are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.text = path.read_text()
        self.feed(self.text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1:] != ["style"]:
            self.words.append(data.strip())

    def count(self, name: str) -> int:
        return sum(tag == name for tag, _ in self.elements)

    def values(self, name: str) -> list[str]:
        return [
            str(value) for _, given in self.elements for key, value in given.items() if key == name
        ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run under way, with two sample videos and a checkpoint."""
    metrics = [*lines(range(5, 55, 5)), {"step": 50, "val_psnr": 20.5, "val_psnr_mean_frame": 18}]
    path = write_run(tmp_path / "sky", metrics, samples=(20, 50), cut='{"step": 55, "lo')
    checkpoint(path, 50, preset="demo/autoencoder", overrides=["training.steps=100"])
    return path


def told(pvdm: Call, *words: object) -> dict[str, Any]:
    result = pvdm("report", *words, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert isinstance(found, dict)
    return found


def test_a_run_under_way_becomes_a_page(pvdm: Call, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "page.html"
    found = told(pvdm, run, "--out", out)
    assert found["path"] == str(out)
    assert found["bytes"] == out.stat().st_size
    assert found["charts"][:2] == ["Reconstruction", "Loss"]
    assert [Path(video).stem for video in found["videos"]] == ["step-00000020", "step-00000050"]
    assert found["notes"] == [
        "1 line of metrics.jsonl cannot be read: cut short, or being written."
    ]
    page = Page(out)
    assert page.count("video") == 2
    assert "autoencoder · 16 frames of 64 × 64 · step 50 of 100 (50 %)" in page.words
    assert "20.5 dB" in page.words
    assert "pvdm train demo/autoencoder --out" in " ".join(page.words)


def test_the_page_asks_for_nothing_outside_itself(pvdm: Call, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    pvdm("report", run, "-o", out)
    page = Page(out)
    assert all(value.startswith("data:") for name in ("src", "href") for value in page.values(name))
    assert not {"script", "link", "iframe", "a"} & {tag for tag, _ in page.elements}
    assert "url(" not in page.text
    assert "@import" not in page.text
    assert any("default-src 'none'" in value for value in page.values("content"))


def test_each_chart_can_be_read_without_seeing_it(pvdm: Call, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    charts = told(pvdm, run, "-o", out)["charts"]
    page = Page(out)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    named = [value.split() for value in page.values("aria-labelledby")]
    assert len(named) == len(charts)
    assert all(each in ids for pair in named for each in pair)
    assert page.count("caption") == page.count("table") >= len(charts)


def test_nothing_in_a_run_becomes_markup(pvdm: Call, tmp_path: Path) -> None:
    hostile = "<b>\"'><script>alert(1)</script>"
    path = write_run(
        tmp_path / "<b>'&\"",
        [{"step": step, "loss": 1.0, hostile: 2.0} for step in (1, 2)],
        overrides=[f"init={json.dumps(hostile)}"],
    )
    checkpoint(path, 2, preset="demo/autoencoder", overrides=[hostile])
    (path / "starts.jsonl").write_text(
        2
        * (
            json.dumps({"command": [hostile], "device": hostile, "environment": {hostile: hostile}})
            + "\n"
        )
    )
    (path / "metric-x.jsonl").write_text(
        json.dumps(
            {"name": hostile, "value": 1, "protocol": {hostile: hostile}, "differs": hostile}
        )
    )
    (path / "drift.json").write_text(json.dumps({hostile: [1, 2], "x": hostile}))
    (path / "best").write_text(hostile)
    out = tmp_path / "page.html"
    found = told(pvdm, path, path / ".", write_run(tmp_path / "other"), "-o", out)
    assert (found["evaluations"], found["drift"], len(found["runs"])) == (1, True, 2)
    page = Page(out)
    assert "script" not in {tag for tag, _ in page.elements}
    assert "<script" not in page.text
    assert hostile in page.words
    assert "<b>'&\"" in page.words


def test_several_runs_are_laid_over_each_other(pvdm: Call, run: Path, tmp_path: Path) -> None:
    other = write_run(
        tmp_path / "other",
        lines(range(5, 105, 5)),
        overrides=["training.steps=100", "training.lr=0.5", "loss.l1=3"],
    )
    out = tmp_path / "page.html"
    pvdm("report", run, other, "-o", out)
    words = Page(out).words
    at = words.index("training.lr")
    assert words[at : at + 3] == ["training.lr", "0.0012", "0.5"]
    assert "Their losses do not mean the same: these runs differ in loss.l1." in words
    assert "finished, 100 steps" in words


def test_a_run_with_nothing_yet_has_a_page(pvdm: Call, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run")
    (path / "metrics.jsonl").unlink()
    out = tmp_path / "page.html"
    assert told(pvdm, path, "-o", out)["charts"] == []
    words = Page(out).words
    assert {"No metrics yet.", "No sample videos yet.", "No checkpoint yet."} <= set(words)


def test_videos_without_room_are_named(pvdm: Call, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = pvdm("report", run, "-o", out, "--video-mb", 0)
    left = run / "samples" / "step-00000050.mp4"
    assert f"left out {left}: no room; --video-mb gives more" in result.err
    page = Page(out)
    assert page.count("video") == 0
    assert any(f"{left} (" in word and "is left out" in word for word in page.words)


def test_an_earlier_report_is_replaced_and_nothing_else_is(
    pvdm: Call, refusal: Refusal, run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    assert pvdm("report", run, "-o", out).code == 0
    before = out.read_text()
    checkpoint(run, 55)
    assert pvdm("report", run, "-o", out).code == 0
    assert out.read_text() != before
    out.write_text("<html>mine</html>")
    assert "exists and is no report" in refusal("report", run, "-o", out)
    assert out.read_text() == "<html>mine</html>"
    assert pvdm("report", run, "-o", out, "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_folder_gets_a_page_of_the_usual_name(pvdm: Call, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pages"
    folder.mkdir()
    assert told(pvdm, run, "-o", folder)["path"] == str(folder / "report.html")
    assert pvdm("report", run, "-o", folder).code == 0


def test_what_is_no_run_is_one_sentence(refusal: Refusal, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    assert "no run folder" in refusal("report", run / "samples", "-o", out)
    assert f"give {run}\n" in refusal("report", tmp_path, "-o", out)
    assert "no such folder" in refusal("report", run, tmp_path / "nowhere", "-o", out)
    assert not out.exists()


def test_quiet_says_nothing(pvdm: Call, run: Path, tmp_path: Path) -> None:
    result = pvdm("report", run, "-o", tmp_path / "page.html", "-q")
    assert (result.code, result.out, result.err) == (0, "", "")


def test_a_report_loads_no_torch(run: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pvdm_cli.cli.app import app
from typer.testing import CliRunner
done = CliRunner().invoke(app, ["report", {str(run)!r}, "--out", {str(tmp_path / "p.html")!r}])
assert done.exit_code == 0, done.output
sys.exit("torch" in sys.modules or "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
