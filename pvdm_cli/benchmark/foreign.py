"""Networks of other people's packages: built, called, and counted without being run."""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from pvdm_cli.errors import PvdmError
from pvdm_cli.models.cost import Cost

DIFFUSERS, VDM = "diffusers", "video_diffusion_pytorch"
EXTRA = "pip install 'pvdm[rivals]'"

Values = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Network:
    """A network of an installed package and one call of it.

    Attributes:
        package: Which is imported.
        kind: Name of its class.
        inputs: Makes what one call is given, on the default device.
        options: Of its construction.
        method: What is called.
        calls: How many a clip takes.
    """

    package: str
    kind: str
    inputs: Callable[[], Values]
    options: Values = field(default_factory=dict)
    method: str = "forward"
    calls: int = 1

    def build(self, device: torch.device) -> tuple[nn.Module, Callable[[], Any]]:
        """Return the network with the weights it starts with, and one call of it."""
        kind = getattr(_import(self.package), self.kind)
        with torch.device(device):
            network = kind(**self.options).eval().requires_grad_(False)
            inputs = self.inputs()
        return network, partial(getattr(network, self.method), **inputs)

    @lru_cache(maxsize=32)  # noqa: B019  # the networks are those below and live as long
    def cost(self) -> Cost:
        """Count one call without running it; of an autoencoder all weights, not only its half."""
        # The meta device has no kernel of its own for attention but the plain one.
        with torch.device("meta"), sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            network, call = self.build(torch.device("meta"))
            with FlopCounterMode(display=False) as counter:
                found = call()
            ends = [
                each for each in tree_leaves((self.inputs(), found)) if isinstance(each, Tensor)
            ]
        weights = sum(each.numel() for each in network.parameters())
        return Cost(counter.get_total_flops(), weights, sum(each.numel() for each in ends), 0)


def _import(package: str) -> ModuleType:
    """Import a package.

    Raises:
        PvdmError: If it is not installed.
    """
    with _fitting_torchvision(needed=package == VDM):
        try:
            return importlib.import_module(package)
        except ImportError as error:
            raise PvdmError(f"{package} cannot be imported ({error}): {EXTRA}") from error


class _Unused(ModuleType):
    """Stands for a module that is imported but not used: any name in it can be called."""

    def __getattr__(self, name: str) -> "_Unused":
        return _Unused(name)

    def __call__(self, *given: Any, **named: Any) -> "_Unused":
        return self


@contextmanager
def _fitting_torchvision(*, needed: bool) -> Iterator[None]:
    """Hide a torchvision that does not fit torch; beside one of another build it cannot be imported.

    Args:
        needed: Whether what is imported wants one: VDM, to read files.
    """
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):
        hidden: dict[str, Any] = sys.modules
        hidden["torchvision"] = _Unused("torchvision") if needed else None
        try:
            yield
        finally:
            hidden["torchvision"] = None  # to importlib: there is none
    else:
        yield
