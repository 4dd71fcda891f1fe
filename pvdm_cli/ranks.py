"""The processes that do one piece of work together: which one this is, and what they agree on.

Started by torch's elastic launcher (`torchrun`, or `--nproc-per-node` of a command), a process
finds its place in the environment. Alone, everything here returns at once. Torch is loaded where
it is used, so that a process can ask cheaply whether it is alone.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import repeat, takewhile
from typing import TYPE_CHECKING, TypeVar

from pvdm_cli.errors import PvdmError

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed.distributed_c10d import Store

T = TypeVar("T")
# All wait while one of them validates, draws or writes; the launcher notices those that die.
PATIENCE = timedelta(hours=2)


class PeerLostError(PvdmError):
    """Another process of the same work has ended, so this one cannot go on."""

    def __init__(self, message: str) -> None:
        global _ending
        super().__init__(message)
        _ending = True


_ending = False


def ending() -> bool:
    """Whether this process is on its way out already, because another one has ended."""
    return _ending


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that work together.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
        store: Small values that all of them see; None if it is alone.
    """

    rank: int = 0
    size: int = 1
    store: "Store | None" = None

    @property
    def main(self) -> bool:
        """Whether this is the one that logs and writes what there is one of."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until all are here."""
        self.agree([False])

    def agree(self, flags: Sequence[bool]) -> list[bool]:
        """Tell for each flag whether any process has it set: the same answer everywhere."""
        if self.size == 1:
            return list(flags)
        import torch

        return self.sum(torch.tensor(flags, dtype=torch.int32)).bool().tolist()

    def sum(self, values: "Tensor") -> "Tensor":
        """Add up a tensor over all processes."""
        if self.size == 1:
            return values
        import torch.distributed as dist

        total = values.clone()
        with watching():
            dist.all_reduce(total)
        return total

    def first(self, work: Callable[[], T]) -> T:
        """Do something in the first process only; all get what it returns (it is pickled)."""
        if self.size == 1:
            return work()
        import torch
        import torch.distributed as dist

        box = [work() if self.main else None]
        with watching():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]  # type: ignore[return-value]  # the first process has filled it

    def gather(self, value: T) -> list[T]:
        """Return what each process has, in the order of their numbers (it is pickled)."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        box: list[T | None] = [None] * self.size
        with watching():
            dist.all_gather_object(box, value)
        return box  # type: ignore[return-value]  # all have filled it

    def tickets(self, name: str, total: int) -> Iterator[int]:
        """Share out the numbers below `total`: each goes to the process that asks next.

        Args:
            name: Of this piece of work; all processes do the pieces of one name in the same order.
            total: How many numbers there are.
        """
        if self.store is None:
            return iter(range(total))
        _pieces[name] += 1
        add = partial(self.store.add, f"{name}/{_pieces[name]}", 1)
        return takewhile(lambda number: number < total, (add() - 1 for _ in repeat(None)))

    def says(self, text: str) -> bool:
        """Whether this process is the one to say a line that several may want to say.

        Not if that cannot be found out: the first process, which is gone then, has said it, or its
        launcher tells of its death.
        """
        key = f"said/{hashlib.sha256(text.encode()).hexdigest()}"
        return self._count(key, 1) in (0, 1)

    def fail(self) -> None:
        """Let the others know that it is this process's failure that ends the work."""
        self._count("failed", 1)

    @property
    def failed(self) -> bool:
        """Whether a process has failed and says why itself."""
        return self._count("failed", 0) > 0

    @property
    def store_lost(self) -> bool:
        """Whether the process that kept what all share is gone."""
        return self._count("failed", 0) < 0

    def _count(self, key: str, more: int) -> int:
        """Add to a shared count; 0 where there is none, -1 if the process that kept it is gone."""
        if self.store is None:
            return 0
        try:
            return int(self.store.add(key, more))
        except RuntimeError:
            return -1


_here = Ranks()
_pieces: Counter[str] = Counter()  # pieces of work of one name so far


def here() -> Ranks:
    """Return the place of this process: alone unless `joined` holds."""
    return _here


def launched() -> bool:
    """Whether a launcher has started this process beside others."""
    needed = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and all(key in os.environ for key in needed)


def restarted() -> bool:
    """Whether this process follows one that has died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def joined() -> Iterator[Ranks]:
    """Meet the other processes a launcher has started; alone if there are none.

    Tensors of the CPU go by gloo, those of a GPU by nccl.
    """
    global _here
    if _here.size > 1 or not launched():
        yield _here
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    with watching():
        store, rank, size = next(iter(rendezvous("env://")))
        # The launcher may keep its store from start to start, with what was said in it before.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        group = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            group,
            store=PrefixStore("group", store),
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
        )
    _here = Ranks(rank, size, PrefixStore("pvdm", store))
    yield _here
    # Only after good work: with a peer gone this could wait for it. One that leaves sooner may break
    # the connection of one that is still here; by then all have done their work.
    with suppress(PeerLostError):
        _here.barrier()
    _here = Ranks()
    dist.destroy_process_group()


@contextmanager
def watching() -> Iterator[None]:
    """Say in a sentence that another process is gone, where torch tells of a connection.

    Raises:
        PeerLostError: In place of what torch raises then.
    """
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        if isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error):
            raise PeerLostError(
                "another process of this run has ended; the launcher starts all again if it may, "
                "else give the same command to go on"
            ) from error
        raise
