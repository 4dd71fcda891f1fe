"""A procedural sky time-lapse: endless by seed, numpy only; the data of `pvdm demo`.

A layer of fractal cloud hangs overhead, a thin veil above it, both seen in perspective: clouds grow
and speed up towards the zenith and sink into haze at the horizon; day turns to dusk and night; hills
stand in front. Axes: s frames, h rows (0 on top), w columns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.video.write import write_video

Array = NDArray[np.floating[Any]]

TEXTURE = 256  # side of the periodic cloud textures
FPS = 10


class Palette(NamedTuple):
    """Colours of one hour of the day, RGB in [0, 1]."""

    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    cloud: tuple[float, float, float]
    shade: tuple[float, float, float]


HOURS = (
    Palette((0.16, 0.36, 0.72), (0.66, 0.80, 0.92), (0.98, 0.98, 0.98), (0.66, 0.70, 0.76)),  # noon
    Palette((0.20, 0.34, 0.62), (0.93, 0.78, 0.58), (1.00, 0.93, 0.82), (0.62, 0.58, 0.62)),  # gold
    Palette((0.16, 0.18, 0.40), (0.95, 0.50, 0.28), (0.98, 0.60, 0.44), (0.38, 0.30, 0.42)),  # dusk
    Palette(
        (0.04, 0.06, 0.18), (0.34, 0.22, 0.34), (0.30, 0.26, 0.38), (0.12, 0.12, 0.22)
    ),  # night
)


def fractal(rng: np.random.Generator, roughness: float) -> Array:
    """Draw a periodic texture [TEXTURE, TEXTURE] with spectrum 1/f^roughness, mean 0, std 1."""
    f = np.fft.fftfreq(TEXTURE) * TEXTURE
    radius = np.hypot(f[:, None], f[None, :])
    radius[0, 0] = np.inf
    # Below 2 cycles and above 24 nothing: no cloud as wide as the sky, none finer than a pixel.
    amplitude = radius**-roughness * (radius >= 2) * np.exp(-((radius / 24) ** 2))
    noise = rng.standard_normal((TEXTURE, TEXTURE))
    texture = np.fft.ifft2(np.fft.fft2(noise) * amplitude).real
    return (texture / texture.std()).astype(np.float32)


def sample_periodic(texture: Array, rows: Array, columns: Array) -> Array:
    """Read a periodic texture at real positions, bilinearly."""
    r0, c0 = np.floor(rows), np.floor(columns)
    fr, fc = rows - r0, columns - c0
    r, c = r0.astype(np.int64) % TEXTURE, c0.astype(np.int64) % TEXTURE
    r1, c1 = (r + 1) % TEXTURE, (c + 1) % TEXTURE
    top = texture[r, c] * (1 - fc) + texture[r, c1] * fc
    bottom = texture[r1, c] * (1 - fc) + texture[r1, c1] * fc
    return top * (1 - fr) + bottom * fr


def smoothstep(x: Array) -> Array:
    """Ease from 0 to 1 for x in [0, 1], flat outside."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


