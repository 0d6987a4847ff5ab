"""What was made of every image, as a table and in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.stages.preparation.faces import FOUND
from deskpro.stages.preparation.record import Ledger
from deskpro.stages.preparation.samples import Sample
from deskpro.stages.preparation.step import Outcome, Step

_COLUMNS = (
    "sample_id", "split", "pid", "camid", "source", "width", "height", "turned", "head_share",
    "clothes_share", "skin_share", "decision", "faces", "score", "doubts", "left", "top", "side",
    "problem",
)  # fmt: skip
"""Of prepare.csv; those of steps that weren't done are absent."""


@dataclass
class Prepared:
    """An image on its way through the steps."""

    sample: Sample
    keys: dict[str, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    foreign: bool = False

    def take(self, step: Step, key: str, outcome: Outcome) -> None:
        self.keys[step.name] = key
        self.facts |= outcome.facts
        self.problem, self.foreign = outcome.problem, outcome.foreign


def recall(images: Sequence[Prepared], ledgers: Sequence[Ledger]) -> None:
    """Add what steps that weren't done now said of the images before."""
    for image in images:
        for ledger in ledgers:
            entry = ledger.latest(image.sample.id)
            if entry is not None:
                image.facts = entry.facts | image.facts


def table(images: Sequence[Prepared], source: Path) -> pd.DataFrame:
    """A row for every image, as prepare.csv has it."""
    rows = []
    for image in images:
        sample = image.sample
        below = sample.source.relative_to(source) if sample.source.is_relative_to(source) else ""
        rows.append(
            {
                "sample_id": sample.id,
                "split": sample.split,
                "pid": sample.pid,
                "camid": sample.camid,
                "source": str(below or sample.source),
                **image.facts,
                "problem": image.problem,
            }
        )
    named = {name for row in rows for name in row}
    # In one order, whatever was done now and whatever before.
    listed = pd.DataFrame(rows, columns=[name for name in _COLUMNS if name in named])
    for name in ("width", "height", "faces", "left", "top", "side"):
        if name in listed:
            listed[name] = listed[name].astype("Int64")
    return listed


def facts(images: Sequence[Prepared]) -> dict[str, object]:
    """How many images there are, and what was decided about them."""
    good = [image for image in images if image.problem is None]
    said: dict[str, object] = {
        "images": f"{len(good)} of {len({p.sample.pid for p in good})} identities",
    }
    decisions = Counter(p.facts["decision"] for p in good if "decision" in p.facts)
    if decisions:
        said["faces"] = counted(decisions, first=FOUND)
    doubts = Counter(d for p in good for d in p.facts.get("doubts", "").split("; ") if d)
    if doubts:
        said["doubtful"] = counted(doubts)
    turned = sum(bool(image.facts.get("turned")) for image in good)
    if turned:
        said["turned upright"] = turned
    return said


def counted(counts: Counter[str], first: str = "") -> str:
    """Names with their counts, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (pair[0] != first, -pair[1], pair[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered)
