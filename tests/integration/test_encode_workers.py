"""Decoding in processes: the same clips, whatever happens to the process; and want of memory."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import CONFIG, tiny_model

from pvdm_cli.data import decoder
from pvdm_cli.data.cache import Cache
from pvdm_cli.data.catalog import Source, find_videos
from pvdm_cli.data.decoder import Process
from pvdm_cli.data.feed import Clip, Event, Here, Job, feed
from pvdm_cli.encoder import Encoder
from pvdm_cli.encoding import encode_videos, identity_of
from pvdm_cli.errors import ModelError, PvdmError
from pvdm_cli.progress import Silent

IDENTITY = identity_of(tiny_model(), window_stride=3)  # clips of 4 frames


class Heard(Silent):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture(scope="module")
def skies(shared: Path) -> list[Source]:
    """Three clips of 32 frames: 10 windows each."""
    return find_videos(shared / "data" / "sky48_128")[:3]


def same(ours: list[Event], theirs: list[Event]) -> bool:
    """Whether two lists of events agree, frames and all."""
    return len(ours) == len(theirs) and all(
        type(a) is type(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.fixture
def process() -> Iterator[Process]:
    made = Process(IDENTITY)
    yield made
    made.close()


def gone(pid: int, seconds: float = 10) -> bool:
    """Wait until a process has ended (a zombie has)."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_process_gives_the_clips_that_a_thread_gives(
    skies: list[Source], tmp_path: Path, process: Process
) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    jobs = [Job(0, skies[0].path), Job(1, tmp_path / "bad.mp4"), Job(2, skies[1].path, {3, 6})]
    ours = list(feed(jobs, [process], ahead=2))
    assert same(ours, list(feed(jobs, [Here(IDENTITY)], ahead=2)))
    assert [type(event) for event in ours].count(Clip) == 10 + 8
    assert process.pid is None  # ended with the feed


@pytest.mark.slow
def test_a_killed_decoder_is_noticed_and_its_video_tried_again(
    skies: list[Source], process: Process
) -> None:
    job = Job(0, skies[0].path)
    ours = []
    for number, (event, _) in enumerate(process.decode(job)):
        ours.append(event)
        if number == 4:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
    assert same(ours, [event for event, _ in Here(IDENTITY).decode(job)])


@pytest.mark.slow
def test_a_video_that_kills_its_decoder_twice_is_skipped_with_the_reason(
    skies: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Process.decode

    def deadly(self: Process, job: Job) -> Iterator[tuple[Event, float]]:
        for event, seconds in real(self, job):
            yield event, seconds
            if job.video == 1 and self.pid and isinstance(event, Clip):
                os.kill(self.pid, signal.SIGKILL)

    monkeypatch.setattr(Process, "decode", deadly)
    heard = Heard()
    result = encode_videos(tiny_model(), skies, tmp_path / "c", workers=1, reporter=heard)
    assert [(one.path, one.reason) for one in result.skipped] == [
        (skies[1].name, "the decoder died (signal 9)")
    ]
    assert heard.lines == [f"skipped {skies[1].name}: the decoder died (signal 9)"]
    assert set(Cache.open(tmp_path / "c").index[:, 0].tolist()) == {0, 2}


@pytest.mark.slow
def test_a_decoder_ends_with_its_parent_and_leaves_nothing(
    skies: list[Source], tmp_path: Path
) -> None:
    code = f"""
        import sys, time
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from tiny import tiny_model
        from pathlib import Path
        from pvdm_cli.data.decoder import Process
        from pvdm_cli.data.feed import Job
        from pvdm_cli.encoding import identity_of
        process = Process(identity_of(tiny_model(), window_stride=1))
        events = process.decode(Job(0, Path({str(skies[0].path)!r})))
        next(events)
        print(process.pid, flush=True)
        time.sleep(60)
    """
    before = set(Path("/dev/shm").iterdir())
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not gone(pid, 0.1)
    parent.kill()
    parent.communicate()
    assert gone(pid)
    assert set(Path("/dev/shm").iterdir()) <= before


def test_a_decoder_that_does_not_start_is_an_error_and_skips_nothing(
    skies: list[Source], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder.sys, "executable", "/bin/false")
    with pytest.raises(PvdmError, match=r"does not start \(exit code 1\); --workers 0"):
        encode_videos(tiny_model(), skies, tmp_path / "c", workers=1)
    assert not (tmp_path / "c" / "skipped.jsonl").read_text()


def frames_of(clips: int) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    clip = CONFIG.clip
    shape = (clips, clip.frames, clip.height, clip.width, 3)
    return np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)


def test_a_batch_that_does_not_fit_is_halved_and_no_clip_is_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The real network, but for the error: a GPU's allocator raises it above three clips."""
    from pvdm_cli import encoder

    real = encoder.encode_measured

    def small(model: object, frames: "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]", *more: str):  # type: ignore[no-untyped-def]
        if len(frames) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, frames, *more)  # type: ignore[arg-type]

    frames, model, heard = frames_of(11), tiny_model(), Heard()
    whole = np.concatenate([z for z, _ in Encoder(model, batch_size=11).encode(frames)])
    monkeypatch.setattr(encoder, "encode_measured", small)
    tight = Encoder(model, batch_size=10, reporter=heard)
    found = np.concatenate([z for z, _ in tight.encode(frames)])
    np.testing.assert_allclose(found, whole, atol=1e-3)
    assert tight.batch_size == 2
    assert heard.lines == [
        "cpu has no memory for 10 clips at once; going on with --batch-size 5",
        "cpu has no memory for 5 clips at once; going on with --batch-size 2",
    ]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS")
def test_real_want_of_memory_on_the_cpu_makes_batches_smaller(tmp_path: Path) -> None:
    code = f"""
        import resource, sys
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        import numpy as np, torch
        from pvdm_cli.config import ModelConfig
        from pvdm_cli.encoder import Encoder
        from pvdm_cli.model import Model
        from pvdm_cli.models.autoencoder import Autoencoder
        from test_encode_workers import Heard
        torch.set_num_threads(1)
        sizes = {{"clip": {{"frames": 8, "height": 64, "width": 64}},
                 "autoencoder": {{"width": 64, "depth": 1, "projection_depth": 1}}}}
        config = ModelConfig.model_validate(sizes)
        model = Model(config, Autoencoder(config).eval().requires_grad_(False))
        frames = np.zeros((64, 8, 64, 64, 3), np.uint8)
        next(Encoder(model, batch_size=1).encode(frames))  # load what is loaded on first use
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (48 << 20), -1))
        heard = Heard()
        encoder = Encoder(model, batch_size=64, reporter=heard)
        print(sum(len(z) for z, _ in encoder.encode(frames)), encoder.batch_size)
        print(heard.lines[0])
    """
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    counts, said = done.stdout.splitlines()
    clips, batch = map(int, counts.split())
    assert (clips, said) == (
        64,
        "cpu has no memory for 64 clips at once; going on with --batch-size 32",
    )
    assert 1 <= batch <= 32


def test_not_even_one_clip_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr("pvdm_cli.encoder.encode_measured", full)
    with pytest.raises(ModelError, match="no memory for even one clip"):
        list(Encoder(tiny_model(), batch_size=2).encode(frames_of(2)))
