"""Tiny training runs that several files of tests look at."""

from collections.abc import Callable
from pathlib import Path

import pytest
from training_runs import Place, prepare


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return prepare(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="session")
def whole(place: Place) -> Callable[[str], Path]:
    """An uninterrupted run of each stage."""
    runs = {"autoencoder": place.first_stage, "diffusion": place.root / "second"}
    result = place.train("diffusion", runs["diffusion"])
    assert (result.step, result.finished) == (12, True)
    return runs.__getitem__
