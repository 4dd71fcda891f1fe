"""Where the time of a run went."""

import torch

from pvdm_cli.stopwatch import Stopwatch, Timer

BESIDE = ("decoding", "pixels", "writing")  # in a thread of their own, but decoding on a CPU


def stopwatch(device: torch.device) -> Stopwatch:
    """Return a stopwatch that waits for the device."""
    if device.type == "cuda":
        return Stopwatch(lambda: torch.cuda.synchronize(device))
    return Stopwatch(torch.mps.synchronize if device.type == "mps" else lambda: None)


def profile(timer: Timer, seconds: float) -> dict[str, float]:
    """Say how many of the seconds went where; nothing of what was not measured."""
    if not isinstance(timer, Stopwatch):
        return {}
    spent = timer.seconds
    network = spent.get("network", 0.0)
    order = ("waiting for the writer", "pictures", *BESIDE)
    return {
        "network": network,
        "sampler": spent.get("drawing", 0.0) - network,
        **{name: spent[name] for name in order if name in spent},
        "whole run": seconds,
    }
