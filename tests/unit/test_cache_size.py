"""A cache may be large: opening and reading it are fast and take little memory."""

import json
import subprocess
import sys
from pathlib import Path

import big_cache
import pytest
import torch

from pvdm_cli.data.cache import Cache


@pytest.mark.slow
def test_a_million_clips_are_opened_within_a_second_and_300_mb(tmp_path: Path) -> None:
    path = big_cache.write_big_cache(tmp_path / "c", videos=100_000, clips=10)
    command = [sys.executable, big_cache.__file__, "open", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert (found["clips"], found["pairs"]) == (1_000_000, 900_000)
    assert found["seconds"] < 1
    assert found["MB"] < 300


def test_20_000_pairs_of_published_size_are_read_a_second(tmp_path: Path) -> None:
    path = big_cache.write_big_cache(
        tmp_path / "c", videos=100, clips=10, side=32, frames=16, channels=4
    )
    cache = Cache.open(path)
    assert cache.read([0]).nbytes == 16 << 10
    threads = torch.get_num_threads()
    try:
        found = big_cache.rates(path, batch=64, seconds=0.2)
    finally:
        torch.set_num_threads(threads)
    assert found["positioned"] > 20_000
    assert found["in memory"] > 20_000


def test_rows_of_each_video_are_found_at_once(tmp_path: Path) -> None:
    cache = Cache.open(big_cache.write_big_cache(tmp_path / "c", videos=50, clips=3))
    assert [cache.rows_of(video) for video in range(50)] == [
        range(3 * video, 3 * video + 3) for video in range(50)
    ]
    assert not cache.rows_of(50)
