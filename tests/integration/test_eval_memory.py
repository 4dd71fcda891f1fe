"""Memory of a score, measured in processes of their own: it does not grow with the number of clips."""

import os
import subprocess
import sys
from itertools import cycle, islice
from pathlib import Path

import pytest

MANY = int(os.environ.get("PVDM_CLIPS", "2048"))

SCORE = """
import sys
from pathlib import Path

import torch
from torch import nn

from pvdm_cli.evaluation.detector import Detector
from pvdm_cli.evaluation.fvd import measure_fvd
from pvdm_cli.evaluation.protocol import FvdRequest
from pvdm_cli.runtime import peak_memory, resolve_device

device = resolve_device("cpu")
torch.set_num_threads(1)
torch.default_generator.manual_seed(0)
network = nn.Sequential(  # in place of I3D, which takes 0.7 s a clip
    nn.Conv3d(3, 8, 4, stride=(4, 16, 16)), nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(),
    nn.Linear(8, 400),
).requires_grad_(False)
Detector.load = lambda device, **asked: Detector(network, "small", "0" * 64)
real, fake = map(Path, sys.argv[1:])
result = measure_fvd(real, fake, FvdRequest(keep=False, size=(64, 64)), device)
print(result.fake.clips, peak_memory(device) >> 20)
"""


@pytest.mark.slow
def test_memory_is_that_of_64_clips_for_many(tmp_path: Path, shared: Path) -> None:
    videos = sorted((shared / "data" / "weizmann72_64").glob("*.mp4"))

    def peak(num: int) -> int:
        """MiB at most, with so many clips of 16 frames of 64 x 64 pixels."""
        listed = tmp_path / f"{num}.txt"
        listed.write_text("\n".join(map(str, islice(cycle(videos), num))))
        few = tmp_path / "few.txt"
        few.write_text("\n".join(map(str, videos[:16])))
        words = [sys.executable, "-c", SCORE, str(few), str(listed)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        clips, mib = map(int, done.stdout.split())
        assert clips == num
        return mib

    few, many = peak(64), peak(MANY)
    assert many - few < 200  # 2,048 clips are 384 MiB, their features 3; runs differ by up to 110
