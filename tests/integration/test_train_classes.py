"""Classes from folder names to sampled videos, with tiny networks."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_runs import Place, contents, difference, metrics, series, stop_after
from typer.testing import CliRunner

from pvdm_cli import api
from pvdm_cli.cli.app import app
from pvdm_cli.config import load_config
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.cache_writer import CacheWriter, Stamp
from pvdm_cli.data.catalog import find_videos
from pvdm_cli.encoding import identity_of
from pvdm_cli.errors import ConfigError, DataError, ModelError, PvdmError
from pvdm_cli.model import load_model
from pvdm_cli.rollout import rollout_latents
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import Sampling, Steps

LABELS = "data.labels=true"
QUICK: dict[str, Any] = {"frames": 8, "steps": "3", "device": "cpu", "format": "npz"}


@pytest.fixture(scope="module")
def videos(place: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The skies of the other tests in two folders, and one in none."""
    root = tmp_path_factory.mktemp("classes") / "videos"
    for number, source in enumerate(find_videos(place.videos)):
        folder = root / ("." if number == 6 else ("dawn", "dusk")[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(source.path, folder)
    return root


@pytest.fixture(scope="module")
def cache(place: Place, videos: Path) -> Path:
    path = videos.parent / "cache"
    api.encode(videos, path, labels="folders", autoencoder=str(place.first_stage), device="cpu")
    return path


@pytest.fixture(scope="module")
def run(place: Place, cache: Path) -> Path:
    """An uninterrupted run with classes."""
    path = cache.parent / "run"
    place.train("diffusion", path, LABELS, cache=cache)
    return path


@pytest.mark.slow
def test_a_run_with_classes_names_them_and_goes_on_as_it_was(
    place: Place, cache: Path, run: Path, tmp_path: Path
) -> None:
    assert load_config(run / "config.yaml").classes == ("dawn", "dusk")
    assert load_model(run, "cpu").config.classes == ("dawn", "dusk")
    place.train("diffusion", tmp_path / "run", LABELS, cache=cache, stop=stop_after(4))
    place.train("diffusion", tmp_path / "run", LABELS, cache=cache)
    assert difference(contents(tmp_path / "run"), contents(run)) == []
    assert "val_loss_prefix" in metrics(run)[-1]
    told = json.loads(CliRunner().invoke(app, ["info", str(run), "--json"]).stdout)
    assert told["classes"] == ["dawn", "dusk"]


def test_classes_change_no_other_draw(place: Place, cache: Path, run: Path, tmp_path: Path) -> None:
    """The network starts as one without classes, and its first losses show it."""
    place.train("diffusion", tmp_path / "run", cache=cache)
    without, found = series(tmp_path / "run", "loss"), series(run, "loss")
    assert found[0] == without[0]
    assert found[-1] != without[-1]


def test_without_a_cache_folders_are_the_classes(
    place: Place, videos: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "data": videos, "cache": None, "autoencoder": str(place.first_stage)
    }  # fmt: skip
    run = tmp_path / "run"
    place.train("diffusion", run, LABELS, "data.cache=off", **options, stop=stop_after(2))
    assert load_model(run, "cpu").config.classes == ("dawn", "dusk")
    flat = {**options, "data": place.videos}
    with pytest.raises(DataError, match=r"data\.labels=true, but no video below"):
        place.train("diffusion", tmp_path / "b", LABELS, "data.cache=off", **flat)


def test_a_video_is_drawn_of_the_class_asked_for_or_of_one_by_lot(
    run: Path, tmp_path: Path
) -> None:
    def sidecars(name: str, **options: Any) -> list[dict[str, Any]]:
        result = api.sample(run, tmp_path / name, **QUICK, **options)
        return [json.loads(path.with_suffix(".json").read_text()) for path in result.videos]

    lot = sidecars("lot", num=6)
    assert {one["class"] for one in lot} == {"dawn", "dusk"}
    assert all(one["settings"]["class"] is None for one in lot)
    (named,) = sidecars("named", class_name=lot[0]["class"])
    with np.load(tmp_path / "lot/video-00000.npz") as a, np.load(tmp_path / "named/video-00000.npz") as b:  # fmt: skip
        np.testing.assert_allclose(a["frames"].astype(int), b["frames"].astype(int), atol=1)
    (numbered,) = sidecars("named", class_name=("dawn", "dusk").index(lot[0]["class"]))
    assert numbered == named  # the same setting, so the same video
    (none,) = sidecars("none", class_name="none")
    assert none["class"] == "none"
    guided = sidecars("guided", class_name="dusk", class_guidance=1.5, guidance=0.5)
    words = guided[0]["command"].split()
    assert words[words.index("--class") + 1] == "dusk"
    assert words[words.index("--class-guidance") + 1] == "1.5"
    again = CliRunner().invoke(app, [*words[1:], "--out", str(tmp_path / "guided"), "--json"])
    assert json.loads(again.stdout)["made"] == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_name": "dusc"}, r"no such class; did you mean 'dusk'\? \(known: dawn, dusk\)"),
        ({"class_name": "2"}, "--class '2': .* no such class"),
        ({"class_guidance": -1.0}, "--class-guidance -1.0: expected a number from 0 up"),
        ({"class_name": "none", "class_guidance": 1.0}, "there is no class to follow"),
    ],
)
def test_impossible_classes_are_refused(
    run: Path, tmp_path: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PvdmError, match=said):
        api.sample(run, tmp_path / "out", **QUICK, **options)
    assert not (tmp_path / "out").exists()


