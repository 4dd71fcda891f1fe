"""Each network as users run it against the plain one: an A/B in one run, of random weights.

python tests/time_inference.py [REPEATS [WORK ...]]

Wall-clock and CPU seconds of all threads; the latter hardly change with what else the machine does.
"""

import copy
import sys
from collections.abc import Callable
from statistics import median

import torch

from pvdm_cli.acceleration import accelerate
from pvdm_cli.benchmark.subjects import build, build_autoencoder, find_subject
from pvdm_cli.benchmark.timing import spent
from pvdm_cli.latents import unflatten
from pvdm_cli.model import Model
from pvdm_cli.runtime import resolve_device

DEVICE = resolve_device("auto")  # a GPU if there is one
WORK = {  # preset and batch
    "step": ("sky/diffusion-s", 1),
    "step4": ("sky/diffusion-s", 4),
    "step-l": ("sky/diffusion-l", 1),
    "encode": ("sky/diffusion-s", 1),
    "decode": ("sky/diffusion-s", 1),
}


def call_of(work: str, model: Model, batch: int) -> Callable[[], object]:
    """One pass of a network."""
    clip, latent = model.config.clip, model.config.latent
    z = torch.randn(batch, latent.c, latent.flat, device=DEVICE).tanh()
    if work == "encode":
        x = torch.rand(batch, 3, clip.frames, clip.height, clip.width, device=DEVICE)
        return lambda: model.autoencoder.encode(x)
    if work == "decode":
        return lambda: model.autoencoder.decode(unflatten(z, latent))
    denoiser, t = model.denoiser, torch.full((batch,), 500, device=DEVICE)
    assert denoiser is not None
    return lambda: denoiser(z, t, z.flip(0))


@torch.inference_mode()
def measure(work: str, repeats: int) -> None:
    """Run plain, fp32 and bf16 in turn; a line for each."""
    preset, batch = WORK[work]
    make = build if work.startswith("step") else build_autoencoder
    plain = make(find_subject(preset), DEVICE, 0)
    models = {"plain": plain}
    for precision in ("fp32", "bf16"):
        models[precision] = accelerate(copy.deepcopy(plain), precision)
    calls = {name: call_of(work, model, batch) for name, model in models.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            seconds, busy = spent(call, DEVICE)
            if repeat:  # the first one warms up
                wall[name].append(seconds)
                cpu[name].append(busy)
    for name in calls:
        told = f"{median(wall[name]):.4f} s (least {min(wall[name]):.4f})"
        faster = median(wall["plain"]) / median(wall[name])
        less = median(cpu["plain"]) / median(cpu[name])
        sys.stdout.write(
            f"{work} {name}: {told}, {faster:.2f} times as fast as plain; "
            f"{median(cpu[name]):.3f} CPU s, {less:.2f}\n"
        )
        sys.stdout.flush()


if __name__ == "__main__":
    if DEVICE.type == "cpu":
        torch.set_num_threads(2)
    for each in sys.argv[2:] or WORK:
        measure(each, int(sys.argv[1]) if len(sys.argv) > 1 else 5)
