"""The encoding network at work: clips in, latents out, in batches that fit the memory.

Axes: b clips of a batch, s frames, H and W pixels, c latent channels, n flat length.
"""

import gc
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from pvdm_cli.data.cache_format import Rounding
from pvdm_cli.data.cache_shard import Latents
from pvdm_cli.errors import ModelError
from pvdm_cli.latents import flatten
from pvdm_cli.model import Model
from pvdm_cli.progress import SILENT, Reporter
from pvdm_cli.runtime import ran_out
from pvdm_cli.video import pixels

LARGEST_BATCH = 64  # of `auto`: beyond it a GPU gains nothing more
CPU_BATCH = 4  # within an eighth of the best from 64 to 256 pixels, see CHANGELOG


def encode_clips(
    model: Model, frames: NDArray[np.uint8], precision: str = "fp32"
) -> NDArray[np.float16]:
    """Encode clips uint8 [b, s, H, W, 3] to flat latents fp16 [b, c, n]."""
    return encode_measured(model, frames, precision)[0]


def encode_measured(
    model: Model, frames: NDArray[np.uint8], precision: str = "fp32"
) -> tuple[NDArray[np.float16], Rounding]:
    """Encode clips as `encode_clips` does, and tell what rounding to fp16 has cost."""
    with torch.inference_mode(), model.arithmetic(precision):
        x = pixels.to_float(torch.from_numpy(frames).to(model.device))
        z = flatten(model.autoencoder.encode(x))
        cached = z.to(torch.float16)
        error = cached.float() - z.float()
        largest, squares = torch.stack([error.abs().amax(), error.square().sum()]).tolist()
        return cached.cpu().numpy(), Rounding(largest, squares)


class Encoder:
    """Encodes batches; where memory runs out it goes on with smaller ones.

    Attributes:
        batch_size: Clips per forward pass, as of now.
    """

    def __init__(
        self,
        model: Model,
        *,
        batch_size: int | None = None,
        precision: str = "fp32",
        compiled: bool = False,
        reporter: Reporter = SILENT,
    ) -> None:
        """Prepare to encode.

        Args:
            model: Its autoencoder encodes, on the device it is on.
            batch_size: Clips per forward pass to begin with; None: `suggested_batch`.
            precision: fp32 | bf16 | fp16.
            compiled: The network is compiled, so that all batches have to be of one size.
            reporter: Told of batches that do not fit.
        """
        self.batch_size = batch_size or suggested_batch(model, precision)
        self._model, self._precision = model, precision
        self._compiled, self._reporter = compiled, reporter

    def encode(self, frames: NDArray[np.uint8]) -> Iterator[tuple[Latents, Rounding]]:
        """Encode clips uint8 [b, s, H, W, 3], in one pass or, if they do not fit, in several.

        Yields:
            Flat latents fp16 [k, c, n] of the next k clips, and what fp16 has cost them.

        Raises:
            ModelError: If not even one clip fits into memory.
        """
        while len(frames):
            part = frames[: self.batch_size]
            encoded = self._try(part)
            if encoded is None:
                self._back_off(len(part))
            else:
                yield encoded
                frames = frames[len(part) :]

    def _try(self, frames: NDArray[np.uint8]) -> tuple[Latents, Rounding] | None:
        """Encode one batch, or return None if memory runs out."""
        missing = self.batch_size - len(frames) if self._compiled else 0
        try:
            if missing:  # a batch of another size would be compiled anew
                frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
            z, rounding = encode_measured(self._model, frames, self._precision)
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            return None
        return z[: len(z) - missing], rounding

    def _back_off(self, tried: int) -> None:
        """Halve the batch, after the error and what it held is gone."""
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()
        if tried == 1:
            raise ModelError(
                f"{self._model.device} has no memory for even one clip: end what else uses it, or "
                "use --precision bf16 or smaller clips"
            )
        self.batch_size = tried // 2
        self._reporter.say(
            f"{self._model.device} has no memory for {tried} clips at once; "
            f"going on with --batch-size {self.batch_size}"
        )


def suggested_batch(model: Model, precision: str = "fp32") -> int:
    """Return a number of clips that should fit and keep the device busy.

    On a GPU as many as half of its free memory takes, by what one block of the transformer holds
    at its widest; elsewhere a fixed number: see CHANGELOG for what was measured.
    """
    if model.device.type != "cuda":
        return CPU_BATCH
    config, latent = model.config.autoencoder, model.config.latent
    tokens = latent.s * latent.h * latent.w
    # The residual, its norm, and of the feed-forward 2 x 4 widths, their product and its half.
    numbers = 16 * config.width + 4 * config.num_heads * config.head_dim
    clip = tokens * numbers * (4 if precision == "fp32" else 3)  # bytes; the residual stays fp32
    free, _ = torch.cuda.mem_get_info(model.device)
    return max(1, min(LARGEST_BATCH, free // 2 // clip))
