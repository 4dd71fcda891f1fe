"""What a process learns about itself."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pvdm_cli.runtime import matrix_rate, resolve_precision, single_threaded


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss is all there is")
def test_peak_memory_does_not_begin_at_that_of_the_process_that_started_this_one() -> None:
    ours = np.ones(100 * 2**20)  # 800 MiB
    code = (
        "import torch; from pvdm_cli.runtime import peak_memory as p; print(p(torch.device('cpu')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert 50 * 2**20 < int(found.stdout) < 700 * 2**20
    del ours


def test_precision_is_what_was_asked_for_and_full_on_the_cpu_unless_asked() -> None:
    cpu = torch.device("cpu")
    assert [resolve_precision(name, cpu) for name in ("fp32", "bf16", "fp16")] == [
        *("fp32", "bf16", "fp16")
    ]
    assert resolve_precision("auto", cpu) == "fp32"


def test_the_rate_of_matrix_products_is_measured_once() -> None:
    rate = matrix_rate(torch.device("cpu"), "fp32")
    assert 1e8 < rate < 1e15
    assert matrix_rate(torch.device("cpu"), "fp32") == rate


def test_a_thread_that_computes_alone_leaves_the_others_their_teams() -> None:
    def alone() -> tuple[int, int]:
        with single_threaded():
            return torch.get_num_threads(), other.submit(torch.get_num_threads).result()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as one:
            assert other.submit(torch.get_num_threads).result() == 2
            assert one.submit(alone).result() == (1, 2)
            assert torch.get_num_threads() == 2
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 2
    finally:
        torch.set_num_threads(before)
