"""What a report reads, however odd, and what it makes of it."""

import json
import re
from pathlib import Path

import pytest
from run_folders import checkpoint, lines, write_run

from pvdm_cli.errors import ModelError
from pvdm_cli.report.chart import TONES, Curve, Look, draw
from pvdm_cli.report.curves import caution, curves_of
from pvdm_cli.report.evaluation import drift_series, scores
from pvdm_cli.report.markup import Markup, table, tag
from pvdm_cli.report.overview import state
from pvdm_cli.report.page import STYLE, write_report
from pvdm_cli.report.panels import PANELS, panels_for
from pvdm_cli.report.records import Record, flat, names_of, read_record
from pvdm_cli.report.series import Point
from pvdm_cli.report.settings import differences
from pvdm_cli.report.videos import pick


def test_text_and_attributes_are_escaped_markup_is_not() -> None:
    hostile = "<b>\"&'</b>"
    found = tag("p", hostile, tag("br"), [hostile, None], title=hostile, hidden=True, lang=None)
    safe = "&lt;b&gt;&quot;&amp;&#x27;&lt;/b&gt;"
    assert found == f'<p title="{safe}" hidden>{safe}<br>{safe}</p>'
    assert tag("td", Markup("<i>1</i>"), colspan=2, data_x=1.04) == (
        '<td colspan="2" data-x="1"><i>1</i></td>'
    )
    assert safe in table([hostile], [[hostile, 1]], caption=hostile)
    assert "<b>" not in table([hostile], [[hostile, 1]], caption=hostile)


def test_lines_cut_short_or_no_objects_are_counted_and_left_out(tmp_path: Path) -> None:
    odd = ["[1]", "7", '{"loss": 1}', '{"step": "x", "loss": 1}', '{"step": true, "loss": 1}', ""]
    odd += ['{"step": 30, "loss": NaN, "lr": Infinity, "name": "x", "on": true}', "\x00\x00"]
    cut = "\n".join([*odd, '{"step": 40, "lo'])
    record = read_record(write_run(tmp_path / "run", lines([10, 20]), cut=cut), "run")
    assert record.metrics["loss"] == [Point(10, 1.0), Point(20, 0.5)]
    assert record.metrics["lr"] == [Point(10, 1e-4), Point(20, 1e-4)]
    assert not {"name", "on"} & set(record.metrics)
    assert record.notes == [
        "4 lines of metrics.jsonl cannot be read: cut short, or being written.",
        "Some values are infinite or not a number, and not drawn: loss, lr.",
    ]


def test_a_run_that_has_only_begun_is_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    record = read_record(run, "run")
    assert (record.metrics, record.step, record.seconds, record.written) == ({}, 0, 0, None)
    assert record.notes == []
    assert state(record) == "step 0 of 100 (0 %)"


def test_settings_of_another_version_are_taken_as_they_stand(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines([10]))
    (run / "config.yaml").write_text("stage: diffusion\nfuture: {key: 3}\n")
    record = read_record(run, "run")
    assert record.settings == {"stage": "diffusion", "future.key": 3}
    assert "unknown key 'future'" in record.notes[0]
    (run / "config.yaml").write_text("a: [1")
    assert "not readable as YAML" in read_record(run, "run").notes[0]


def test_damaged_side_files_are_notes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines([10]))
    (run / "drift.json").write_text("{")
    (run / "starts.jsonl").write_text("{")
    (run / "checkpoints" / "step-00000010" / "model").mkdir(parents=True)
    (run / "checkpoints" / "step-00000010" / "model" / "model.json").write_text("{")
    record = read_record(run, "run")
    assert record.checkpoints == [10]
    assert sorted(note.partition(" can")[0] for note in record.notes) == [
        "1 line of starts.jsonl",
        "drift.json",
        "model.json",
    ]


@pytest.mark.parametrize("kind", ["absent", "file", "folder"])
def test_what_is_no_run_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "file":
        path.write_text("")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(ModelError, match="give the --out of a `pvdm train`"):
        read_record(path, "x")


def test_time_is_told_by_the_rates(tmp_path: Path) -> None:
    rates = [
        {"step": 10, "steps_per_second": 2.0},
        {"step": 30, "steps_per_second": 10.0},
        {"step": 40, "steps_per_second": 0.0},
    ]
    assert read_record(write_run(tmp_path / "run", rates), "run").seconds == 5 + 2


def test_runs_are_called_by_what_tells_them_apart() -> None:
    assert names_of([Path("/a/one"), Path("/b/two")]) == ["one", "two"]
    assert names_of([Path("/a/x/run"), Path("/b/x/run")]) == ["a/x/run", "b/x/run"]
    assert names_of([Path("/")]) == ["/"]


