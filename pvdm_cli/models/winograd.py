"""Convolutions of 3 x 3 with fewer products: Winograd's minimal filtering (Lavin and Gray 2016).

F(m x m, 3 x 3) cuts an image into tiles of m x m outputs, evaluates the n x n inputs of each, n =
m + 2, and the weights as polynomials at n - 1 points and infinity, multiplies there, and
interpolates: n^2 products a tile where a plain convolution makes 9 m^2.

Axes: b batch, c channels, H and W of an image, y and x the tiles of one.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pvdm_cli.models import native

# Of small numbers, so that rounding stays small: (0, 1, -1, 2, -2) errs half as much again.
POINTS = {2: (0, 1, -1), 4: (0, 1, -1, 0.5, -2)}
SOME = 2 * native.WHOLE  # outputs whose weights are brought into tiles at once
ONE = 1  # the place of the point 1, where a constant image has its value in all outputs


class WinogradConv2d(nn.Module):
    """nn.Conv2d of 3 x 3 with padding 1 and a bias; for inference.

    2.25 (m = 2) or 4 (m = 4) times fewer products, of weights that are 1.8 or 4 times as large.
    Tiles and their products lie in memory as fp32, whatever the images are: in bf16 their rounding
    would be too much. So do large tiles' weights; small ones' may be fp16.
    """

    def __init__(self, conv: nn.Conv2d, m: int) -> None:
        super().__init__()
        assert conv.bias is not None
        self.m, self.n = m, m + 2
        in_a_row = transforms(POINTS[m])
        _, self.row_inputs, self.row_outputs = (side.float() for side in in_a_row)
        weights, inputs, outputs = (torch.kron(side, side) for side in in_a_row)
        width, c = conv.weight.shape[:2]
        whole = c % native.WHOLE == width % native.WHOLE == 0
        kernels = whole and native.can_fuse(conv.weight.dtype)
        # Large tiles are left in fp32: fp16 would double the error of a U-Net.
        halve = conv.weight.dtype != torch.float32 and m == 2 and width % SOME == 0
        parts = (_evaluated(weights, some) for some in conv.weight.detach().split(SOME))
        self.weights: Tensor | native.Panels
        if kernels:
            self.weights = native.joined([native.panels(each, halve=halve) for each in parts])
        else:
            self.weights = torch.cat(list(parts), dim=-1)
        self.inputs, self.outputs = inputs.float(), outputs.float()
        self.bias = conv.bias.detach().float().clone()

    def convolve(self, images: list[Tensor]) -> list[Tensor]:
        """Convolve each [b, H, W, c]; the weights are read once for all."""
        if isinstance(self.weights, native.Panels):
            sides = self.row_inputs, self.row_outputs
            return native.winograd(images, self.m, *sides, self.weights, self.bias)
        n = self.n
        values = [self._tiles(each) for each in images]
        products = torch.bmm(torch.cat(values, dim=1), self.weights)
        products[ONE * n + ONE] += self.bias
        found = products.split([each.shape[1] for each in values], dim=1)
        return [self._join(*each) for each in zip(found, images, strict=True)]

    def _tiles(self, x: Tensor) -> Tensor:
        """Evaluate the tiles of [b, H, W, c]: [n * n, tiles, c]."""
        m, n = self.m, self.n
        _, height, width, c = x.shape
        bottom, right = 1 + -height % m, 1 + -width % m  # the last tiles may hang over
        padded = F.pad(x, (0, 0, 1, right, 1, bottom))
        tiles = padded.unfold(1, n, m).unfold(2, n, m)  # [b, y, x, c, n, n]
        values = self.inputs @ tiles.permute(4, 5, 0, 1, 2, 3).reshape(n**2, -1)
        return values.view(n**2, -1, c)

    def _join(self, products: Tensor, x: Tensor) -> Tensor:
        """Interpolate products [n * n, tiles, c] to images of the size of x [b, H, W, ...]."""
        m, (b, height, width) = self.m, x.shape[:3]
        rows, columns = -(-height // m), -(-width // m)
        out = (self.outputs @ products.flatten(1)).view(m, m, b, rows, columns, -1)
        out = out.permute(2, 3, 0, 4, 1, 5).reshape(b, rows * m, columns * m, -1)
        return out[:, :height, :width]


def _evaluated(side: Tensor, weights: Tensor) -> Tensor:
    """Bring weights [some, c, 3, 3] into tiles [n * n, c, some], by [n * n, 3 * 3] in float64."""
    plain = weights.permute(2, 3, 1, 0).flatten(0, 1).double()
    return (side @ plain.flatten(1)).float().unflatten(1, plain.shape[1:])


def transforms(points: tuple[float, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Return what evaluates 3 weights [n, 3] and n inputs [n, n], and interpolates m outputs [m, n].

    The method of Toom and Cook, transposed, at n - 1 points and infinity; in float64.
    """
    at, n = np.array(points, dtype=np.float64), len(points) + 1
    others = [np.delete(at, i) for i in range(n - 1)]
    weights, inputs, outputs = np.zeros((n, 3)), np.zeros((n, n)), np.zeros((n - 2, n))
    scale = [np.prod(point - rest) for point, rest in zip(at, others, strict=True)]
    weights[:-1] = np.vander(at, 3, increasing=True) / np.array(scale)[:, None]
    inputs[:-1, :-1] = [np.poly(rest)[::-1] for rest in others]
    outputs[:, :-1] = np.vander(at, n - 2, increasing=True).T
    inputs[-1] = np.poly(at)[::-1]
    weights[-1, -1] = outputs[-1, -1] = 1
    return torch.from_numpy(weights), torch.from_numpy(inputs), torch.from_numpy(outputs)
