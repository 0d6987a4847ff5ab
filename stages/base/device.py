"""Where networks run."""

from __future__ import annotations

import torch

from deskpro.stages.base import ranks
from deskpro.stages.base.errors import InputError

PRECISION = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of autocast types in the options."""


def pick(name: str) -> torch.device:
    """auto (CUDA where there is a GPU), cpu, cuda or cuda:N; InputError for an absent GPU.

    Of several processes on a machine, auto and cuda give each a GPU of its own while they last.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count():
        name = f"cuda:{ranks.local_rank() % torch.cuda.device_count()}"
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(
            f"device {name}: this machine has {count} CUDA devices; allowed is cpu or auto"
        )
    return device


def use_threads(count: int) -> None:
    """Let the CPU work of this process use so many threads: others run beside it."""
    torch.set_num_threads(count)
