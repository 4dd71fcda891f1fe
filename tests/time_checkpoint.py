"""How long training waits for a checkpoint, written in place and by a thread: an A/B in one run.

python tests/time_checkpoint.py
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from pvdm_cli.config import load_config
from pvdm_cli.model import Model, model_weights
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.training.checkpoint import Snapshot, _tensors, write_snapshot
from pvdm_cli.training.optim import make_average, make_optimizer
from pvdm_cli.training.saving import Saver

SIZES = {
    "tiny": ("autoencoder.width=64", "autoencoder.depth=2"),
    "medium": ("autoencoder.width=256", "autoencoder.depth=6"),
}


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(folder: Path, overrides: tuple[str, ...], times: int) -> str:
    """Write checkpoints of an autoencoder both ways in turn; one line of medians."""
    config = load_config("ucf101/autoencoder", ("training.ema_decay=0.999", *overrides))
    network = Autoencoder(config.model())
    average = make_average(network, config.training)
    optimizer = make_optimizer(network.parameters(), config.training)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert average is not None
    model, trained = Model(config.model(), average.module), {"": (network, optimizer)}
    saver, before, after = Saver(folder, 2, 0), [], []
    for step in range(0, 2 * times, 2):
        alone = Snapshot(step, model, model_weights(model), _tensors(trained), {"step": step})
        before.append(seconds(lambda shot=alone: write_snapshot(folder, shot)))
        ours = (step + 1, model, trained, average, {}, None)
        after.append(seconds(lambda given=ours: saver.save(*given)))
        assert saver.outcome(wait=True) is None
    saver.close()
    return (
        f"{alone.num_bytes / 1e6:.0f} MB: in place {1e3 * median(before):.0f} ms, by a thread "
        f"{1e3 * median(after[1:]):.1f} ms (the first {1e3 * after[0]:.0f} ms)"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, overrides in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            sys.stdout.write(f"{name}, {measure(Path(folder), overrides, 4)}\n")
