"""A model for inference alone: lower precision, weights as kernels read them, compiled kernels."""

import torch

from pvdm_cli.errors import PvdmError
from pvdm_cli.model import DTYPES, Model
from pvdm_cli.models import kernels, native
from pvdm_cli.models.compiled import compile_network
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.models.graphed import GraphedForward
from pvdm_cli.models.packed import pack
from pvdm_cli.runtime import resolve_precision


def accelerate(model: Model, precision: str = "fp32", *, compiled: bool = False) -> Model:
    """Make a model's networks as fast as the device lets them be; they can then only be run.

    In fp32 the results are the same up to float rounding (relative 1e-5). On CUDA the denoiser's
    step is launched as one graph, captured when shapes are first met. Nothing is copied for
    longer than a layer takes: it is the model given, changed, which can neither be trained nor
    saved afterwards. Its fingerprints are taken before.

    Args:
        model: On the device to work on.
        precision: fp32 | bf16 | fp16 | auto: of weights, features and products. What goes into and
            comes out of a network stays fp32, and so do the sums of norms and attention.
        compiled: Hand the networks to torch.compile, which takes a minute or two for a large one.

    Raises:
        PvdmError: If the precision is unknown.
    """
    if precision not in (*DTYPES, "auto"):
        raise PvdmError(f"--precision {precision!r}: choose fp32, bf16, fp16 or auto")
    model.fix_fingerprints()
    dtype = DTYPES[resolve_precision(precision, model.device)]
    for network in (model.autoencoder, model.denoiser):
        if network is None:
            continue
        lower(network, dtype)
        if not compiled:
            if model.device.type == "cpu":
                pack(network)
                native.fuse(network)
            else:
                kernels.fuse(network)
        if isinstance(network, Denoiser) and model.device.type == "cuda":
            graph(network, compiled=compiled)
        elif compiled:
            compile_network(network)
    return model


def graph(denoiser: Denoiser, *, compiled: bool = False) -> None:
    """Launch all kernels of a step at once: those of its modules or those of torch's compiler."""
    forward = denoiser.forward
    if compiled:
        forward = torch.compile(forward, dynamic=False)
    denoiser.forward = GraphedForward(forward)  # type: ignore[method-assign]


def lower(network: torch.nn.Module, dtype: torch.dtype) -> None:
    """Round the weights of a network; its buffers, statistics of the latents, stay as they are."""
    for parameter in network.parameters():
        parameter.data = parameter.data.to(dtype)
