"""What videos start from: seeds, noise in between, a clip to continue, a clip to change."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CONFIG, tiny_model
from typer.testing import CliRunner

from pvdm_cli import api
from pvdm_cli.cli.app import app
from pvdm_cli.data.cache import Cache
from pvdm_cli.diffusion.steps import plan
from pvdm_cli.encoder import encode_clips
from pvdm_cli.errors import PvdmError
from pvdm_cli.latents import unflatten
from pvdm_cli.model import load_model, save_model
from pvdm_cli.noise import Arc, fill
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import SAMPLERS
from pvdm_cli.video import pixels, read
from pvdm_cli.video.synthetic import write_skies
from pvdm_cli.video.write import write_video

QUICK = {"frames": 10, "steps": "4/2", "device": "cpu", "format": "npz"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model whose clips share a frame."""
    assert CONFIG.diffusion is not None
    diffusion = CONFIG.diffusion.model_copy(update={"overlap": 1})
    path = tmp_path_factory.mktemp("model") / "tiny"
    config = CONFIG.model_copy(update={"diffusion": diffusion})
    save_model(replace(tiny_model(), config=config), path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn clouds: 11 frames of 64 x 64."""
    folder = tmp_path_factory.mktemp("skies")
    write_skies(folder, 1, frames=11)
    return next(folder.glob("*.mp4"))


def frames_of(path: Path) -> np.ndarray:
    with np.load(path) as file:
        return np.asarray(file["frames"])


def differ(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b).mean())


def test_each_seed_of_a_list_gives_the_first_video_of_its_run(model: Path, tmp_path: Path) -> None:
    result = api.sample(model, tmp_path / "a", seeds=(5, 1), **QUICK)
    assert [path.name for path in result.videos] == ["seed-00005.npz", "seed-00001.npz"]
    for path, seed in zip(result.videos, (5, 1), strict=True):
        alone = api.sample(model, tmp_path / str(seed), seed=seed, **QUICK).videos[0]
        assert np.abs(frames_of(path).astype(int) - frames_of(alone)).max() <= 1
    more = api.sample(model, tmp_path / "a", seeds=(1, 5, 9), **QUICK)
    assert (more.made, len(more.videos)) == (1, 3)
    with pytest.raises(PvdmError, match="seed unset instead of 0"):
        api.sample(model, tmp_path / "a", **QUICK)


def test_videos_between_two_seeds_lead_from_one_to_the_other(model: Path, tmp_path: Path) -> None:
    result = api.sample(model, tmp_path / "arc", between=(3, 8), num=5, batch_size=1, **QUICK)
    found = [frames_of(path) for path in result.videos]
    for place, seed in ((0, 3), (-1, 8)):
        alone = api.sample(model, tmp_path / str(seed), seed=seed, batch_size=1, **QUICK)
        assert np.array_equal(found[place], frames_of(alone.videos[0]))
    from_first = [differ(found[0], other) for other in found]
    assert from_first[1] < from_first[2] < max(from_first[3:])
    told = json.loads((tmp_path / "arc/video-00001.json").read_text())
    assert told["fraction"] == 0.25
    with pytest.raises(PvdmError, match="num 5 instead of 3"):
        api.sample(model, tmp_path / "arc", between=(3, 8), num=3, **QUICK)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_noise_in_between_is_normal_and_goes_on_from_its_state(fraction: float) -> None:
    arc = Arc(generator("cpu", 1), generator("cpu", 2), fraction)

    def draw(of: Arc) -> torch.Tensor:
        row = torch.empty(4, 5000)
        fill(row, of)
        return row

    first = draw(arc)
    assert abs(first.mean()) < 0.03
    assert abs(first.std() - 1) < 0.02
    state = arc.get_state()
    second = draw(arc)
    other = Arc(generator("cpu", 5), generator("cpu", 6), fraction)
    other.set_state(state)
    assert torch.equal(draw(other), second)


def test_a_video_is_continued_from_its_last_clip(model: Path, video: Path, tmp_path: Path) -> None:
    fresh = frames_of(api.sample(model, tmp_path / "fresh", **QUICK).videos[0])
    result = api.sample(model, tmp_path / "a", prefix=video, num=2, **QUICK)
    kept = api.sample(model, tmp_path / "b", prefix=video, keep_prefix=True, num=2, **QUICK)
    found, whole = frames_of(result.videos[0]), frames_of(kept.videos[0])
    assert (len(found), len(whole)) == (10, 14)
    assert np.array_equal(whole[4:], found)
    assert differ(found, fresh) > 1
    assert differ(found, frames_of(result.videos[1])) > 1
    loaded = load_model(model, "cpu")
    last = whole_clip(loaded, video, last=True)
    z = torch.from_numpy(encode_clips(loaded, last[None])).float()
    decoded = loaded.autoencoder.decode(unflatten(z, loaded.config.latent))
    assert np.array_equal(whole[:3], pixels.to_uint8(decoded)[0, :3].numpy())


def whole_clip(loaded: api.Model, video: Path, *, last: bool) -> np.ndarray:
    """The first or last clip of a video as `pvdm encode` reads it."""
    frames = read.read(video, read.Geometry.of(loaded.config.clip))
    return frames[-4:] if last else frames[:4]


def test_a_clip_of_a_cache_is_continued_as_its_video_is(
    model: Path, video: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    api.encode(video, cache, autoencoder=str(model), window_stride=1, device="cpu")
    last = len(Cache.open(cache)) - 1
    row = api.sample(model, tmp_path / "row", prefix=f"{cache}#{last}", **QUICK).videos[0]
    same = api.sample(model, tmp_path / "video", prefix=video, **QUICK).videos[0]
    assert np.array_equal(frames_of(row), frames_of(same))
    for text, told in (
        (f"{cache}#{last + 1}", f"the cache has the rows 0 to {last}"),
        (f"{cache}#x", "CACHE#ROW, where ROW is a number"),
        (str(cache), "say which clip of it"),
        (f"{tmp_path}#0", "manifest"),
    ):
        with pytest.raises(PvdmError, match=told):
            api.sample(model, tmp_path / "no", prefix=text, **QUICK)
    other = tiny_model()
    next(other.autoencoder.parameters()).add_(0.01)
    save_model(other, tmp_path / "other")
    with pytest.raises(PvdmError, match="was made by the autoencoder with fingerprint"):
        api.sample(tmp_path / "other", tmp_path / "no", prefix=f"{cache}#0", **QUICK)
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_less_is_noised_away_the_more_of_a_clip_stays(
    model: Path, video: Path, tmp_path: Path, sampler: str
) -> None:
    loaded = load_model(model, "cpu")
    z = torch.from_numpy(encode_clips(loaded, whole_clip(loaded, video, last=False)[None])).float()
    decoded = loaded.autoencoder.decode(unflatten(z, loaded.config.latent))
    clip = pixels.to_uint8(decoded)[0].numpy()
    settings = {**QUICK, "frames": 4, "steps": "20/2", "sampler": sampler}
    away = []
    for strength in (0.05, 0.5, 1.0):
        out = tmp_path / str(strength)
        made = api.sample(model, out, init=video, strength=strength, **settings)
        away.append(differ(frames_of(made.videos[0])[:3], clip[:3]))
    assert away[0] < away[1] < away[2] + 1
    assert away[0] < away[2]
    plain = api.sample(model, tmp_path / "plain", **settings)
    assert np.array_equal(frames_of(made.videos[0]), frames_of(plain.videos[0]))


def test_a_run_below_full_strength_takes_the_last_steps_of_a_whole_one() -> None:
    schedule = tiny_model().schedule
    assert schedule is not None
    whole = plan(schedule, 10)
    assert plan(schedule, 10, strength=0.5) == whole[5:]
    assert plan(schedule, 10, strength=1.0) == whole
    assert plan(schedule, 2, strength=0.4) == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seeds": (1, 5), "num": 2}, "--seeds draws one video for each seed"),
        ({"seeds": (1, 1)}, "--seeds 1,1: each seed once"),
        ({"between": (3, 8)}, "--between needs two different seeds and --num 2 or more"),
        ({"prefix": "VIDEO", "init": "VIDEO"}, "a video begins with either"),
        ({"keep_prefix": True}, "--keep-prefix needs --prefix"),
        ({"strength": 0.5}, "--strength belongs to --init"),
        ({"init": "VIDEO", "strength": 1.5}, "--strength 1.5: expected a number above 0"),
        ({"init": "VIDEO", "strength": 0.2}, "--strength 0.2: the last of 4 steps starts at 0.25"),
        ({"seconds": 2.0}, "--frames 10 and --seconds 2: give one of them"),
        ({"seconds": 0.0, "frames": None}, "--seconds 0.0: expected a number above 0"),
        ({"prefix": "nowhere.mp4"}, "nowhere.mp4: No such file"),
        ({"prefix": "SHORT"}, "only 3 frames; a clip needs 4"),
        ({"columns": 2}, "--columns belongs to --grid"),
        ({"quality": 30}, "--quality belongs to mp4 and webp, not npz"),
    ],
)
def test_starts_that_cannot_be_are_one_sentence_and_leave_no_folder(
    model: Path, video: Path, tmp_path: Path, options: dict[str, object], told: str
) -> None:
    short = tmp_path / "short.mp4"
    write_video(short, np.zeros((3, 16, 24, 3), np.uint8), 7)
    places = {"VIDEO": str(video), "SHORT": str(short)}
    given = {key: places.get(str(value), value) for key, value in options.items()}
    with pytest.raises(PvdmError) as caught:
        api.sample(model, tmp_path / "out", **{**QUICK, **given})
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_seconds_are_as_many_frames_as_the_rate_makes_of_them(model: Path, tmp_path: Path) -> None:
    result = api.sample(model, tmp_path, seconds=1.5, **{**QUICK, "frames": None})
    assert (result.frames, result.fps) == (10, 7.0)  # 10.5 to even


@pytest.mark.parametrize(
    "options",
    [
        ["--seeds", "4,2", "--no-clamp"],
        ["--between", "1,2", "--num", "3"],
        ["--prefix", "VIDEO", "--keep-prefix"],
        ["--init", "VIDEO", "--strength", "0.5", "--quality", "60", "--format", "webp"],
    ],
)
def test_the_command_in_the_sidecar_makes_the_same_again(
    model: Path, video: Path, tmp_path: Path, options: list[str]
) -> None:
    words = [str(video) if word == "VIDEO" else word for word in options]
    common = ["--frames", "5", "--steps", "4/2", "--device", "cpu", "-q"]
    first = CliRunner().invoke(
        app, ["sample", str(model), *words, *common, "--out", str(tmp_path / "a")]
    )
    assert first.exit_code == 0, first.output
    sidecar = next((tmp_path / "a").glob("*.json"))
    again = shlex.split(json.loads(sidecar.read_text())["command"])
    done = CliRunner().invoke(app, [*again[1:], "--out", str(tmp_path / "b"), "-q"])
    assert done.exit_code == 0, done.output
    for path in sorted((tmp_path / "a").iterdir()):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    skipped = CliRunner().invoke(app, [*again[1:], "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(skipped.stdout)["made"] == 0
