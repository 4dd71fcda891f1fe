"""Discriminators: their sizes, what they see, and whose gradients come of it."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from pvdm_cli.config import AdversarialConfig
from pvdm_cli.models.discriminator import PatchDiscriminator
from pvdm_cli.training.adversary import Adversary, Seen


def small() -> Adversary:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return Adversary(AdversarialConfig(discriminator_channels=4, discriminator_layers=2))


def seen(seed: int) -> Seen:
    clip = torch.rand(2, 3, 4, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Seen(clip[:, :, 1], clip)


@pytest.mark.parametrize(("dims", "kernel"), [(2, 4**2), (3, 4**3)])
def test_the_published_sizes(dims: int, kernel: int) -> None:
    network = PatchDiscriminator(dims, channels=64, layers=3)
    widths = [3, 64, 128, 256, 512, 1]
    convolutions = sum(kernel * a * b + b for a, b in pairwise(widths))
    norms = 2 * (128 + 256 + 512)
    assert sum(p.numel() for p in network.parameters()) == convolutions + norms
    strides = [m.stride[0] for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert strides == [2, 2, 2, 1, 1]
    x = torch.zeros(1, 3, *[16, 32, 32][-dims:])
    judged = network(x)
    assert len(judged.features) == 4
    assert judged.logits.shape[1] == 1
    assert torch.equal(network.to_logits(judged.features[-1]), judged.logits)


def test_a_patch_is_judged_by_what_is_near_it() -> None:
    network = PatchDiscriminator(2, channels=4, layers=2).eval()
    x = torch.zeros(1, 3, 64, 64)
    changed = x.clone()
    changed[..., 0, 0] = 1
    moved = (network(x).logits != network(changed).logits)[0, 0]
    assert moved.any()
    assert not moved[moved.shape[0] // 2 :].any()


def test_the_terms_are_hinge_loss_and_feature_matching() -> None:
    adversary, real, fake = small(), seen(1), seen(2)
    terms = adversary.discriminator_terms(fake, real)
    truth, lies = adversary.judge(real), adversary.judge(fake)
    expected = sum(
        0.5 * ((1 - a.logits).clamp(min=0).mean() + (1 + b.logits).clamp(min=0).mean())
        for a, b in zip(truth, lies, strict=True)
    )
    torch.testing.assert_close(terms["loss"], expected)
    rightly = [(a.logits > 0).float().mean() for a in truth]
    torch.testing.assert_close(terms["real_accuracy"], torch.stack(rightly).mean())
    rightly = [(b.logits < 0).float().mean() for b in lies]
    torch.testing.assert_close(terms["fake_accuracy"], torch.stack(rightly).mean())

    terms = adversary.generator_terms(fake, real)
    torch.testing.assert_close(terms["generator"], -sum(b.logits.mean() for b in lies))
    matching = sum(
        (x - y).abs().mean()
        for a, b in zip(truth, lies, strict=True)
        for x, y in zip(a.features, b.features, strict=True)
    )
    torch.testing.assert_close(terms["features"], matching)
    same = adversary.generator_terms(real, real)
    assert same["features"] == 0


def test_each_side_gets_the_gradients_of_its_own_terms() -> None:
    adversary, real = small(), seen(1)
    clip = seen(2).clip.requires_grad_()

    def gradients(terms: dict[str, Tensor], *names: str) -> tuple[bool, bool]:
        clip.grad = None
        adversary.zero_grad(set_to_none=True)
        torch.stack([terms[name] for name in names]).sum().backward()
        return clip.grad is not None, any(p.grad is not None for p in adversary.parameters())

    fake = Seen(clip[:, :, 2], clip)
    terms = adversary.generator_terms(fake, real)
    assert gradients(terms, "generator", "features") == (True, False)
    assert gradients(adversary.discriminator_terms(fake, real), "loss") == (False, True)
