"""What all tests share: the folder of shared data, and a modest number of threads."""

import os
import signal
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared"

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as `pvdm` itself; before torch is loaded
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Use a modest number of threads, unless told otherwise; let processes be interrupted."""
    import torch

    # A shell that starts this in the background ignores SIGINT, and all that is started here would.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data and reference vectors beside the checkout."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs ../shared/data (sample videos, reference vectors), which is not here")
    return SHARED
