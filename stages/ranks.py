"""Several processes on one piece of work, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`; barrier waits until every process has called it."""

    rank: int = 0
    size: int = 1
    barrier: Callable[[], None] = lambda: None


def rank() -> int:
    """This process's number, 0 where it is alone: the one that writes files and speaks."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def join() -> Iterator[Ranks]:
    """Meet the other processes for as long as the block runs; alone, nothing is set up."""
    if size() == 1:
        yield Ranks()
        return
    from torch import distributed

    def barrier() -> None:
        distributed.barrier()

    distributed.init_process_group("gloo")  # it only waits; no tensor is sent
    try:
        yield Ranks(rank(), size(), barrier)
    finally:
        distributed.destroy_process_group()
