"""Several processes as torchrun starts them: rank, device, what they exchange, and why one failed.

One process group serves a process as long as it lives. Importing this module loads no torch.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from deskpro.stages.base.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

TIMEOUT = timedelta(hours=12)
"""How long a rank waits for the others: rank 0 may hash a whole dataset first."""


def rank() -> int:
    """The number of this process; 0, the main one, writes files and logs."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes torchrun started, on all machines; 1 without it."""
    size = _number("WORLD_SIZE", 1)
    absent = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if size > 1 and absent:
        raise InputError(
            f"WORLD_SIZE={size} without {', '.join(absent)}: start several processes by torchrun, "
            "or unset WORLD_SIZE"
        )
    return size


def _number(name: str, default: int) -> int:
    """An environment variable that torchrun sets."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise InputError(f"{name}={text}: must be a number, as torchrun sets it; or unset it")
    return int(text)


def is_main() -> bool:
    """Whether this is rank 0."""
    return rank() == 0


def device_type(name: str) -> str:
    """`cuda` or `cpu`, as `pick_device` would pick it, or refuse it; picks none."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.device_count() else "cpu"
    with suppress(RuntimeError):  # torch knows no such device
        if (kind := torch.device(name).type) in ("cpu", "cuda"):
            return kind
    raise InputError(f"device is {name!r}; must be auto, cpu, cuda or cuda:N")


def pick_device(name: str) -> torch.device:
    """The device of this rank, made current if it is a GPU.

    Args:
        name: auto (CUDA where there is a GPU), cpu, cuda or cuda:N.

    Raises:
        InputError: it is no device, or a GPU that is absent or another rank's.
    """
    import torch

    if device_type(name) == "cpu":
        return torch.device("cpu")
    named = None if name == "auto" else torch.device(name).index
    ranks, count = _number("LOCAL_WORLD_SIZE", 1), torch.cuda.device_count()
    index = _number("LOCAL_RANK", 0) if named is None else named
    if ranks > 1 and (named is not None or ranks > count):
        raise InputError(
            f"device {name}: each of the {ranks} ranks on this machine needs a GPU of its own, the "
            f"machine has {count}. Start {max(count, 1)} or fewer with device=cuda, or set "
            "device=cpu"
        )
    if index >= count:
        share = "--set launch.gpus_per_worker=0.25 lets workers share one"
        raise InputError(
            f"device {name}: this machine has {count} CUDA devices, number {index} is wanted; "
            + (share if count and named is None else "allowed is cpu or auto")
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@functools.cache
def _store() -> Any:
    """torchrun's key-value store, which outlives the ranks and their connections.

    With `--max-restarts` it also outlives an attempt, whose keys name processes that are gone: each
    attempt has its own.
    """
    from torch import distributed

    store = next(iter(distributed.rendezvous("env://")))[0]
    return distributed.PrefixStore(f"attempt {_number('TORCHELASTIC_RESTART_COUNT', 0)}", store)


def init_group() -> None:
    """Connect the ranks, once in the life of a process; alone, do nothing."""
    import torch
    from torch import distributed

    if world_size() > 1 and not distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        distributed.init_process_group(
            backend, store=_store(), rank=rank(), world_size=world_size(), timeout=TIMEOUT
        )
        atexit.register(distributed.destroy_process_group)


def all_gather_object(value: Any) -> list[Any]:
    """What each rank gives, in their order; over the CPU, so that no GPU waits."""
    found = [value] * world_size()
    if world_size() > 1:
        from torch import distributed

        init_group()
        distributed.all_gather_object(found, value)
    return found


def broadcast_object(value: Any) -> Any:
    """What rank 0 gives."""
    return all_gather_object(value if is_main() else None)[0]


def barrier() -> None:
    """Wait until every rank is here."""
    all_gather_object(None)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Rank 0 runs the block, then the others do, and find the files it wrote."""
    if not is_main():
        barrier()
    yield
    if is_main():
        barrier()


def all_gather(values: torch.Tensor) -> torch.Tensor:
    """The tensors [B, …] of all ranks as one [B·world_size, …]; gradients flow back to each.

    torch.distributed.nn.functional.all_gather is deprecated in torch 2.14, and on gloo gives wrong
    gradients where the gradient of its result is not contiguous, as a triplet loss makes it.
    """
    if world_size() == 1:
        return values
    import torch
    from torch import distributed

    init_group()

    def summed(gradient: torch.Tensor) -> torch.Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    own = values.detach().contiguous()
    parts = [torch.empty_like(own) for _ in range(world_size())]
    distributed.all_gather(parts, own)
    parts[rank()] = values
    whole = torch.cat(parts)
    if whole.requires_grad:
        whole.register_hook(summed)
    return whole


def mean_of_ranks(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks of a tensor that has one shape on all of them."""
    if world_size() == 1:
        return values
    from torch import distributed

    init_group()
    total = values.clone()
    distributed.all_reduce(total)
    return total / world_size()


def data_parallel(network: nn.Module, device: torch.device, *, partly: bool = False) -> nn.Module:
    """The module to call in training: its gradients are averaged over the ranks.

    partly: some steps train only some of its parameters.
    """
    if world_size() == 1:
        return network
    from torch.nn.parallel import DistributedDataParallel

    init_group()
    return DistributedDataParallel(
        network,
        device_ids=[device.index] if device.type == "cuda" else None,
        find_unused_parameters=partly,
        broadcast_buffers=False,  # rank 0's are saved; each rank keeps its own while training
    )


@contextmanager
def shared_errors() -> Iterator[None]:
    """Where the block fails only because another rank failed, report that rank's error.

    Raises:
        InputError: "rank K failed: ERROR", caused by this rank's own error.
    """
    try:
        yield
    except Exception as error:
        if world_size() == 1:
            raise
        from torch import distributed

        reason = str(error) or type(error).__name__
        lost = isinstance(error, distributed.DistError) or "gloo" in reason
        failed, cause = _first_failure(f"lost another rank: {reason}" if lost else reason)
        if lost:
            raise InputError(f"rank {failed} failed: {cause}") from error
        raise


def is_first_failure(message: str) -> bool:
    """Whether to print an error: what all ranks meet, or what only follows, is printed once."""
    try:
        if world_size() == 1:
            return True
        failed, cause = _first_failure(message)
    except (InputError, RuntimeError, ValueError):  # no store: better printed twice than never
        return True
    return failed == rank() or message not in (cause, f"rank {failed} failed: {cause}")


def _first_failure(message: str) -> tuple[int, str]:
    """Rank and message of the first failure: of this one if there is none yet."""
    found = _store().compare_set("deskpro/failure", "", f"{rank()}:{message}").decode()
    failed, _, cause = found.partition(":")
    return int(failed), cause
