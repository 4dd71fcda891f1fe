"""What the loop around the network costs, sampler by sampler, beside the network itself.

python tests/loop_overhead.py [MODEL]
"""

import sys
import time
from collections.abc import Callable
from typing import cast, get_args

import torch
from torch import Tensor

from pvdm_cli.model import Model, load_model
from pvdm_cli.models.denoiser import Denoiser
from pvdm_cli.rollout import rollout_latents
from pvdm_cli.runtime import generator
from pvdm_cli.sampling import Sampler, Sampling, Steps

STEPS, REPEATS = 20, 5


def seconds(work: Callable[[], object]) -> float:
    """Least processor time of several: what else the machine does is not counted."""
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


@torch.inference_mode()
def network_seconds(model: Model) -> float:
    """Time of a bare network call with a prefix, on one video."""
    denoiser, _ = model.require_denoiser("the model")
    z = torch.randn(1, model.config.latent.c, model.config.latent.flat)
    t = torch.tensor([500])
    return seconds(lambda: denoiser(z, t, z))


def loop_seconds(model: Model, sampler: Sampler) -> float:
    """Time for each network call of a following clip, with a network that answers at once."""
    _, schedule = model.require_denoiser("the model")
    z = torch.randn(1, model.config.latent.c, model.config.latent.flat)
    sampling = Sampling(steps=Steps(STEPS, STEPS), sampler=sampler)

    def loop() -> list[Tensor]:
        draws = [generator("cpu", 1)]
        return list(rollout_latents(model, 1, generators=draws, sampling=sampling, z_prefix=z))

    forward = Denoiser.forward
    Denoiser.forward = lambda self, z_t, *told, **more: z  # type: ignore[method-assign]
    try:
        return seconds(loop) / len(sampling.asked(schedule, first=False))
    finally:
        Denoiser.forward = forward  # type: ignore[method-assign]


if __name__ == "__main__":
    torch.set_num_threads(1)  # others would spin while they wait, which counts
    found = load_model(sys.argv[1] if len(sys.argv) > 1 else "demo", "cpu")
    network = network_seconds(found)
    sys.stdout.write(f"network call {1000 * network:.2f} ms\n")
    for name in get_args(Sampler):
        loop = loop_seconds(found, cast(Sampler, name))
        sys.stdout.write(f"{name:6} {1000 * loop:.3f} ms a call, {loop / network:.2%}\n")
