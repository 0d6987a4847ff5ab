"""Which of the training identities are trained on, and which are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import layout_of
from deskpro.stages.data.unlabelled import read_unlabelled

HELD_OUT = "validation"
"""The split of held-out identities."""


class Identities(NamedTuple):
    """The choice among training identities; that of an identity depends on its name."""

    held_out: float = 0.0
    """Share that no network is trained on."""
    most: int | None = None
    """Of the others, how many are trained on; all where None."""

    def choose(self, table: pd.DataFrame, people: Iterable[str] | None = None) -> pd.DataFrame:
        """A table of `read_index` whose training rows of held-out identities are of the split
        `HELD_OUT`, without those beyond `most`.

        people: every training identity; given where the table lacks some, so that others, who read
        the table whole, choose the same.
        """
        train = table["split"] == "train"
        known = table.loc[train, "pid"].unique() if people is None else people
        place = {pid: _place(pid) for pid in known}
        others = sorted(
            (pid for pid in place if place[pid] >= self.held_out), key=place.__getitem__
        )
        held, beyond = {*place} - {*others}, {*(others[self.most :] if self.most else ())}
        split = table["split"].mask(train & table["pid"].isin(held), HELD_OUT)
        return table.assign(split=split)[~(train & table["pid"].isin(beyond))]

    def lacks(self, chosen: pd.DataFrame) -> list[str]:
        """What is wrong with who is held out, of a table that `choose` gave."""
        found = chosen.loc[chosen["split"] == HELD_OUT, "pid"].nunique()
        if not self.held_out or found > 1:
            return []
        return [
            f"data.validation {self.held_out:g} holds {found} of its training identities out, two "
            "or more are needed: --set data.validation with a larger share (at most 0.5), or 0"
        ]


EVERYBODY = Identities()


def _place(pid: str) -> float:
    """A number in 0..1 that follows from the name alone: others may come and go."""
    digest = hashlib.sha256(f"identity {pid}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def training_index(
    root: Path, dataset: str, identities: Identities, unlabelled: Path | None = None
) -> pd.DataFrame:
    """Every image that is here of the identities that are trained on; unlabelled: and of this
    folder, whose pid is None."""
    index, _ = read_index(root, layout_of(root, dataset), ("train",))
    index = identities.choose(index)
    index = index[index["split"] == "train"]
    if unlabelled is not None:
        index = pd.concat([index, read_unlabelled(unlabelled)[0]])
    return index.reset_index(drop=True)
