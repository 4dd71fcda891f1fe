"""Several processes of one run on this machine, without a launcher: forked, joined by gloo."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

import torch

from pvdm_cli import ranks


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def together(size: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """Let so many processes do the same work together; return what each has returned.

    Args:
        size: Processes.
        work: A function of a module; it finds its place by `ranks.here()`.
        args: Of the work.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["killing", "pvdm_cli.api", "ranks_together"])
    results, port = server.SimpleQueue(), free_port()
    children = [
        server.Process(target=_join, args=(rank, size, port, results, work, args))
        for rank in range(size)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0] * size
    return [value for _, value in sorted(results.get() for _ in children)]


def _join(
    rank: int, size: int, port: int, results: Any, work: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    """What a process does; one thread, so that sums are rounded alike."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {key: str(value) for key, value in (place | address).items()}
    with ranks.joined() as here:
        assert (here.rank, here.size) == (rank, size)
        results.put((rank, work(*args)))
