"""The autoencoder's stage: what is drawn, and what is left alone."""

from pathlib import Path

import numpy as np
import torch

from pvdm_cli.config import RunConfig, parse_config
from pvdm_cli.data.catalog import Source
from pvdm_cli.data.clips import Clips, Usable
from pvdm_cli.models.autoencoder import Autoencoder
from pvdm_cli.models.perceptual import LPIPS
from pvdm_cli.training.autoencoder import AutoencoderStage
from pvdm_cli.video.pixels import to_float


def make_stage(perceptual: LPIPS | None = None, **changes: dict[str, object]) -> AutoencoderStage:
    values: dict[str, object] = {
        "stage": "autoencoder",
        "clip": {"frames": 4, "height": 16, "width": 24},
        "autoencoder": {
            "width": 16,
            "depth": 1,
            "num_heads": 2,
            "head_dim": 8,
            "projection_depth": 1,
            "projection_mlp": 16,
        },
        "training": {"steps": 2, "batch_size": 2},
    }
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}  # type: ignore[dict-item]
    config = parse_config(RunConfig, values, where="test")
    frames = np.random.default_rng(0).integers(256, size=(6, 16, 24, 3), dtype=np.uint8)
    clips = Clips(config.clip, [Usable(Source(Path("noise"), "noise"), 6, frames)], {})
    return AutoencoderStage(
        config, Autoencoder(config), clips, None, lambda *shown: None, perceptual=perceptual
    )


def test_latent_noise_is_drawn_by_step_and_sample() -> None:
    stage = make_stage(loss={"latent_noise": 0.2})
    noise = stage.draw(3, range(2)).noise
    assert noise is not None
    assert noise.shape == (2, 4, 2 * 3 + 4 * 3 + 4 * 2)
    assert torch.equal(noise, stage.draw(3, range(2)).noise)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise, stage.draw(4, range(2)).noise)
    levels = torch.cat([stage.draw(step, range(2)).noise for step in range(40)]).std(dim=(1, 2))
    assert levels.max() < 0.25
    assert levels.min() < 0.05


def test_without_latent_noise_none_is_drawn_and_the_loss_is_that_of_the_reconstruction() -> None:
    stage = make_stage()
    batch = stage.draw(0, range(2))
    assert batch.noise is None
    x = batch.frames.movedim(-1, 1) / 127.5 - 1
    expected = 4 * (stage.network(x) - x).abs().mean()
    torch.testing.assert_close(stage.losses(stage.network, batch)["loss"], expected)


def test_latent_noise_changes_what_is_decoded() -> None:
    stage = make_stage(loss={"latent_noise": 0.5})
    batch = stage.draw(0, range(2))
    noisy = stage.losses(stage.network, batch)["loss"]
    assert noisy != stage.losses(stage.network, batch._replace(noise=None))["loss"]


class Difference(LPIPS):
    """In place of LPIPS: remembers the frames it is shown."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        self.seen = (x, y)
        return (x - y).abs().flatten(1).mean(1)


def test_the_perceptual_loss_looks_at_one_frame_of_each_clip() -> None:
    spy = Difference()
    stage = make_stage(spy, loss={"l1": 1.0, "lpips": 3.0})
    batch = stage.draw(1, range(2))
    terms = stage.losses(stage.network, batch)
    reconstruction, original = spy.seen
    for i, frame in enumerate(batch.shown):
        torch.testing.assert_close(original[i], to_float(batch.frames)[i, :, frame])
    assert reconstruction.shape == original.shape
    torch.testing.assert_close(terms["loss"], terms["l1"] + 3 * terms["lpips"])
    frames = torch.cat([stage.draw(step, range(2)).shown for step in range(40)])
    assert frames.bincount(minlength=4).min() > 5  # any frame, by step and sample
    assert torch.equal(stage.draw(1, range(2)).shown, batch.shown)
