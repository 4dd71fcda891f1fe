import pytest
import torch

from pvdm_cli.config import LatentShape
from pvdm_cli.latents import Planes, broadcast_sum, flatten, unflatten

SHAPE = LatentShape(c=2, s=3, h=4, w=5)


def planes() -> Planes:
    c, s, h, w = SHAPE
    return Planes(torch.randn(6, c, h, w), torch.randn(6, c, s, w), torch.randn(6, c, s, h))


def test_the_flat_length_is_the_sum_of_the_planes() -> None:
    assert SHAPE.plane_lengths == [20, 15, 12]
    assert SHAPE.flat == 47
    assert LatentShape(c=4, s=16, h=32, w=32).flat == 2048


def test_flatten_lays_the_planes_out_row_by_row_in_the_order_hw_sw_sh() -> None:
    z = planes()
    flat = flatten(z)
    assert flat.shape == (6, 2, 47)
    assert torch.equal(flat[1, 1, 5:10], z.hw[1, 1, 1])
    assert torch.equal(flat[1, 1, 20:25], z.sw[1, 1, 0])
    assert torch.equal(flat[1, 1, 43:47], z.sh[1, 1, 2])


def test_unflatten_undoes_flatten() -> None:
    z = planes()
    for plane, again in zip(z, unflatten(flatten(z), SHAPE), strict=True):
        assert torch.equal(plane, again)


def test_unflatten_copies_nothing() -> None:
    flat = flatten(planes())
    assert unflatten(flat, SHAPE).hw.data_ptr() == flat.data_ptr()


def test_unflatten_refuses_another_length() -> None:
    with pytest.raises(ValueError, match="n=46"):
        unflatten(torch.zeros(1, 2, 46), SHAPE)


def test_broadcast_sum_adds_each_plane_along_the_axis_it_lacks() -> None:
    z = planes()
    v = broadcast_sum(z)
    assert v.shape == (6, 2, 3, 4, 5)
    for s, h, w in [(0, 0, 0), (2, 1, 4), (1, 3, 2)]:
        expected = z.hw[:, :, h, w] + z.sw[:, :, s, w] + z.sh[:, :, s, h]
        torch.testing.assert_close(v[:, :, s, h, w], expected)
