"""What the second stage shows the network: scaled latents, prefixes with and without noise."""

import pytest
import torch
from tiny import CONFIG
from torch import Tensor, nn

from pvdm_cli.benchmark.noise import noise_stage
from pvdm_cli.config import RunConfig
from pvdm_cli.training.diffusion import DiffusionStage


class Spy(nn.Module):
    """Remembers what it was asked."""

    def forward(self, z_t: Tensor, t: Tensor, z_prefix: Tensor, prefix_noise: Tensor) -> Tensor:
        self.seen = (z_prefix, prefix_noise)
        return z_t


def make_stage(*, prefix_noise: float = 0.0, normalise: bool = False) -> DiffusionStage:
    """A stage around two clips of noise, the second of which continues the first."""
    assert CONFIG.denoiser is not None
    assert CONFIG.diffusion is not None
    changes = {"prefix_noise": prefix_noise, "prefix_prob": 0.7}
    stage = noise_stage(
        RunConfig(
            stage="diffusion",
            clip=CONFIG.clip,
            autoencoder=CONFIG.autoencoder,
            denoiser=CONFIG.denoiser.model_copy(update={"normalise": normalise}),
            diffusion=CONFIG.diffusion.model_copy(update=changes),
        ),
        torch.device("cpu"),
    )
    assert isinstance(stage, DiffusionStage)
    return stage


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("prefix_noise", [0.0, 0.5])
def test_prefixes_are_the_clip_before_scaled_and_noised_or_nothing(
    prefix_noise: float, normalise: bool
) -> None:
    stage, spy = make_stage(prefix_noise=prefix_noise, normalise=normalise), Spy()
    if stage.network.scale is not None:
        stage.network.scale.set([[0.5] * 4] * 3, [[2.0] * 4] * 3)
    before = stage.network.normalise(stage.cache.read([0], dtype=torch.float32))
    batch = stage.draw(0, range(8))
    stage.losses(spy, batch)
    z_prefix, level = spy.seen
    assert 0 < int(batch.keep.sum()) < len(batch.keep)
    for i, keep in enumerate(batch.keep):
        if keep:
            torch.testing.assert_close(z_prefix[i], before[0] + level[i] * batch.prefix_eps[i])
            assert (0 < level[i] < 0.5) if prefix_noise else level[i] == 0
        else:
            assert z_prefix[i].eq(0).all()
            assert level[i] == 0


def test_validation_gives_the_clip_before_as_it_is() -> None:
    stage, spy = make_stage(prefix_noise=0.5), Spy()
    stage.held_out = torch.tensor([1])
    assert stage.validate(spy).keys() == {"val_loss", "val_loss_prefix"}
    z_prefix, level = spy.seen  # of the last call, without prefix
    assert z_prefix.eq(0).all()
    shown: list[Tensor] = []
    spy.register_forward_pre_hook(lambda module, given: shown.append(given[2]))
    stage.validate(spy)
    torch.testing.assert_close(shown[0][0], stage.cache.read([0], dtype=torch.float32)[0])
    assert level.eq(0).all()
