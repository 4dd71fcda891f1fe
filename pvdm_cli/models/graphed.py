"""The denoiser as CUDA graphs: all kernels of a step launched at once; inference only.

What cannot be captured is launched kernel by kernel, as without graphs.

Axes: b batch, c latent channels, n flat latent length.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from pvdm_cli.runtime import ran_out

MOST = 16  # graphs of one network; each holds its own inputs, all share the memory between layers
WARM_UPS = 3  # calls before the capture, in which libraries choose their kernels

Forward = Callable[..., Tensor]
Inputs = tuple[Tensor | None, ...]


class Captured(NamedTuple):
    """One graph, with what it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: Inputs
    output: Tensor


class GraphedForward:
    """A denoiser's forward, captured once for every combination of shapes it is called with.

    Replaying reads the weights as they lie in memory: they must not be moved afterwards.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward = forward
        self.captured: dict[tuple[object, ...], Captured | None] = {}
        self.pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode()
    def __call__(
        self,
        z_t: Tensor,
        t: Tensor,
        z_prefix: Tensor | None = None,
        prefix_noise: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """Predict as `Denoiser.forward`; what is returned lasts until the next call."""
        inputs = (z_t, t, z_prefix, prefix_noise, label)
        key = tuple(None if each is None else (each.shape, each.dtype) for each in inputs)
        if key not in self.captured and len(self.captured) < MOST:
            self.captured[key] = self._try_to_capture(inputs)
        found = self.captured.get(key)
        if found is None:
            return self.forward(*inputs)
        graph, kept, output = found
        for target, source in zip(kept, inputs, strict=True):
            if target is not None and source is not None:
                target.copy_(source, non_blocking=True)
        graph.replay()
        return output

    def _try_to_capture(self, inputs: Inputs) -> Captured | None:
        """Capture, or give up where the device or a library cannot; want of memory is passed on."""
        try:
            return self._capture(inputs)
        except RuntimeError as error:
            if ran_out(error):
                raise
            return None

    def _capture(self, inputs: Inputs) -> Captured:
        """Run a few times beside the main stream, then record."""
        kept = tuple(None if each is None else each.clone() for each in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self.forward(*kept)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, which bring frames to the CPU, go on meanwhile.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            output = self.forward(*kept)
        return Captured(graph, kept, output)