STEP_METRICS = [
    *("loss", "l1", "l2", "lpips", "generator", "features", "l1_share", "generator_share"),
    *("adversary_loss", "adversary_real_accuracy", "adversary_fake_accuracy"),
    *("adversary_grad_norm", "grad_norm", "lr", "loss_t1", "loss_t4", "clips_per_second"),
    *("data_wait", "flop_utilisation", "peak_memory_gb", "val_psnr", "val_psnr_mean_frame"),
    *("val_loss", "val_loss_prefix", "val_rfvd", "fvd_of_16"),
]


def test_every_known_metric_has_its_chart_and_no_two() -> None:
    for name in STEP_METRICS:
        assert len([panel for panel in PANELS if re.fullmatch(panel.names, name)]) == 1, name
    assert len(panels_for(STEP_METRICS, apart=False)) == len(PANELS)


def test_unknown_metrics_are_drawn_too_and_held_out_ones_first() -> None:
    panels = panels_for(["loss", "val_ssim", "entropy", "steps_per_second"], apart=False)
    assert [panel.title for panel in panels] == ["val_ssim", "Loss", "entropy"]
    assert panels[0].better == "higher"


def test_several_runs_share_a_chart_for_each_metric() -> None:
    series = [Point(10, 1.0), Point(20, 0.5)]
    records = [
        Record(Path(name), name, metrics={"loss_t1": series, "loss_t2": series})
        for name in ("a", "b")
    ]
    panels = panels_for(["loss_t1", "loss_t2"], apart=True)
    assert [panel.names for panel in panels] == ["loss_t1", "loss_t2"]
    found = curves_of(panels[0], records)
    assert [(curve.label, curve.tone) for curve in found] == [("a", "t0"), ("b", "t1")]


def test_losses_that_do_not_mean_the_same_are_said_so() -> None:
    records = [
        Record(Path("x"), "x", settings={"diffusion.objective": objective, "training.lr": rate})
        for objective, rate in (("eps", 1), ("eps", 2), ("v", 1))
    ]
    assert caution(records[:1]) is None
    assert caution(records[:2]) is None
    assert "differ in diffusion.objective." in str(caution(records))


def test_a_chart_says_in_words_what_it_shows() -> None:
    series = [Point(10, 4.0), Point(20, 1.0), Point(30, 2.0)]
    svg = draw([Curve("val<loss>", series, 0, best=series[1])], Look("Loss & more"), "c")
    assert '<title id="c-title">Loss &amp; more</title>' in svg
    assert "val&lt;loss&gt;: 4 at step 10, 2 at step 30, best 1 at step 20." in svg
    assert "step 20\nval&lt;loss&gt; 1</title>" in svg


@pytest.mark.parametrize(
    "values", [[1.0], [0.0], [0.0, 0.0], [-5.0, 5.0], [1e-12, 1e12], [3.0] * 1000, [1e300, 1e-300]]
)
@pytest.mark.parametrize("logarithmic", [False, True])
def test_any_values_can_be_drawn(values: list[float], logarithmic: bool) -> None:
    series = [Point(i, value) for i, value in enumerate(values)]
    look = Look("x", logarithmic=logarithmic, floor=0.0)
    svg = draw([Curve("a", series, 7)], look, "c")
    assert "nan" not in svg
    assert "inf" not in svg
    assert "d1" in svg


