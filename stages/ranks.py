"""Several processes on one piece of work, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`.

    barrier waits until every process has called it; any says to all whether one said so.
    """

    rank: int = 0
    size: int = 1
    barrier: Callable[[], None] = lambda: None
    any: Callable[[bool], bool] = lambda said: said


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
def join(device: str = "cpu") -> Iterator[Ranks]:
    """Meet the other processes for as long as the block runs; alone, nothing is set up.

    device: cpu or cuda, where tensors that the processes exchange lie. Waiting and telling go over
    the CPU in any case, and hold up no GPU.
    """
    if size() == 1:
        yield Ranks()
        return
    import torch
    from torch import distributed

    distributed.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    telling: Any = distributed.new_group(backend="gloo")

    def barrier() -> None:
        distributed.barrier(telling)

    def any_(said: bool) -> bool:
        flag = torch.tensor(int(said))
        distributed.all_reduce(flag, group=telling)
        return bool(flag)

    try:
        yield Ranks(rank(), size(), barrier, any_)
    finally:
        distributed.destroy_process_group()
