"""I3D: its shapes, its padding, and the published values of the real weights."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from pvdm_cli.errors import DataError
from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.i3d import I3D, Pool, pad_same, prepare, same_padding

CPU = torch.device("cpu")


@pytest.fixture
def real_detector(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Detector:
    path = shared / "reference" / "fvd" / "i3d_kinetics400.safetensors"
    monkeypatch.setenv("PVDM_I3D", str(path))
    return Detector.load(CPU)


def logits(network: I3D, value: float, frames: int) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.full((1, 3, frames, 224, 224), float(value)))[0]


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [
        (224, 7, 2, (2, 3)),
        (15, 7, 2, (3, 3)),
        (112, 3, 2, (0, 1)),
        (7, 3, 1, (1, 1)),
        (8, 2, 2, (0, 0)),
    ],
)
def test_padding_is_that_of_tensorflow(
    size: int, kernel: int, stride: int, expected: tuple[int, int]
) -> None:
    assert same_padding(size, kernel, stride) == expected
    padded = size + sum(expected)
    assert (padded - kernel) // stride + 1 == -(-size // stride)  # "SAME": ceil(size / stride)


@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((1, 3, 3), (1, 2, 2)),
        ((3, 3, 3), (2, 2, 2)),
        ((2, 2, 2), (2, 2, 2)),
        ((3, 3, 3), (1, 1, 1)),
    ],
)
def test_the_maximum_axis_by_axis_is_that_of_the_window(
    kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> None:
    x = torch.rand(2, 3, 7, 9, 12)
    expected = F.max_pool3d(pad_same(x, kernel, stride), kernel, stride)
    assert torch.equal(Pool(kernel, stride)(x), expected)


def test_frames_of_the_right_size_are_only_brought_to_the_range() -> None:
    frames = torch.randint(0, 256, (1, 2, 224, 224, 3), dtype=torch.uint8)
    x = prepare(frames)
    torch.testing.assert_close(x, frames.permute(0, 4, 1, 2, 3) / 127.5 - 1)


def test_other_sizes_are_resized_frame_by_frame_and_not_blurred() -> None:
    frames = torch.randint(0, 256, (1, 3, 32, 48, 3), dtype=torch.uint8)
    single = F.interpolate(
        frames[0].permute(0, 3, 1, 2).float(), (224, 224), mode="bilinear", align_corners=False
    )
    expected = single.permute(1, 0, 2, 3)[None] / 127.5 - 1
    torch.testing.assert_close(prepare(frames), expected, atol=1e-5, rtol=0)


def test_the_published_logits_of_a_dark_video(real_detector: Detector) -> None:
    found = logits(real_detector.network, -1, 15)
    first = torch.tensor([0.7422105, 2.829727, 0.39993525])
    last = torch.tensor([-0.38092658, 0.65539014, -1.4021297])
    torch.testing.assert_close(found[:3], first, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(found[-3:], last, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("frames", "seen"),
    [(16, 152.9020), pytest.param(30, 151.3925, marks=pytest.mark.slow)],
)
def test_the_published_distance_of_dark_from_bright(
    real_detector: Detector, frames: int, seen: float
) -> None:
    dark, bright = (logits(real_detector.network, value, frames) for value in (-1, 1))
    assert float((dark - bright).square().sum()) == pytest.approx(seen, rel=1e-4)


def test_the_features_of_a_clip_do_not_depend_on_its_batch(real_detector: Detector) -> None:
    clips = torch.randint(0, 256, (2, 9, 16, 24, 3), dtype=torch.uint8)
    together = real_detector.features(clips)
    alone = real_detector.features(clips[1:])
    assert together.shape == (2, 400)
    torch.testing.assert_close(
        torch.tensor(together[1:]), torch.tensor(alone), atol=1e-4, rtol=1e-4
    )


def test_clips_too_short_for_i3d_are_refused(real_detector: Detector) -> None:
    with pytest.raises(DataError, match="9 frames or more, not 8"):
        real_detector.features(torch.zeros(1, 8, 16, 24, 3, dtype=torch.uint8))