def luminance(colour: str) -> float:
    """Relative luminance of a colour such as #0067a8 (WCAG 2)."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * p for weight, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_colours_stand_out_from_the_card_in_light_and_dark() -> None:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#\w{6})", part))
        for part in STYLE.read_text().split("@media (prefers-color-scheme: dark)")
    )
    for colours in (light, dark):
        for name in ("ink", "soft", *(f"c{i}" for i in range(TONES))):
            high, low = sorted((luminance(colours[name]), luminance(colours["card"])))[::-1]
            assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_a_long_run_makes_a_small_chart() -> None:
    series = [Point(i, 1 / (i + 1)) for i in range(50_000)]
    assert len(draw([Curve("loss", series, 0)], Look("Loss"), "c")) < 40_000


def test_results_are_read_in_the_forms_they_come_in() -> None:
    whole = {
        "metric": "fvd16",
        "results": {"fvd16": 412.5, "note": "x"},
        "score": {"protocol": {"frames": 16}, "bootstrap": [400, 420], "differs": ["few clips"]},
        "time": "2026-01-02T03:04:05+00:00",
    }
    (found,) = scores(whole)
    assert (found.name, found.value, found.time) == ("fvd16", 412.5, "2026-01-02 03:04 UTC")
    assert found.spread == pytest.approx(200**0.5)
    assert found.conditions["score.protocol.frames"] == 16
    assert found.differs == ["few clips"]
    (plain,) = scores({"name": "is", "value": 5, "std": 0.1, "protocol": "c3d", "time": "then"})
    assert (plain.name, plain.value, plain.spread, plain.time) == ("is", 5.0, 0.1, "then")
    assert plain.conditions == {"std": 0.1, "protocol": "c3d"}
    assert [s.name for s in scores({"file": "fvd", "results": {"a": 1, "b": 2}})] == ["a", "b"]
    assert scores({"file": "psnr", "psnr": 30.5})[0].value == 30.5
    assert scores({"metric": "broken"}) == []


def test_results_beside_drawn_videos_in_the_run_folder_are_found(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines([10]))
    (run / "drawn").mkdir()
    for place in (run, run / "drawn"):
        (place / "metric-fvd16.jsonl").write_text('{"value": 3}\n')
    found = read_record(run, "run").evaluations
    assert [scores(line)[0].name for line in found] == ["fvd16", "fvd16"]


def test_drift_is_found_wherever_numbers_are_listed() -> None:
    value = {
        "clips": [{"clip": 1, "psnr": 30.0, "name": "a"}, {"clip": 4, "psnr": 29.0, "name": "b"}],
        "all": {"sharpness": [1.0, 0.5], "slope": -0.9},
        "one": [3],
    }
    assert list(drift_series(value)) == [
        ("clips.psnr", "clip", [Point(1, 30.0), Point(4, 29.0)]),
        ("all.sharpness", "number", [Point(1, 1.0), Point(2, 0.5)]),
    ]
    assert next(drift_series([1, 2.5]))[0] == "drift"
    assert list(drift_series("x")) == []


def test_differing_keys_are_told_one_by_one() -> None:
    without = flat({"adversarial": None, "training": {"lr": 1, "steps": 5}})
    with_it = flat({"adversarial": {"weight": 2}, "training": {"lr": 1, "steps": 6}})
    assert differences(without, with_it) == ["training.steps", "adversarial.weight"]
    assert differences(with_it, with_it) == []


def test_the_first_middle_and_newest_video_are_taken(tmp_path: Path) -> None:
    samples = tmp_path / "samples"
    samples.mkdir()
    for step in (1, 2, 3, 4, 5):
        (samples / f"step-{step:08d}.mp4").write_bytes(b"x" * 10)
    (samples / ".step-00000009.mp4.1.partial").write_bytes(b"x")
    (samples / "notes.txt").write_bytes(b"x")
    shown, left = pick(tmp_path, 100)
    assert [(each.which, each.path.stem[-1]) for each in shown] == [
        *(("first", "1"), ("middle", "3"), ("newest", "5"))
    ]
    assert left == 70
    shown, left = pick(tmp_path, 25)
    assert [each.content is not None for each in shown] == [True, False, True]
    shown, left = pick(tmp_path, 10)
    assert [each.content is not None for each in shown] == [False, False, True]
    assert pick(tmp_path / "nowhere", 10) == ([], 10)


def test_of_two_videos_none_is_the_middle(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    for count, expected in ((1, ["newest"]), (2, ["first", "newest"])):
        (tmp_path / "samples" / f"step-{count:08d}.mp4").write_bytes(b"x")
        assert [each.which for each in pick(tmp_path, 100)[0]] == expected


def test_the_preset_comes_from_the_last_start_else_from_a_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines([10]))
    assert read_record(run, "run").preset is None
    checkpoint(run, 10, preset="demo/autoencoder", overrides=["training.steps=100"])
    assert read_record(run, "run").preset == "demo/autoencoder"
    (run / "starts.jsonl").write_text(json.dumps({"preset": "mine.yaml"}) + "\n")
    assert read_record(run, "run").preset == "mine.yaml"


def test_a_run_in_several_processes_says_so(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", lines([10]))
    start = {"device": "cuda:0", "processes": 8, "environment": {"pvdm": "0.1"}}
    (run / "starts.jsonl").write_text(json.dumps(start) + "\n")
    assert "cuda:0, 8 processes" in write_report([run], tmp_path / "page.html").path.read_text()
    (run / "starts.jsonl").write_text(json.dumps({**start, "processes": 1}) + "\n")
    again = write_report([run], tmp_path / "page.html").path.read_text()
    assert "cuda:0" in again
    assert "processes" not in again
