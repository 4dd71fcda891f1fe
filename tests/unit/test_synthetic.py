"""The procedural sky: fixed by its seed, moving, of different hours."""

from pathlib import Path

import numpy as np
import pytest

from pvdm_cli.video.read import probe, read
from pvdm_cli.video.synthetic import (
    FPS,
    HOURS,
    TEXTURE,
    Sky,
    day_colours,
    fractal,
    sample_periodic,
    write_skies,
)


def video(seed: int, frames: int = 8) -> np.ndarray:
    return np.stack(list(Sky(seed, 24, 40).frames(frames)))


def test_a_seed_fixes_the_sky_and_another_gives_another() -> None:
    first = video(3)
    assert first.shape == (8, 24, 40, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, video(3))
    assert np.abs(first.astype(int) - video(4)).mean() > 2


def test_any_frame_can_be_drawn_by_itself_even_before_the_first() -> None:
    sky = Sky(5, 24, 40)
    np.testing.assert_array_equal(np.stack(list(sky.frames(3, start=4))), video(5)[4:7])
    assert sky.frame(-100).shape == (24, 40, 3)
    assert sky.frame(100_000).shape == (24, 40, 3)


@pytest.mark.parametrize("seed", range(6))
def test_neighbouring_frames_differ_a_little_and_distant_ones_more(seed: int) -> None:
    frames = video(seed, 33).astype(float)
    step = np.abs(np.diff(frames, axis=0)).mean((1, 2, 3))
    assert step.min() > 0.2
    assert step.max() < 12
    assert np.abs(frames[32] - frames[0]).mean() > step.mean()


def test_brightness_uses_the_range_without_sticking_to_its_ends() -> None:
    skies = np.stack([Sky(seed, 24, 40).frame(0) for seed in range(24)])
    assert skies.min() < 60
    assert skies.max() > 180
    assert np.isin(skies, (0, 255)).mean() < 0.02


def test_the_ground_is_darker_than_the_sky_and_stands_still() -> None:
    for seed in range(4):
        frames = video(seed).astype(float)
        assert frames[:, -1].mean() < frames[:, 8:14].mean()
        assert np.abs(np.diff(frames[:, -1], axis=0)).max() <= 2


def test_skies_show_different_hours() -> None:
    means = np.stack([Sky(seed, 24, 40).frame(0)[:6].mean((0, 1)) for seed in range(24)])
    blueness = means[:, 2] - means[:, 0]
    assert np.ptp(means.sum(1)) > 150
    assert np.ptp(blueness) > 40


def test_the_hours_pass_through_the_palettes_and_turn_back_at_both_ends() -> None:
    last = len(HOURS) - 1
    for hour in range(last + 1):
        np.testing.assert_allclose(day_colours(hour), np.array(HOURS[hour]), atol=1e-6)
    np.testing.assert_allclose(day_colours(last + 0.5), day_colours(last - 0.5), atol=1e-6)
    np.testing.assert_allclose(day_colours(-0.25), day_colours(0.25), atol=1e-6)
    np.testing.assert_allclose(day_colours(2 * last + 0.5), day_colours(0.5), atol=1e-6)
    middle = (np.array(HOURS[0]) + np.array(HOURS[1])) / 2
    np.testing.assert_allclose(day_colours(0.5), middle, atol=1e-6)


def test_textures_repeat_without_a_seam() -> None:
    texture = fractal(np.random.default_rng(0), 2.0)
    assert float(texture.std()) == pytest.approx(1, abs=1e-3)
    assert abs(float(texture.mean())) < 1e-3
    at = np.linspace(-3, 3, 7)
    here = sample_periodic(texture, at, at)
    np.testing.assert_allclose(here, sample_periodic(texture, at + TEXTURE, at - TEXTURE))
    inside = np.abs(np.diff(texture, axis=0)).max()
    assert np.abs(texture[0] - texture[-1]).max() < 2 * inside
    half = sample_periodic(texture, np.array([0.5]), np.array([7.0]))
    assert half[0] == pytest.approx((texture[0, 7] + texture[1, 7]) / 2, rel=1e-5)


def test_files_are_named_by_their_seeds_and_kept_when_there(tmp_path: Path) -> None:
    paths = write_skies(tmp_path, 2, frames=5, seed=7, height=24, width=40)
    assert [path.name for path in paths] == ["sky-000007.mp4", "sky-000008.mp4"]
    info = probe(paths[0])
    assert (info.num_frames, info.fps, info.height, info.width) == (5, FPS, 24, 40)
    stored = read(paths[0]).astype(float)
    assert np.abs(stored - video(7, 5)).mean() < 4
    stamp = paths[0].stat().st_mtime_ns
    more = write_skies(tmp_path, 3, frames=5, seed=7, height=24, width=40)
    assert len(more) == 3
    assert paths[0].stat().st_mtime_ns == stamp
