"""Checkpoints of training: complete or absent, the last few kept, for one recipe only."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deskpro.cache.files import write_aside
from deskpro.cache.fingerprint import short
from deskpro.stages.base.distributed import world_size
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.params import both_named
from deskpro.stages.base.progress import warn
from deskpro.stages.base.training_options import Checkpointing

State = dict[str, Any]
"""Tensors, numbers, strings, and lists and dicts of them."""
_UNREADABLE = (
    OSError,
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    pickle.UnpicklingError,
)
"""What a damaged checkpoint, or a file that is none, raises."""


class Checkpoints:
    """The checkpoints of one training, in a folder of their own."""

    def __init__(
        self,
        folder: Path,
        provenance: Mapping[str, Any],
        options: Checkpointing,
        *,
        alike: bool = False,
    ) -> None:
        """
        Args:
            provenance: by name, everything that the result depends on; files by their content.
            options: how often to write one, how many are kept.
            alike: whether the result is the same, but for rounding, by any number of processes.
        """
        self.folder, self.options, self.alike = folder, options, alike
        self.provenance = json.loads(json.dumps(provenance, default=str))

    def load(self, *, replace: bool = False) -> State | None:
        """The newest readable state whose weights are finite, on the CPU; None if there is none.

        Args:
            replace: remove checkpoints of another provenance instead of refusing them.

        Raises:
            InputError: the checkpoint has another provenance, which the message names, or is of
                another number of processes.
        """
        for path in reversed(self._files()):
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
                differing = self._differences(json.loads(found["provenance"]))
                state, processes = dict(found["state"]), int(found["processes"])
                finite = all(tensor.isfinite().all() for tensor in state["network"].values())
            except _UNREADABLE as error:
                warn(f"{path}: unreadable checkpoint, trying the one before ({error})")
                continue
            if not finite:
                warn(f"{path}: its weights are not finite, trying the one before")
                continue
            if not differing:
                self._check_processes(path, processes)
                return state
            if not replace:
                raise InputError(
                    f"{path}: the checkpoint has other settings: {'; '.join(differing)}. Restore "
                    "them to resume; FORCE=1 (--force) starts over"
                )
            self.clear()
            return None
        return None

    def save(self, step: int, state: State) -> None:
        """Write the state after a step, then remove all but the last `keep`."""
        path = self.folder / f"step-{step:09d}.pt"
        with write_aside(path) as aside, aside.open("wb") as file:
            provenance = json.dumps(self.provenance)
            content = {"provenance": provenance, "processes": world_size(), "state": state}
            torch.save(content, file)
        for old in self._files()[: -self.options.keep]:
            old.unlink()

    def clear(self) -> None:
        """Remove all of them, and what a killed process left half-written."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _check_processes(self, path: Path, before: int) -> None:
        """Say that the number of processes is another one; refuse it where that changes more."""
        now = world_size()
        if before == now:
            return
        what = f"{path}: the checkpoint is of a training by {before} processes, here are {now}"
        if not (self.alike or self.options.other_processes):
            raise InputError(
                f"{what}: batch norm and hardest triplets would be those of another share of the "
                f"batch. Start {before} to resume, or go on all the same: --set "
                "checkpoints.other_processes=true"
            )
        warn(f"{what}; the weights will not be those of {before}")

    def _differences(self, found: Mapping[str, Any]) -> list[str]:
        before, now = both_named(found, self.provenance)
        pairs = [(name, before.get(name), now.get(name)) for name in sorted({*before, *now})]
        return [f"{n} was {short(old)}, is {short(new)}" for n, old, new in pairs if old != new]