class Sky:
    """One endless sky, fixed by its seed."""

    def __init__(self, seed: int, height: int = 64, width: int = 64) -> None:
        rng = np.random.default_rng(np.random.SeedSequence((seed, 0x5C1)))
        self.height, self.width = height, width
        self.textures = [fractal(rng, 2.0) for _ in range(3)]
        self.veil = rng.uniform(0, 1)
        self.cover = rng.uniform(0.0, 0.6)
        angle = rng.uniform(-0.5, 0.5) + (np.pi if rng.random() < 0.5 else 0.0)
        speed = rng.uniform(1.4, 2.8)
        self.wind = speed * np.array([np.sin(angle), np.cos(angle)])
        self.churn = rng.uniform(0.02, 0.04)
        self.hour = rng.uniform(0, 2.6)
        self.hour_speed = rng.uniform(0.001, 0.004)
        self.glow_column = rng.uniform(0.15, 0.85)
        self.horizon = rng.uniform(0.80, 0.9)
        phases = rng.uniform(0, 2 * np.pi, 4)
        waves = np.arange(1, 5) * rng.uniform(0.7, 1.3, 4)
        column = np.linspace(0, 1, width)[:, None] * 2 * np.pi
        ridge = (np.sin(column * waves + phases) / np.arange(1, 5)).sum(1)
        self.ridge = (self.horizon - 0.03 * (1 + ridge / 2)).astype(np.float32)  # [w]
        self._place_clouds()

    def _place_clouds(self) -> None:
        """Project every sky pixel onto the cloud layer: positions in texture units, [h, w]."""
        y = (np.arange(self.height, dtype=np.float32)[:, None] + 0.5) / self.height
        x = (np.arange(self.width, dtype=np.float32)[None] + 0.5) / self.width - 0.5
        elevation = np.clip((self.horizon - y) / self.horizon, 0, 1) + 0.35
        depth = 1.35 / elevation  # 1 at the zenith, about 3.9 at the horizon
        self.rows = (depth * 38) + 0 * x
        self.columns = x * depth * 52
        self.haze = smoothstep((elevation - 0.35) / 0.5)  # 0 at the horizon: clouds melt away
        self.up = np.clip((self.horizon - y) / self.horizon, 0, 1) + 0 * x

    def frame(self, index: int) -> NDArray[np.uint8]:
        """Render frame `index` (any integer), uint8 [h, w, 3]."""
        rows = self.rows + self.wind[0] * index
        columns = self.columns + self.wind[1] * index
        turn = self.churn * index
        density = self._density(rows, columns, turn)
        # Light comes from above: the cloud is darker where there is more of it further up.
        above = self._density(rows + 4, columns, turn)
        alpha = smoothstep((density + self.cover) / 1.3) * (0.25 + 0.75 * self.haze)
        light = np.clip(0.6 + 0.35 * (density - above), 0, 1)[..., None]
        # A second, higher layer: thin streaks that drift at a third of the speed.
        veil = sample_periodic(
            self.textures[2],
            self.rows / 2 + self.wind[0] * index / 3,
            self.columns / 6 + self.wind[1] * index / 3,
        )
        veil = 0.35 * self.veil * smoothstep((veil + 0.6) / 2.4)[..., None] * self.haze[..., None]
        hour = self.hour + self.hour_speed * index
        zenith, horizon, cloud, shade = day_colours(hour)
        up = self.up[..., None]
        glow = np.exp(-(((np.linspace(0, 1, self.width) - self.glow_column) / 0.35) ** 2))
        warm = (1 - up) ** 3 * glow[None, :, None].astype(np.float32) * 0.25
        sky = horizon + (zenith - horizon) * np.sqrt(up)
        sky = sky + warm * (horizon - sky * 0.5)
        sky = sky + (cloud - sky) * veil
        lit = shade + (cloud - shade) * light
        image = sky + (lit - sky) * alpha[..., None]
        y = (np.arange(self.height, dtype=np.float32)[:, None] + 0.5) / np.float32(self.height)
        ground = smoothstep((y - self.ridge[None]) * self.height * 0.7 + 0.5)[..., None]
        image = image + (0.16 * horizon + 0.02 - image) * ground
        return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)

    def _density(self, rows: Array, columns: Array, turn: float) -> Array:
        """Mix two textures by an angle, so that the cloud changes shape and keeps its spread."""
        first, second = (sample_periodic(each, rows, columns) for each in self.textures[:2])
        return np.float32(np.cos(turn)) * first + np.float32(np.sin(turn)) * second

    def frames(self, count: int, start: int = 0) -> Iterator[NDArray[np.uint8]]:
        """Yield frames start, start+1, ..."""
        for index in range(start, start + count):
            yield self.frame(index)


def day_colours(hour: float) -> tuple[Array, Array, Array, Array]:
    """Mix the palettes of `HOURS` at a real hour (reflected at both ends)."""
    span = len(HOURS) - 1
    folded = abs((hour + span) % (2 * span) - span)
    first = min(int(folded), span - 1)
    mix = np.float32(folded - first)
    a, b = np.array(HOURS[first], np.float32), np.array(HOURS[first + 1], np.float32)
    zenith, horizon, cloud, shade = a + (b - a) * mix
    return zenith, horizon, cloud, shade


def write_skies(
    out: Path,
    num: int,
    *,
    frames: int = 64,
    seed: int = 0,
    height: int = 64,
    width: int = 64,
    reporter: Reporter = SILENT,
) -> list[Path]:
    """Write skies seed, seed+1, ... as mp4 files named by their seed; keep those already there.

    Raises:
        PvdmError: If the folder cannot be written.
    """
    paths = [out / f"sky-{number:06d}.mp4" for number in range(seed, seed + num)]
    reporter.start("drawing skies", num, "video")
    for number, path in enumerate(paths, start=seed):
        if not path.exists():
            video = np.stack(list(Sky(number, height, width).frames(frames)))
            write_video(path, video, FPS, quality=95)
        reporter.advance()
    reporter.done()
    return paths
