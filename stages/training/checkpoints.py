"""Checkpoints of training: complete or absent, the last few kept, for one recipe only."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deskpro.cache.files import write_aside
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.progress import log

State = dict[str, Any]
"""Tensors, numbers, strings, and lists and dicts of them."""


class Checkpoints:
    """The checkpoints of one training, in a folder of their own."""

    def __init__(self, folder: Path, provenance: Mapping[str, Any], every: int, keep: int) -> None:
        """
        Args:
            provenance: by name, everything that the result depends on; files by their content.
            every: steps between two checkpoints, for the loop.
            keep: how many are kept.
        """
        self.folder, self.every, self.keep = folder, every, keep
        self.provenance = json.loads(json.dumps(provenance, default=str))

    def load(self, *, replace: bool = False) -> State | None:
        """The newest readable state, on the CPU; None if there is none.

        Args:
            replace: remove checkpoints of another provenance instead of refusing them.

        Raises:
            InputError: the checkpoint has another provenance; the message names what differs.
        """
        for path in reversed(self._files()):
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
                differing = self._differences(json.loads(found["provenance"]))
            except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
                log(f"{path}: unreadable checkpoint, trying the one before ({error})")
                continue
            if not differing:
                return dict(found["state"])
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
            torch.save({"provenance": json.dumps(self.provenance), "state": state}, file)
        for old in self._files()[: -self.keep]:
            old.unlink()

    def clear(self) -> None:
        """Remove all of them, and what a killed process left half-written."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                path.unlink()
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _differences(self, before: Mapping[str, Any]) -> list[str]:
        names = sorted(before.keys() | self.provenance.keys())
        pairs = [(name, before.get(name), self.provenance.get(name)) for name in names]
        return [f"{n} was {_short(old)}, is {_short(new)}" for n, old, new in pairs if old != new]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