def test_a_model_without_classes_refuses_them(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(PvdmError, match="was trained without classes"):
        api.sample(whole("diffusion"), tmp_path, class_name="dusk", **QUICK)
    with pytest.raises(PvdmError, match=r"--class-guidance 1\.0: there is no class to follow"):
        api.sample(whole("diffusion"), tmp_path, class_guidance=1.0, **QUICK)
    result = api.sample(whole("diffusion"), tmp_path, **QUICK)
    told = json.loads(result.videos[0].with_suffix(".json").read_text())
    assert "class" not in told
    assert "class" not in told["settings"]


def test_a_model_that_never_dropped_the_class_knows_no_other_than_its_own(
    place: Place, cache: Path, tmp_path: Path
) -> None:
    always = (LABELS, "diffusion.class_dropout=0")
    place.train("diffusion", tmp_path / "run", *always, cache=cache, stop=stop_after(1))
    for options in ({"class_name": "none"}, {"class_guidance": 1.0}):
        with pytest.raises(PvdmError, match="class_dropout=0 and knows nothing but its classes"):
            api.sample(tmp_path / "run", tmp_path / "out", **QUICK, **options)
    api.sample(tmp_path / "run", tmp_path / "out", **QUICK)


def test_a_model_with_classes_cannot_be_written_as_published(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="denoiser"):
        api.export_published(run, tmp_path / "a")  # of positions and the like
    plain = tmp_path / "plain"
    model = load_model(run, "cpu")
    card = json.loads((run / "checkpoints/step-00000012/model/model.json").read_text())
    shutil.copytree(run / "checkpoints/step-00000012/model", plain)
    card["config"]["denoiser"] |= {"positions": False, "normalise": False}
    card["config"]["diffusion"]["prefix_noise"] = 0.0
    (plain / "model.json").write_text(json.dumps(card))
    assert model.config.classes
    with pytest.raises(
        ModelError, match=r"data\.labels=true, which the published U-Net cannot hold"
    ):
        api.export_published(plain, tmp_path / "b")


def test_classes_of_the_cache_must_be_those_the_run_began_with(
    place: Place, videos: Path, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"has no classes: give it some by `pvdm encode"):
        place.train("diffusion", tmp_path / "a", LABELS)
    shutil.copytree(videos, tmp_path / "videos")
    (tmp_path / "videos/noon").mkdir()
    (one, *_) = find_videos(tmp_path / "videos")
    shutil.copy(one.path, tmp_path / "videos/noon/x.mp4")
    more = tmp_path / "cache"
    named = {"autoencoder": str(place.first_stage), "device": "cpu", "labels": "folders"}
    api.encode(tmp_path / "videos", more, **named)
    assert Cache.open(more).manifest.labels == ("dawn", "dusk", "noon")
    changed = Path(shutil.copytree(run, tmp_path / "run"))
    with pytest.raises(ConfigError, match=r"started with other classes \(noon new\); use those"):
        place.train("diffusion", changed, LABELS, cache=more)
    with pytest.raises(DataError, match=r"has the class 'noon', which denoiser\.classes does not"):
        place.train("diffusion", changed, LABELS, "denoiser.classes=[dawn,dusk]", cache=more)
    with pytest.raises(ConfigError, match=r"other classes \(in another order\)"):
        place.train("diffusion", changed, LABELS, "denoiser.classes=[dusk,dawn]", cache=more)


def test_weights_without_classes_can_learn_some_and_others_must_keep_theirs(
    place: Place, cache: Path, run: Path, whole: Any, tmp_path: Path
) -> None:
    more = (LABELS, "training.steps=1", "training.lr=1e-12")
    place.train("diffusion", tmp_path / "a", *more, f"init={whole('diffusion')}", cache=cache)
    before, after = (load_model(path, "cpu").denoiser for path in (whole("diffusion"), tmp_path / "a"))  # fmt: skip
    assert before is not None
    assert after is not None
    for key, value in before.state_dict().items():
        torch.testing.assert_close(after.state_dict()[key], value, atol=1e-6, rtol=1e-5)
    for classes, told in (("[dusk,dawn]", "this run dusk, dawn"), ("[]", "this run none")):
        off = [LABELS, f"denoiser.classes={classes}"] if classes != "[]" else []
        with pytest.raises(ModelError, match=f"knows the classes dawn, dusk, {told}"):
            place.train("diffusion", tmp_path / "b", *off, f"init={run}", cache=cache)


@pytest.mark.parametrize(
    ("stage", "overrides", "said"),
    [
        ("autoencoder", [LABELS], "data.labels belongs to stage: diffusion"),
        ("diffusion", ["diffusion.class_dropout=0.2"], "class_dropout needs data.labels=true"),
        ("diffusion", ["denoiser.classes=[a]"], "denoiser.classes needs data.labels=true"),
        ("diffusion", [LABELS, "denoiser.classes=[a,b,a]"], "classes holds 'a' twice"),
    ],
)
def test_keys_that_would_change_nothing_are_refused(
    place: Place, tmp_path: Path, stage: str, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        place.train(stage, tmp_path / "run", *overrides)


def two_kinds(place: Place, path: Path) -> Path:
    """A cache of twenty videos of two clips each: latents of about 0.6, or of about -0.6."""
    model = load_model(place.first_stage, "cpu")
    identity, latent = identity_of(model), model.config.latent
    names = [f"{('high', 'low')[k % 2]}/{k:02d}.mp4" for k in range(20)]
    of = {name: name.partition("/")[0] for name in names}
    rng = np.random.default_rng(0)
    with CacheWriter(path, identity, autoencoder=str(place.first_stage)) as writer:
        for row in writer.plan([Stamp(name, 1, 1) for name in names], ["high", "low"], of).todo:
            level = 0.6 - 1.2 * row.label
            z = rng.normal(level, 0.05, (2, latent.c, latent.flat)).astype(np.float16)
            writer.add(np.array([(row.video, first, row.label) for first in (0, 8)]), z)
            writer.end_video(row.video, frames=16, fps=8.0)
        writer.finish()
    return path


@pytest.mark.slow
def test_samples_are_of_the_class_asked_for(place: Place, tmp_path: Path) -> None:
    cache, run = two_kinds(place, tmp_path / "cache"), tmp_path / "run"
    place.train(
        "diffusion", run, LABELS, "training.steps=60", "training.batch_size=8",
        "training.lr=3e-3", "training.sample_every=0", "diffusion.objective=x0", cache=cache,
    )  # fmt: skip
    model = load_model(run, "cpu")

    def level(label: int, guidance: float) -> torch.Tensor:
        """Mean of each of eight samples."""
        (z0,) = rollout_latents(
            model, 1, generators=[generator("cpu", 0, i) for i in range(8)],
            sampling=Sampling(steps=Steps(6, 6), class_guidance=guidance),
            labels=torch.full((8,), label),
        )  # fmt: skip
        return z0.mean(dim=(1, 2))

    for guidance in (0.0, 1.0):
        high, low = level(0, guidance), level(1, guidance)
        assert ((high - 0.6).abs() < 0.2).all(), high
        assert ((low + 0.6).abs() < 0.2).all(), low
