"""What a process learns about itself."""

import subprocess
import sys

import numpy as np
import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere ru_maxrss is all there is")
def test_peak_memory_does_not_begin_at_that_of_the_process_that_started_this_one() -> None:
    ours = np.ones(100 * 2**20)  # 800 MiB
    code = (
        "import torch; from pvdm_cli.runtime import peak_memory as p; print(p(torch.device('cpu')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert 50 * 2**20 < int(found.stdout) < 700 * 2**20
    del ours
