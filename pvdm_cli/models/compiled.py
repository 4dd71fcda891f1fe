"""torch.compile for the networks, by the part that pays."""

from torch import nn

from pvdm_cli.models.autoencoder import Autoencoder


def compile_network(network: nn.Module) -> None:
    """Hand a network to torch.compile; names of weights stay as they are.

    The autoencoder is compiled by block: its blocks are alike, so that one is compiled for all.
    """
    if isinstance(network, Autoencoder):
        for part in network.modules():
            if getattr(part, "grain", "") == "block":
                part.compile(dynamic=False)
    else:
        network.compile(dynamic=False)
