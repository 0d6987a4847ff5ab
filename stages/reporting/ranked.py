"""Ranked lists: the queries with the best and the worst result, each with its nearest images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

Show = Callable[[str, str | None], str | None]
"""(kind of thumbnail, path) → data URI, or None for an image that cannot be read."""


def choose(queries: pd.DataFrame, good: int, failed: int) -> pd.DataFrame:
    """The `failed` queries of lowest AP without a match at rank 1, then the `good` ones of highest
    AP with one; adds the column `outcome`.

    queries: columns sample_id, ap, rank1. Equal AP: in the order of sample_id.
    """
    matched = queries["rank1"] == 1
    worst = queries[~matched].sort_values(["ap", "sample_id"]).head(failed)
    best = queries[matched].sort_values(["ap", "sample_id"], ascending=[False, True]).head(good)
    return pd.concat([worst.assign(outcome="failed"), best.assign(outcome="good")])


def cards(
    chosen: pd.DataFrame,
    ranked: pd.DataFrame,
    paths: Mapping[str, Mapping[str, Any]],
    show: Show,
) -> list[dict[str, Any]]:
    """A card for each chosen query: its row with `images` by kind and `found`, its nearest images.

    Args:
        chosen: rows of queries.csv, and `outcome`.
        ranked: rows of ranked.csv, every cell as text.
        paths: sample_id → imgs, lr_face, hr_face, each a path or None.
        show: makes the thumbnails.
    """
    wanted = ranked[ranked["query"].isin(chosen["sample_id"])]
    lists = {query: rows.to_dict("records") for query, rows in wanted.groupby("query")}
    found = []
    for query in chosen.astype({"positives": int}).to_dict("records"):
        images = paths.get(query["sample_id"], {})
        hits = lists.get(query["sample_id"], [])
        for hit in hits:
            hit["match"] = hit["positive"] == "True"
            hit["image"] = show("gallery", paths.get(hit["sample_id"], {}).get("imgs"))
        kinds = {"imgs": "query", "lr_face": "face", "hr_face": "face"}
        shown = {kind: show(size, images.get(kind)) for kind, size in kinds.items()}
        found.append({str(k): v for k, v in query.items()} | {"images": shown, "found": hits})
    return found
