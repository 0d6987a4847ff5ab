"""Several processes on one piece of work, as torchrun starts them."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from deskpro.stages.base.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """This process's number among `size`, and what the processes can tell each other.

    share gives everybody what the first process put in; gather gives everybody what each put in;
    any says to all whether one said so. All three wait for every process.
    """

    rank: int = 0
    size: int = 1
    share: Callable[[Any], Any] = lambda value: value
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    any: Callable[[bool], bool] = lambda said: said

    @contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """The first process runs the block, then the others do, and find what it left."""
        if self.rank:
            self.share(None)
        yield
        if not self.rank:
            self.share(None)


def rank() -> int:
    """This process's number, 0 where it is alone: the one that writes files and speaks."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def local_rank() -> int:
    """This process's number on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def size() -> int:
    """How many processes torchrun started, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


_MEETINGS = itertools.count()


@functools.cache
def _store() -> Any:
    """Where the processes find each other; there is one, however often they meet."""
    from torch import distributed

    return next(iter(distributed.rendezvous("env://")))[0]


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

    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo",
        # Under a name of its own: what an earlier meeting left there would be taken for this one's.
        store=distributed.PrefixStore(f"meeting-{next(_MEETINGS)}", _store()),
        rank=rank(),
        world_size=size(),
    )
    telling: Any = distributed.new_group(backend="gloo", timeout=timedelta(days=7))

    def share(value: Any) -> Any:
        box = [value]
        distributed.broadcast_object_list(box, src=0, group=telling)
        return box[0]

    def gather(value: Any) -> list[Any]:
        box: list[Any] = [None] * size()
        distributed.all_gather_object(box, value, group=telling)
        return box

    def any_(said: bool) -> bool:
        flag = torch.tensor(int(said))
        distributed.all_reduce(flag, group=telling)
        return bool(flag)

    try:
        yield Ranks(rank(), size(), share, gather, any_)
    except RuntimeError as error:
        if "gloo" not in str(error) and not isinstance(error, distributed.DistError):
            raise
        raise InputError(
            "another process stopped, so this one does; its message says why"
        ) from None
    finally:
        distributed.destroy_process_group()
