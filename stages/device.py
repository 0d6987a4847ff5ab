"""Where networks run."""

from __future__ import annotations

import torch

from stages.errors import InputError


def pick(name: str) -> torch.device:
    """auto (CUDA where there is a GPU), cpu, cuda or cuda:N; InputError for an absent GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise InputError(
            f"device {name}: this machine has {count} CUDA devices; allowed is cpu or auto"
        )
    return device
