"""Batch normalisation over the batch of all processes together.

torch's own, `nn.SyncBatchNorm`, refuses tensors of a CPU.
"""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pvdm_cli.ranks import here


class _Sum(torch.autograd.Function):
    """Sum over processes; its gradient is the sum of theirs, as each has the whole sum."""

    @staticmethod
    def forward(context: object, values: Tensor) -> Tensor:
        return here().sum(values)

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> Tensor:
        return here().sum(gradients[0])


class _Shared(_BatchNorm):
    """As torch's; of several processes in training, mean and variance are those of all."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [b, c, ...]; every process brings a batch of the same shape."""
        size = here().size
        if size == 1 or not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        shape = (1, -1, *[1] * (x.ndim - 2))
        count = size * x.numel() // x.shape[1]
        mean = _Sum.apply(x.float().sum(axes)) / count  # type: ignore[no-untyped-call]
        centred = x.float() - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(axes)) / count  # type: ignore[no-untyped-call]
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            assert self.momentum is not None
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(x.dtype)


class BatchNorm2d(_Shared, nn.BatchNorm2d):
    """Of images [b, c, H, W]."""


class BatchNorm3d(_Shared, nn.BatchNorm3d):
    """Of clips [b, c, s, H, W]."""
