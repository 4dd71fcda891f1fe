import pytest
import torch

from pvdm_cli.video.pixels import to_float, to_uint8


def test_every_grey_level_survives_the_way_there_and_back() -> None:
    frames = torch.arange(256, dtype=torch.uint8).repeat(3).view(2, 8, 16, 3)
    assert torch.equal(to_uint8(to_float(frames)), frames)


def test_pixels_have_channels_before_frames() -> None:
    frames = torch.randint(0, 256, (5, 2, 4, 7, 3), dtype=torch.uint8)
    x = to_float(frames)
    assert x.shape == (5, 3, 2, 4, 7)
    assert x.dtype == torch.float32
    assert x.is_contiguous()
    torch.testing.assert_close(x[3, 1, 0, 2, 5], frames[3, 0, 2, 5, 1] / 127.5 - 1)


def test_black_and_white_are_minus_one_and_one() -> None:
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2, 1).expand(1, 1, 2, 3)
    assert to_float(frames)[0].flatten().tolist() == [-1, 1]


def test_halves_round_up_and_what_lies_outside_is_clamped() -> None:
    levels = torch.tensor([0.49, 0.51, 127.5, 254.49, 254.51, -30, 400])
    x = (levels.double() / 127.5 - 1).view(1, 1, 1, 7).expand(3, 1, 1, 7)
    assert to_uint8(x)[0, 0, :, 2].tolist() == [0, 1, 128, 254, 255, 0, 255]


def test_half_precision_pixels_are_accepted() -> None:
    frames = torch.randint(0, 256, (2, 3, 5, 3), dtype=torch.uint8)
    assert (to_uint8(to_float(frames).bfloat16()).int() - frames.int()).abs().max() <= 1


def test_swapped_axes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 3, 4, 5\]"):
        to_float(torch.zeros(2, 3, 4, 5, dtype=torch.uint8))
    with pytest.raises(ValueError, match="float32"):
        to_float(torch.zeros(2, 4, 5, 3))
    with pytest.raises(ValueError, match=r"\[2, 4, 5, 3\]"):
        to_uint8(torch.zeros(2, 4, 5, 3))
