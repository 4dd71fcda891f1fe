"""`pvdm push`: what would be published, what is, and what keeps it from being published."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hubs import Hub, fill_cache, serve
from huggingface_hub import HfApi, constants
from run_folders import write_run
from tiny import tiny_model

from pvdm_cli.model import load_model, save_model
from pvdm_cli.modelcard import without_places
from pvdm_cli.video.read import probe
from pvdm_cli.video.write import write_video

Pvdm = Callable[..., Any]
Refusal = Callable[..., str]
REPO = "someone/sky"


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A token, and a hub that is not there."""
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that answers."""
    with serve() as (address, served):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield served


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder."""
    save_model(tiny_model(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two checkpoints, with scores, samples and the state of training."""
    run = write_run(tmp_path / "my runs" / "sky", preset="demo/diffusion", samples=(10, 20))
    for step in (10, 20):
        model = tiny_model()
        model.provenance = {
            "stage": "diffusion",
            "cache": "clouds",
            "preset": "/home/me/my presets/mine.yaml",
            "overrides": ["init=/home/me/before", "training.lr=1e-4"],
            "step": step,
            "metrics": {"val_loss": step / 100},
        }
        folder = run / "checkpoints" / f"step-{step:08d}"
        save_model(model, folder / "model")
        (folder / "state").mkdir()
        (folder / "state" / "optimizer.safetensors").touch()
    command = ["pvdm", "train", "mine.yaml", "--cache", "/data/me/clouds", "--out", str(run)]
    (run / "starts.jsonl").write_text(json.dumps({"command": command, "device": "cuda"}) + "\n")
    named = {"a": [], "b": ["--checkpoint", "10"], "c": ["--checkpoint", "20"]}
    for i, (name, words) in enumerate(named.items(), start=1):
        line = {
            "results": {f"fvd_{name}": 100.0 + i},
            "model": [str(run), *words],
            "sampling": {"frames": 128, "steps": "100/20", "eta": None},
            "time": "2030-01-02T03:04:05+00:00",
        }
        (run / f"metric-{name}.jsonl").write_text(json.dumps(line) + "\n")
    return run


def card_of(text: str) -> tuple[dict[str, Any], str]:
    """Take a card apart: front matter, Markdown."""
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_a_dry_run_writes_what_would_be_published(pvdm: Pvdm, run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("push", run, REPO, "--dry-run", "--out", out, "--license", "mit")
    result = pvdm(*words, "--json")
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["url"] is None
    assert told["files"] == {path.name: path.stat().st_size for path in out.iterdir()}
    assert sorted(told["files"]) == sorted(
        ["README.md", "autoencoder.safetensors", "denoiser.safetensors", "model.json", "sample.gif"]
    )
    assert not any(path.is_symlink() for path in out.iterdir())
    assert f"written to {out}: 5 files" in result.err
    assert "nothing was uploaded; without --dry-run someone/sky gets 5 files" in result.err
    assert load_model(out, "cpu").fingerprint == tiny_model().fingerprint
    assert probe(out / "sample.gif").num_frames == 12  # the run's

    front, body = card_of((out / "README.md").read_text())
    assert front == {
        "library_name": "pvdm",
        "license": "mit",
        "tags": ["pvdm", "video-generation", "diffusion"],
    }
    for said in (
        "# sky\n",
        "![sample](sample.gif)",
        "*Sampled while training, at step 20.*",
        "| clip | 4 frames of 16x24, stride 1 |",
        "| frame rate | 7 frames a second |",
        "pvdm sample someone/sky --frames 128",
        'api.load_model("someone/sky")',
        "The latent cache `clouds`.",
        "pvdm train mine.yaml --cache CACHE --out RUN init=before training.lr=1e-4",
        "These are the weights after 20 steps (diffusion). The last start was on `cuda`.",
        "| `val_loss` | 0.2 | validation while training (diffusion) |",
        "| `fvd_a` | 101 | `pvdm eval`, frames 128, steps 100/20, newest checkpoint then, 2030-01",
        "| `fvd_c` | 103 | `pvdm eval`, frames 128, steps 100/20, checkpoint 20, 2030-01-02",
        "A [PVDM](https://arxiv.org/abs/2302.07685) model that draws long videos",
        "@inproceedings{yu2023video,",
    ):
        assert said in body
    assert "fvd_b" not in body  # of another checkpoint
    for file in ("README.md", "model.json"):
        text = (out / file).read_text()
        assert "/home" not in text
        assert "/data" not in text
        assert str(tmp_path) not in text


def test_a_checkpoint_is_published_with_what_there_was_then(
    pvdm: Pvdm, run: Path, tmp_path: Path
) -> None:
    (run / "best").write_text("step-00000010\n")
    for number, step in enumerate(("10", "best")):
        out = tmp_path / f"out{number}"
        words = ("push", run, REPO, "--checkpoint", step, "--dry-run", "--out", out)
        assert pvdm(*words, "-q").code == 0
        _, body = card_of((out / "README.md").read_text())
        assert "*Sampled while training, at step 10.*" in body
        assert "fvd_b" in body
        assert "fvd_c" not in body


def test_what_is_published_can_be_sampled_from(
    pvdm: Pvdm, hub: Hub, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = pvdm("push", model, REPO, "--private", "--message", "First light")
    assert result.code == 0, result.err
    assert result.out == f"{constants.ENDPOINT}/someone/sky\n"
    assert "drawing a sample of 16 frames" in result.err  # there is none
    assert "anybody who may see it can `pvdm sample someone/sky`" in result.err
    paths, tokens, bodies = zip(*hub.asked, strict=True)
    assert "/api/repos/create" in paths[0]
    assert {"private": True, "visibility": "private"}.items() & bodies[0][0].items()
    assert set(tokens) == {"Bearer hf_secret"}
    assert bodies[-1][0]["value"]["summary"] == "First light"
    held = hub.commits[hub.refs[REPO]["main"]]
    assert held["denoiser.safetensors"] == (model / "denoiser.safetensors").read_bytes()
    assert b"Drawn by `pvdm sample someone/sky --frames 16 --steps 20/10" in held["README.md"]
    assert held["sample.gif"].startswith(b"GIF89a")

    result = pvdm("sample", REPO, "--frames", 6, "--steps", "2/2", "--out", "drawn")
    assert result.code == 0, result.err
    assert "downloading hf:someone/sky" in result.err
    assert probe(Path("drawn/video-00000.mp4")).num_frames == 6


def test_the_upload_is_one_commit_of_these_files_on_this_branch(
    pvdm: Pvdm, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, Any] = {}

    def create(self: HfApi, repo_id: str, **options: Any) -> str:
        calls["create"] = (repo_id, options)
        return f"https://huggingface.co/{repo_id}"

    def branch(self: HfApi, repo_id: str, **options: Any) -> None:
        calls["branch"] = (repo_id, options)

    def upload(self: HfApi, *, folder_path: Path, **options: Any) -> None:
        calls["upload"] = (
            options,
            {path.name: path.read_bytes() for path in folder_path.iterdir()},
        )

    monkeypatch.setattr(HfApi, "create_repo", create)
    monkeypatch.setattr(HfApi, "create_branch", branch)
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    result = pvdm("push", model, REPO, "--no-sample", "--revision", "small", "-q")
    assert (result.code, result.err) == (0, "")
    assert calls["create"] == (REPO, {"private": None, "exist_ok": True})
    assert calls["branch"] == (REPO, {"branch": "small", "exist_ok": True})
    options, files = calls["upload"]
    message = "Publish a model of pvdm"
    assert options == {"repo_id": REPO, "revision": "small", "commit_message": message}
    assert sorted(files) == [
        "README.md", "autoencoder.safetensors", "denoiser.safetensors", "model.json",
    ]  # fmt: skip
    assert files["denoiser.safetensors"] == (model / "denoiser.safetensors").read_bytes()
    front, body = card_of(files["README.md"].decode())
    assert "license" not in front  # none is made up
    assert "## Results\n\nNone recorded." in body
    assert "## Data\n\nNot recorded in the model." in body


def test_samples_that_are_given_are_shown_instead(pvdm: Pvdm, run: Path, tmp_path: Path) -> None:
    frames = np.zeros((3, 16, 16, 3), np.uint8)
    for name in ("a.mp4", "b.gif"):
        write_video(tmp_path / name, frames, fps=5)
    out = tmp_path / "out"
    samples = ("--sample", tmp_path / "a.mp4", "--sample", tmp_path / "b.gif")
    assert pvdm("push", run, REPO, "--dry-run", "--out", out, *samples, "-q").code == 0
    assert probe(out / "sample-1.gif").num_frames == 3
    assert (out / "sample-2.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    assert (out / "README.md").read_text().count("![sample](sample-") == 2


def test_an_autoencoder_alone_is_said_to_be_one(pvdm: Pvdm, tmp_path: Path) -> None:
    save_model(tiny_model(with_denoiser=False), tmp_path / "model")
    out = tmp_path / "out"
    assert pvdm("push", tmp_path / "model", REPO, "--dry-run", "--out", out, "-q").code == 0
    assert not (out / "sample.gif").exists()
    _, body = card_of((out / "README.md").read_text())
    assert "The autoencoder of a [PVDM](https://arxiv.org/abs/2302.07685) model" in body
    assert "it draws no videos by itself" in body
    assert "pvdm encode VIDEOS --autoencoder someone/sky --out CACHE" in body


def test_the_shipped_model_has_a_card(pvdm: Pvdm, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert pvdm("push", "demo", REPO, "--dry-run", "--no-sample", "--out", out, "-q").code == 0
    _, body = card_of((out / "README.md").read_text())
    assert "800 procedural skies" in body
    assert "pvdm train demo/autoencoder --data VIDEOS --out RUN" in body
    assert "5,000 steps (autoencoder) and 7,000 steps (denoiser)" in body


def test_refusals_before_anything_is_made(
    refusal: Refusal, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sky", "a/b/c", "a/b@v1", "hf:a/b"):
        assert f"{name!r}: a model on the hub is called owner/name" in refusal("push", model, name)
    assert "exists; choose another --out" in refusal("push", model, REPO, "--out", tmp_path)
    assert "no such folder" in refusal("push", tmp_path / "no", REPO)
    assert "not a run folder" in refusal("push", model, REPO, "--checkpoint", 5)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "someone/sky: HF_HUB_OFFLINE is set; unset it to publish" in refusal("push", model, REPO)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert refusal("push", model, REPO) == (
        "error: someone/sky: the hub wants to know who publishes; `hf auth login` (or set HF_TOKEN) "
        "first\n"
    )
    assert "no such folder" in refusal("push", tmp_path / "no", REPO)  # what is wrong first


def test_a_damaged_model_or_sample_is_not_published(
    refusal: Refusal, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    said = refusal("push", model, REPO, "--sample", tmp_path / "bad.mp4", "--out", out, "-q")
    assert "bad.mp4" in said
    content = bytearray((model / "denoiser.safetensors").read_bytes())
    content[-1] ^= 1
    (model / "denoiser.safetensors").write_bytes(content)
    said = refusal("push", model, REPO, "--dry-run", "--out", out, "-q")
    assert "denoiser.safetensors: content differs from its sha256 in model.json" in said
    assert not out.exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ((401, "", "Invalid token"), "the hub does not accept the token; `hf auth login`"),
        ((403, "", "Forbidden"), "the token has no right to write for someone; `hf auth login`"),
        ((400, "", "Names cannot be so"), "the hub answers 400 (Names cannot be so)\n"),
        (None, "the hub cannot be reached (http://127.0.0.1:9: "),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    refusal: Refusal,
    request: pytest.FixtureRequest,
    model: Path,
    answer: tuple[int, str, str] | None,
    says: str,
) -> None:
    if answer:
        request.getfixturevalue("hub").refuse = answer
    said = refusal("push", model, REPO, "--no-sample", "-q")
    assert said.startswith(f"error: someone/sky: not published: {says}")
    assert "hf_secret" not in said


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("init=/home/me/my runs/ae", "init=ae"),
        ("init=~/ae", "init=ae"),
        (r"init=C:\Users\me\ae", "init=ae"),
        ("data.include=[/a/b,/c/d e]", "data.include=[b,d e]"),
        ("see /etc/passwd, and b", "see passwd, and b"),
        ("sky/diffusion-l", "sky/diffusion-l"),
        ("init=runs/ae", "init=runs/ae"),
        ("100/20 of https://example.org/a", "100/20 of https://example.org/a"),
        ({"a": ["/b/c", 1, None]}, {"a": ["c", 1, None]}),
    ],
)
def test_of_paths_only_names_are_kept(text: object, left: object) -> None:
    assert without_places(text) == left


@pytest.mark.slow
def test_a_process_samples_offline_from_the_cache(model: Path, tmp_path: Path) -> None:
    fill_cache(tmp_path / "home" / "hub", REPO, "c" * 40, model, "v1")
    environment = {
        **{key: value for key, value in os.environ.items() if key != "HF_HUB_CACHE"},
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    command = ["sample", f"{REPO}@v1", "--frames", "6", "--steps", "2/2", "--json", "--out", "out"]
    result = subprocess.run(
        [sys.executable, "-m", "pvdm_cli", *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("\n") <= 2, result.stderr
    assert probe(tmp_path / "out" / "video-00000.mp4").num_frames == 6
