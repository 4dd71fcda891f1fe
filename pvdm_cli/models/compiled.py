"""torch.compile for the networks, by the part that pays."""

from torch import nn

from pvdm_cli.models.autoencoder import Autoencoder


def compile_network(network: nn.Module, *, graphs: bool = False) -> None:
    """Hand a network to torch.compile; names of weights stay as they are.

    The autoencoder is compiled by block: its blocks are alike, so that one is compiled for all.

    Args:
        network: Any.
        graphs: Launch all kernels of a denoiser at once (CUDA graphs): at batch 1 a GPU waits for
            launches. Its output then lasts until the next call. The autoencoder does not wait.
    """
    if isinstance(network, Autoencoder):
        for part in network.modules():
            if getattr(part, "grain", "") == "block":
                part.compile(dynamic=False)
    else:
        network.compile(dynamic=False, mode="reduce-overhead" if graphs else None)
