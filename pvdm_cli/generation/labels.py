"""Classes of the videos of a run."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pvdm_cli.classes import draw_class, find_class, in_turn
from pvdm_cli.generation.request import Item, SampleRequest
from pvdm_cli.model import Model


def labels_of(
    model: Model, request: SampleRequest, items: Sequence[Item], name: str
) -> Tensor | None:
    """Label of each of these videos, int64 [b]; None for a model that knows no classes.

    Raises:
        PvdmError: If the class asked for is not one of the model's.
    """
    classes = model.config.classes
    if in_turn(classes, request.class_name):
        turns = [item.number % len(classes) for item in items]
        return torch.tensor(turns, device=model.device)
    if request.class_name is not None:
        label = find_class(classes, request.class_name, name)
        return torch.full((len(items),), label, device=model.device)
    if not classes:
        return None
    drawn = [draw_class(len(classes), *item.keys[0]) for item in items]
    return torch.tensor(drawn, device=model.device)
