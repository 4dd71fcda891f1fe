import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from pvdm_cli.config import ClipConfig
from pvdm_cli.errors import ConfigError
from pvdm_cli.video.resize import Box, Geometry, crop, fit


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


def exact_area(frame: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float64]:
    """Blow every pixel up until the new edges fall on pixel edges, then take plain means."""
    old_height, old_width, _ = frame.shape
    blown = frame.astype(np.float64).repeat(height, 0).repeat(width, 1)
    return blown.reshape(height, old_height, width, old_width, 3).mean((1, 3))


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        ((240, 320), (64, 64), Box(0, 40, 240, 240)),
        ((320, 240), (64, 64), Box(40, 0, 240, 240)),
        ((240, 320), (64, 96), Box(13, 0, 213, 320)),
        ((100, 301), (32, 64), Box(0, 50, 100, 200)),
        ((64, 96), (128, 192), Box(0, 0, 64, 96)),
        ((1, 500), (64, 64), Box(0, 249, 1, 1)),
    ],
)
def test_the_crop_is_the_largest_centred_box_of_the_targets_shape(
    size: tuple[int, int], target: tuple[int, int], box: Box
) -> None:
    assert crop(*size, Geometry(*target)) == box


@pytest.mark.parametrize(("size", "target"), [((48, 64), (12, 16)), ((35, 56), (20, 32))])
def test_area_is_the_exact_mean_of_what_each_pixel_covers(
    size: tuple[int, int], target: tuple[int, int]
) -> None:
    frame = noise(*size)
    found = fit(frame, Geometry(*target, "area"))
    assert np.abs(found - exact_area(frame, *target)).max() <= 0.5 + 1e-3


def test_area_keeps_a_flat_colour() -> None:
    frame = np.full((107, 95, 3), (3, 130, 255), np.uint8)
    assert np.unique(fit(frame, Geometry(40, 24)).reshape(-1, 3), axis=0).tolist() == [
        [3, 130, 255]
    ]


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(("size", "target"), [((61, 90), (32, 32)), ((20, 30), (48, 64))])
def test_bilinear_is_torchs_on_floats_within_a_grey_level(
    size: tuple[int, int], target: tuple[int, int], antialias: bool
) -> None:
    frame = noise(*size)
    box = crop(*size, Geometry(*target))
    cut = frame[box.top : box.top + box.height, box.left : box.left + box.width]
    x = torch.from_numpy(cut.copy()).permute(2, 0, 1)[None].float()
    expected = F.interpolate(x, target, mode="bilinear", align_corners=False, antialias=antialias)[
        0
    ].permute(1, 2, 0)
    found = fit(frame, Geometry(*target, "bilinear", antialias))
    assert np.abs(found - expected.numpy()).max() <= 1


def test_area_of_a_growing_frame_is_bilinear() -> None:
    frame = noise(20, 30)
    area = fit(frame, Geometry(50, 75, "area")).astype(int)
    assert np.abs(area - fit(frame, Geometry(50, 75, "bilinear", False))).max() <= 1


@pytest.mark.parametrize("resize", ["area", "bilinear", "lanczos"])
def test_every_filter_gives_the_size_and_keeps_the_mean(resize: str) -> None:
    frame = noise(97, 131)
    found = fit(frame, Geometry(24, 40, resize))
    assert found.shape == (24, 40, 3)
    assert found.dtype == np.uint8
    assert found.flags.c_contiguous
    assert abs(found.mean() - frame.mean()) < 2


@pytest.mark.parametrize("resize", ["area", "bilinear", "lanczos"])
def test_a_frame_of_the_right_size_is_left_alone(resize: str) -> None:
    frame = noise(24, 40)
    assert np.array_equal(fit(frame, Geometry(24, 40, resize)), frame)


def test_resizing_does_not_swap_axes_or_channels() -> None:
    frame = np.zeros((40, 60, 3), np.uint8)
    frame[:20, 30:, 2] = 200  # upper right, blue
    for resize in ("area", "bilinear", "lanczos"):
        found = fit(frame, Geometry(8, 12, resize))
        assert np.abs(found[1, 10] - np.array([0, 0, 200])).max() <= 1  # torch's uint8 rounding
        assert found[6:].max() <= 10  # Lanczos rings
        assert found[:, :4].max() <= 10


def test_geometry_comes_out_of_the_clip_configuration() -> None:
    clip = ClipConfig(frames=4, height=32, width=64, resize="bilinear", antialias=False)
    assert Geometry.of(clip) == Geometry(32, 64, "bilinear", False)


def test_antialias_cannot_be_taken_off_a_filter_that_is_one() -> None:
    clip = ClipConfig(frames=4, height=32, width=64, resize="lanczos", antialias=False)
    with pytest.raises(ConfigError, match=r"clip\.antialias=false goes with .*bilinear"):
        Geometry.of(clip)
