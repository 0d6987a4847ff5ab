"""The result for every image, as a table and in a few words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from deskpro.stages.preparation.faces import FOUND
from deskpro.stages.preparation.record import Prepared

_COLUMNS = (
    "sample_id", "split", "pid", "camid", "source", "width", "height", "turned", "head_share",
    "clothes_share", "skin_share", "decision", "faces", "score", "doubts", "left", "top", "side",
    "problem",
)  # fmt: skip
"""Of prepare.csv; those of steps that never ran are absent."""


def table(images: Sequence[Prepared], source: Path) -> pd.DataFrame:
    """A row for every image, as in prepare.csv; source: the raw dataset."""
    rows = []
    for image in images:
        sample = image.sample
        inside = sample.source.is_relative_to(source)
        rows.append(
            {
                "sample_id": sample.id,
                "split": sample.split,
                "pid": sample.pid,
                "camid": sample.camid,
                "source": str(sample.source.relative_to(source) if inside else sample.source),
                **image.facts,
                "problem": image.problem,
            }
        )
    names = {name for row in rows for name in row}
    listed = pd.DataFrame(rows, columns=[name for name in _COLUMNS if name in names])
    for name in {"width", "height", "faces", "left", "top", "side"} & names:
        listed[name] = listed[name].astype("Int64")
    return listed


def summary(images: Sequence[Prepared]) -> dict[str, object]:
    """The number of images and identities, decisions and doubts, by name."""
    good = [image for image in images if image.problem is None]
    identities = len({image.sample.pid for image in good})
    found: dict[str, object] = {"images": f"{len(good)} of {identities} identities"}
    decisions = Counter(image.facts["decision"] for image in good if "decision" in image.facts)
    if decisions:
        found["faces"] = counted(decisions, first=FOUND)
    doubts = Counter(d for image in good for d in image.facts.get("doubts", "").split("; ") if d)
    if doubts:
        found["doubtful"] = counted(doubts)
    turned = sum(bool(image.facts.get("turned")) for image in good)
    if turned:
        found["turned upright"] = turned
    return found


def counted(counts: Counter[str], first: str = "") -> str:
    """Names with their counts, the most frequent first."""
    ordered = sorted(counts.items(), key=lambda pair: (pair[0] != first, -pair[1], pair[0]))
    return ", ".join(f"{count} {name}" for name, count in ordered)
