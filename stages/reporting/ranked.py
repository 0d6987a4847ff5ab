"""Ranked lists: the queries that went best and worst, each with the images found for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

Show = Callable[[str, str | None], str | None]
"""(kind of thumbnail, path) → data URI, or None for an image that isn't there."""


@dataclass(frozen=True)
class Found:
    """An image of the ranked list."""

    rank: int
    sample_id: str
    pid: str
    camid: str
    clothes: str
    distance: float
    right: bool
    image: str | None


@dataclass(frozen=True)
class Card:
    """A query with its images, how it went, and what was found for it."""

    sample_id: str
    pid: str
    camid: str
    clothes: str
    outcome: str
    """good or failed."""
    ap: float
    first: int
    positives: int
    body: str | None
    lr_face: str | None
    hr_face: str | None
    found: list[Found]


def choose(queries: pd.DataFrame, good: int, failed: int) -> pd.DataFrame:
    """`failed` queries of lowest AP whose first image is wrong, then `good` ones of highest AP
    whose first image is right, with a column `outcome`.

    queries: columns sample_id, ap, first. Equal AP: in the order of sample_id.
    """
    right = queries["first"] == 1
    worst = queries[~right].sort_values(["ap", "sample_id"]).head(failed)
    best = queries[right].sort_values(["ap", "sample_id"], ascending=[False, True]).head(good)
    return pd.concat([worst.assign(outcome="failed"), best.assign(outcome="good")])


def cards(
    chosen: pd.DataFrame,
    ranked: pd.DataFrame,
    paths: Mapping[str, Mapping[str, Any]],
    show: Show,
) -> list[Card]:
    """A card for each chosen query.

    ranked: columns query, rank, sample_id, pid, camid, clothes, distance, positive; paths:
    sample_id → imgs, lr_face, hr_face, each a path or None.
    """
    wanted = ranked[ranked["query"].isin(chosen["sample_id"])]
    lists = {query: rows.to_dict("records") for query, rows in wanted.groupby("query")}
    return [
        _card(query, lists.get(query["sample_id"], []), paths, show)
        for query in chosen.to_dict("records")
    ]


def _card(
    query: Mapping[Any, Any],
    rows: Sequence[Mapping[Any, Any]],
    paths: Mapping[str, Mapping[str, Any]],
    show: Show,
) -> Card:
    images = paths.get(query["sample_id"], {})
    return Card(
        **{name: query[name] for name in ("sample_id", "pid", "camid", "clothes", "outcome")},
        ap=float(query["ap"]),
        first=int(query["first"]),
        positives=int(query["positives"]),
        body=show("query", images.get("imgs")),
        lr_face=show("face", images.get("lr_face")),
        hr_face=show("face", images.get("hr_face")),
        found=[
            Found(
                **{name: row[name] for name in ("sample_id", "pid", "camid", "clothes")},
                rank=int(row["rank"]),
                distance=float(row["distance"]),
                right=row["positive"] == "True",
                image=show("gallery", paths.get(row["sample_id"], {}).get("imgs")),
            )
            for row in sorted(rows, key=lambda row: int(row["rank"]))
        ],
    )
