"""Scores of a few drawn videos while a denoiser is trained."""

from types import SimpleNamespace

import pytest
import torch
from tiny import CONFIG, tiny_model
from torch import Tensor

from pvdm_cli import monitor
from pvdm_cli.classes import draw_class


def test_a_model_with_classes_is_scored_on_classes_drawn_by_lot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[Tensor | None] = []

    def rollout(model: object, num_clips: int, **options: object) -> list[Tensor]:
        labels = options["labels"]
        assert labels is None or isinstance(labels, Tensor)
        told.append(labels)
        return [torch.zeros(2, 3, 4, 16, 24)]

    monkeypatch.setattr(monitor, "rollout", rollout)
    few = monitor.FewVideos.__new__(monitor.FewVideos)  # without the weights of the detector
    few._config = SimpleNamespace(training=SimpleNamespace(seed=3))  # type: ignore[assignment]
    model = tiny_model()
    few._drawn(model, [5, 6])
    assert CONFIG.denoiser is not None
    denoiser = CONFIG.denoiser.model_copy(update={"classes": ("bow", "run", "walk")})
    model.config = CONFIG.model_copy(update={"denoiser": denoiser})
    few._drawn(model, [5, 6])
    assert told[0] is None
    assert told[1] is not None
    assert told[1].tolist() == [draw_class(3, 3, 5), draw_class(3, 3, 6)]
