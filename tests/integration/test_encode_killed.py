"""SIGKILL at random moments of an encoding: a decoder, a process, the launcher.

By default a sample of 5; `PVDM_KILLS=30` kills as often.
"""

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from encoding_runs import (
    Rows,
    agree,
    encode_command,
    finish,
    rows_of,
    same_statistics,
    saved_rows,
    start,
)

from pvdm_cli.data.cache_format import read_videos
from pvdm_cli.data.catalog import find_videos
from pvdm_cli.encoding import EncodeResult, encode_videos
from pvdm_cli.model import load_model

KILLS = int(os.environ.get("PVDM_KILLS", "5"))
VICTIMS = ("decoder", "process", "launcher", "decoder alone", "parent alone")
OPTIONS = ["--window-stride", 1, "--batch-size", 1, "--shard-seconds", 0.1]


class Place:
    """Videos, the shipped model, and the cache that an uninterrupted run makes of them."""

    model = load_model("demo", "cpu")

    def __init__(self, shared: Path, folder: Path) -> None:
        self.videos, self.whole = folder / "videos", folder / "whole"
        self.videos.mkdir()
        for source in find_videos(shared / "data" / "sky48_128")[:4]:
            (self.videos / source.name).symlink_to(source.path)
        self.encode_here(self.whole)
        self.rows = rows_of(self.whole)

    def encode_here(self, out: Path) -> EncodeResult:
        """Encode without a process to kill."""
        return encode_videos(self.model, find_videos(self.videos), out, window_stride=1)

    def command(self, out: Path, kind: str) -> list[str]:
        options: list[object] = [*OPTIONS, "--workers", int(kind.startswith("decoder"))]
        if not kind.endswith("alone"):
            options += ["--nproc-per-node", 2]
        return encode_command(self.videos, "demo", out, *options)


@pytest.fixture(scope="module")
def place(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(shared, tmp_path_factory.mktemp("place"))


def below(pid: int) -> Iterator[tuple[int, str]]:
    """The processes that a process has started, at any depth, with their commands."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")  # a thread's children are its own
    for child in [int(child) for task in tasks for child in task.read_text().split()]:
        try:
            yield child, Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
            yield from below(child)
        except OSError:  # it has ended meanwhile
            continue


def victim_of(process: "subprocess.Popen[str]", kind: str) -> int | None:
    """Choose whom to kill; None if there is no such process (yet)."""
    if kind in {"launcher", "parent alone"}:
        return process.pid
    try:
        found = list(below(process.pid))
    except OSError:
        return None
    wanted = "pvdm_cli.data.decoder" if kind.startswith("decoder") else "pvdm_cli encode"
    pids = [pid for pid, command in found if wanted in command]
    return random.choice(pids) if pids else None


def choose(
    process: "subprocess.Popen[str]", out: Path, kind: str, draw: random.Random
) -> int | None:
    """Wait for a random moment, and choose whom to kill; None if nobody is left by then."""
    shards = draw.choice([0, 0, 1, 1, 2, 3, 4, 6])
    seen: set[str] = set()  # small ones are merged at the end
    while process.poll() is None:
        seen |= {file.name for file in out.glob("shard-*")}
        if len(seen) >= shards and victim_of(process, kind):
            time.sleep(draw.uniform(0, 0.5))
            return victim_of(process, kind)
        time.sleep(0.01)
    return None


def kill_once(place: Place, out: Path, kind: str, draw: random.Random) -> str:
    """Kill somebody at a random moment, give the same command again, and compare.

    Returns:
        What happened, for the report.
    """
    process = start(place.command(out, kind))
    try:
        pid = choose(process, out, kind, draw)
        if pid is None:
            return "nobody to kill"
        os.kill(pid, signal.SIGKILL)
        fatal = pid == process.pid
        saved: Rows = {}
        names = {row.video: row.path for row in read_videos(out)} if out.exists() else {}
        if fatal and names:
            saved = saved_rows(out, names)
            agree(saved, {key: place.rows[key] for key in saved}, all_of_them=False)
        stdout, stderr = process.communicate(timeout=300)
        if fatal:
            assert process.returncode == -signal.SIGKILL
        else:  # it went on by itself
            assert process.returncode == 0, stderr
            said = json.loads(stdout)
            assert said["clips"] == len(place.rows)
    finally:
        process.kill()
        process.communicate()
    if fatal:
        new = finish(start(place.command(out, kind)), 300)["new_clips"]
        assert new <= len(place.rows) - len(saved)
    else:  # what was left to do is done
        new = place.encode_here(out).new_clips
        assert new == 0
    agree(rows_of(out), place.rows)
    same_statistics([place.whole, out])
    assert not list(out.glob("journal-*"))
    assert not list(out.glob(".*.partial"))
    return f"{len(saved)} of {len(place.rows)} clips saved, {new} encoded again"


@pytest.mark.slow
@pytest.mark.parametrize("number", range(KILLS))
def test_a_kill_at_any_moment_costs_at_most_the_open_shards(
    place: Place, tmp_path: Path, number: int, record_property: Callable[[str, object], None]
) -> None:
    draw = random.Random(number)
    kind = VICTIMS[number % len(VICTIMS)]
    for attempt in range(5):  # a moment may come before there is a decoder, or after the end
        told = kill_once(place, tmp_path / f"cache{attempt}", kind, draw)
        if told != "nobody to kill":
            break
    assert told != "nobody to kill"
    record_property("killed", f"{kind}: {told}")  # in --junitxml
