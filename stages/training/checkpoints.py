"""Checkpoints of training: complete or absent, the last few kept, for the same recipe only."""

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
        """provenance: by name, everything that the result depends on; every: steps between two, as
        the loop is to write them; keep: how many are kept."""
        self.folder, self.every, self.keep = folder, every, keep
        self.provenance = json.loads(json.dumps(provenance, default=str))

    def load(self, *, replace: bool = False) -> State | None:
        """The newest state, on the CPU; None where there is none.

        Raises InputError, naming what differs, where it was begun with something else; `replace`
        removes such checkpoints instead.
        """
        for path in reversed(self._files()):
            try:
                found = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                log(f"{path}: unreadable checkpoint, trying the one before ({error})")
                continue
            differing = self._differences(json.loads(found["made_from"]))
            if not differing:
                return dict(found["state"])
            if not replace:
                raise InputError(
                    f"{path}: training was begun otherwise: {'; '.join(differing)}. Set that back "
                    "to go on with it, or type FORCE=1 (--force) to begin anew"
                )
            self.clear()
            return None
        return None

    def save(self, step: int, state: State) -> None:
        """Write the state after a step, then remove all but the last `keep`."""
        with write_aside(self.folder / f"step-{step:09d}.pt") as aside:
            torch.save({"made_from": json.dumps(self.provenance), "state": state}, aside)
        for path in self._files()[: -self.keep]:
            path.unlink()

    def clear(self) -> None:
        """Remove all: the training is done, or begins anew."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():  # also what a kill left half-written
                path.unlink()
            self.folder.rmdir()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.pt"))

    def _differences(self, before: Mapping[str, Any]) -> list[str]:
        names = sorted(before.keys() | self.provenance.keys())
        return [
            f"{name} was {_short(before.get(name))}, is {_short(self.provenance.get(name))}"
            for name in names
            if before.get(name) != self.provenance.get(name)
        ]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:12] + "…"
