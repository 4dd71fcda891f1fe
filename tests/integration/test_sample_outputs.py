"""Every kind of file, read back by others: ffmpeg for frames, rate and size, Pillow for the rest."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from numpy.typing import NDArray
from PIL import Image
from tiny import tiny_model

from pvdm_cli import api
from pvdm_cli.generation.request import FORMATS
from pvdm_cli.model import save_model
from pvdm_cli.video import read
from pvdm_cli.video.synthetic import write_skies
from pvdm_cli.video.write import write_video

QUICK = {"frames": 10, "steps": "4/2", "device": "cpu"}
Frames = NDArray[np.uint8]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    path = tmp_path_factory.mktemp("model") / "tiny"
    save_model(tiny_model(), path)
    return path


@pytest.fixture(scope="module")
def exact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Frames:
    """The frames that every format holds, as they are."""
    out = tmp_path_factory.mktemp("exact")
    with np.load(api.sample(model, out, format="npz", fps=12.5, **QUICK).videos[0]) as file:
        return np.asarray(file["frames"])


def ffmpeg(*words: str) -> tuple[bytes, str]:
    """What the ffmpeg binary writes, and what it says."""
    command = [get_ffmpeg_exe(), "-hide_banner", "-nostdin", *words]
    done = subprocess.run(command, capture_output=True, check=False)
    return done.stdout, done.stderr.decode()


def psnr(a: Frames, b: Frames) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


@pytest.mark.parametrize(("kind", "db"), [("mp4", 20), ("gif", 20), ("webp", 20), ("png", 90)])
def test_ffmpeg_sees_the_frames_the_size_and_the_rate(
    model: Path, tmp_path: Path, exact: Frames, kind: str, db: float
) -> None:
    (video,) = api.sample(model, tmp_path, format=kind, fps=12.5, **QUICK).videos
    source = str(video / "%06d.png" if kind == "png" else video)
    raw, told = ffmpeg("-i", source, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    found = np.frombuffer(raw, np.uint8).reshape(-1, 16, 24, 3)
    assert len(found) == 10, told
    assert psnr(found, exact) > db
    if kind != "png":
        assert re.search(r"24x16.*12\.50? fps", told), told


def test_an_npz_is_an_array_that_numpy_reads(model: Path, tmp_path: Path, exact: Frames) -> None:
    (video,) = api.sample(model, tmp_path, format="npz", fps=12.5, **QUICK).videos
    with np.load(video, allow_pickle=False) as file:
        assert sorted(file.files) == ["about", "fps", "frames"]
        assert (file["frames"].shape, file["frames"].dtype) == ((10, 16, 24, 3), np.uint8)
        assert np.array_equal(file["frames"], exact)
        assert file["fps"] == 12.5
        assert json.loads(str(file["about"]))["settings"]["fps"] == 12.5


def test_pillow_sees_the_frames_of_a_webp(model: Path, tmp_path: Path, exact: Frames) -> None:
    (video,) = api.sample(model, tmp_path, format="webp", fps=12.5, quality=95, **QUICK).videos
    with Image.open(video) as image:
        assert (image.size, image.n_frames) == ((24, 16), 10)
        image.load()
        assert image.info["duration"] == 80
    assert psnr(read.read(video), exact) > 20


def told_inside(video: Path) -> str:
    """What a file of any kind says of itself, as other programs read it."""
    if video.suffix in (".mp4", ".gif"):
        text, _ = ffmpeg("-i", str(video), "-f", "ffmetadata", "-")
        (line,) = [line for line in text.decode().splitlines() if line.startswith("comment=")]
        return re.sub(r"\\(.)", r"\1", line.removeprefix("comment="))
    if video.suffix == ".npz":
        with np.load(video) as file:
            return str(file["about"])
    with Image.open(next(iter(sorted(video.iterdir()))) if video.is_dir() else video) as image:
        if video.suffix == ".webp":
            return str(image.getexif()[0x010E])
        return str(image.text["Comment"])


@pytest.mark.parametrize("kind", FORMATS)
def test_each_file_says_inside_how_it_was_made(model: Path, tmp_path: Path, kind: str) -> None:
    (video,) = api.sample(model, tmp_path, format=kind, seed=3, **QUICK).videos
    inside = told_inside_and_beside(video)
    assert inside["settings"]["seed"] == 3
    assert inside["command"].startswith("pvdm sample ")
    assert len(inside["settings"]["denoiser"]) == 64


def told_inside_and_beside(video: Path) -> dict[str, Any]:
    """What a file says of itself, which is what its sidecar says but for the configuration."""
    inside = json.loads(told_inside(video))
    beside = json.loads(video.with_suffix(".json").read_text())
    assert inside == {key: value for key, value in beside.items() if key != "config"}
    return inside


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mp4", "gif", "webp", "npz"])
def test_a_longer_file_says_inside_how_long_it_is_now(
    model: Path, tmp_path: Path, kind: str
) -> None:
    for frames in (5, 10):
        (video,) = api.sample(model, tmp_path, format=kind, **{**QUICK, "frames": frames}).videos
        assert told_inside_and_beside(video)["settings"]["frames"] == frames


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_run_twice_gives_the_same_bytes(model: Path, tmp_path: Path, kind: str) -> None:
    for name in ("a", "b"):
        api.sample(model, tmp_path / name, format=kind, num=2, grid="gif", sheet=3, **QUICK)
    files = sorted(path for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) > 6
    for path in files:
        other = tmp_path / "b" / path.relative_to(tmp_path / "a")
        assert path.read_bytes() == other.read_bytes(), path.name


def test_quality_trades_size_for_closeness(model: Path, tmp_path: Path) -> None:
    """Size of what is sampled; closeness of a sky, as an untrained network draws coloured noise."""
    write_skies(tmp_path / "skies", 1, frames=10)
    sky = read.read(next((tmp_path / "skies").glob("*.mp4")))
    sizes, close = [], []
    for quality in (20, 60, 95):
        out = tmp_path / str(quality)
        (video,) = api.sample(model, out, fps=12.5, quality=quality, **QUICK).videos
        sizes.append(video.stat().st_size)
        write_video(out / "sky.mp4", sky, fps=12.5, quality=quality)
        close.append(psnr(read.read(out / "sky.mp4"), sky))
    assert sizes == sorted(set(sizes))
    assert close == sorted(set(close))


def test_a_sheet_has_a_row_for_each_video_and_every_kth_frame(model: Path, tmp_path: Path) -> None:
    made = api.sample(model, tmp_path, num=3, sheet=4, format="npz", **QUICK)
    assert made.sheet == tmp_path / "sheet.png"
    with Image.open(made.sheet) as image:
        sheet = np.asarray(image)
    assert sheet.shape == (3 * 16 + 2 * 2, 3 * 24 + 2 * 2, 3)  # frames 0, 4 and 8
    for row, path in enumerate(made.videos):
        with np.load(path) as file:
            for column, frame in enumerate(file["frames"][::4]):
                top, left = row * 18, column * 26
                assert np.array_equal(sheet[top : top + 16, left : left + 24], frame)


def test_a_grid_has_as_many_columns_as_asked_for(model: Path, tmp_path: Path) -> None:
    made = api.sample(model, tmp_path, num=6, grid="mp4", columns=3, **QUICK)
    assert made.grid is not None
    height, width = 2 * 16 + 2, 3 * 24 + 2 * 2
    raw, told = ffmpeg("-i", str(made.grid), "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    assert len(raw) == 10 * height * width * 3, told
    assert re.search(rf"{width}x{height}.* 7 fps", told), told
