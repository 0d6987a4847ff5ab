"""The result for every image, as a table and in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from deskpro.stages.preparation.faces import FOUND
from deskpro.stages.preparation.samples import Sample

_COLUMNS = (
    "sample_id", "split", "pid", "camid", "source", "width", "height", "turned", "head_share",
    "clothes_share", "skin_share", "decision", "faces", "score", "doubts", "left", "top", "side",
    "problem",
)  # fmt: skip
"""Of prepare.csv; those of steps that never ran are absent."""


def table(samples: Sequence[Sample], raw: Path) -> pd.DataFrame:
    """A row for every image, as in prepare.csv; raw: the raw dataset."""
    rows = [
        {
            "sample_id": sample.id,
            "split": sample.split,
            "pid": sample.pid,
            "camid": sample.camid,
            "source": str(sample.source).removeprefix(f"{raw}/"),
            **sample.facts,
            "problem": sample.problem,
        }
        for sample in samples
    ]
    names = {name for row in rows for name in row}
    listed = pd.DataFrame(rows, columns=[name for name in _COLUMNS if name in names])
    for name in {"width", "height", "faces", "left", "top", "side"} & names:
        listed[name] = listed[name].astype("Int64")
    return listed


def summary(samples: Sequence[Sample]) -> dict[str, object]:
    """The number of images and identities, decisions and doubts, by name."""
    good = [sample for sample in samples if sample.problem is None]
    facts = [sample.facts for sample in good]
    decisions = Counter(known["decision"] for known in facts if "decision" in known)
    doubts = Counter(d for known in facts for d in known.get("doubts", "").split("; ") if d)
    found = {
        "images": f"{len(good)} of {len({sample.pid for sample in good})} identities",
        "faces": _counted(decisions, first=FOUND),
        "doubtful": _counted(doubts),
        "turned upright": sum(bool(known.get("turned")) for known in facts),
    }
    return {name: fact for name, fact in found.items() if fact}


def _counted(counts: Counter[str], first: str = "") -> str:
    """Names with their counts, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (pair[0] != first, -pair[1], pair[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered)
