"""`base.distributed` as an object, for stages whose blocks are not mapped by an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from deskpro.stages.base import distributed
from deskpro.stages.base.distributed import rank as rank
from deskpro.stages.base.distributed import world_size as size


class Ranks(NamedTuple):
    """This rank and what it exchanges with the others."""

    rank: int
    size: int
    share: Callable[[Any], Any] = distributed.broadcast_object
    gather: Callable[[Any], list[Any]] = distributed.all_gather_object
    rank_zero_first: Callable[[], AbstractContextManager[None]] = distributed.rank_zero_first


@contextmanager
def join() -> Iterator[Ranks]:
    """The ranks, while the block runs."""
    with distributed.shared_errors():
        yield Ranks(rank(), size())
