"""Ranked lists: queries that fail, by kind, and that succeed, each with its nearest images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd

Show = Callable[[str, str | None], str | None]
"""(kind of thumbnail, path) → data URI, or None for an image that cannot be read."""


KINDS = {
    "outfit": "misled by the outfit",
    "no face": "no face",
    "camera": "same camera",
    "face": "in spite of a face",
}
"""Kinds of failed queries, the first that holds: their first wrong image wears the query's outfit,
they have no face, that image is of their camera, none of these."""


def choose(
    queries: pd.DataFrame, ranked: pd.DataFrame, good: int, failed: int, *, outfits: bool
) -> pd.DataFrame:
    """Some queries, at most one of each identity and outcome; adds the columns outcome and kind.

    First `failed` ones without a match at rank 1, those of lowest AP of each kind in turn; then the
    `good` ones of highest AP with one. Equal AP: in the order of sample_id.

    Args:
        queries: columns sample_id, pid, ap, rank1, and if known camid, clothes and face.
        ranked: rows of ranked.csv.
        outfits: whether a label of clothes is one outfit, whoever wears it.
    """
    wrong = ranked[ranked["positive"] == "False"].drop_duplicates("query")
    first = wrong.set_index("query").reindex(queries["sample_id"])
    queries = queries.assign(kind=[*_kinds(queries, first, outfits)]).sort_values("sample_id")
    matched = queries["rank1"] == 1
    worst = queries[~matched].sort_values("ap", kind="stable").drop_duplicates("pid")
    turn, order = worst.groupby("kind").cumcount(), worst["kind"].map([*KINDS].index)
    worst = worst.assign(turn=turn, order=order)
    worst = worst.sort_values(["turn", "order"], kind="stable").head(failed)
    worst = worst.sort_values(["order", "turn"], kind="stable").drop(columns=["turn", "order"])
    best = queries[matched].sort_values("ap", ascending=False, kind="stable")
    best = best.drop_duplicates("pid").head(good)
    return pd.concat([worst.assign(outcome="failed"), best.assign(outcome="good", kind="")])


def _kinds(queries: pd.DataFrame, first: pd.DataFrame, outfits: bool) -> Iterator[str]:
    """The kind of each query, if it fails; first: the row of its first image, in the same order."""
    for query, shown in zip(queries.to_dict("records"), first.to_dict("records"), strict=True):
        if outfits and query.get("clothes") and query["clothes"] == shown["clothes"]:
            yield "outfit"
        elif query.get("face") == "False":
            yield "no face"
        elif query.get("camid") and query["camid"] == shown["camid"]:
            yield "camera"
        else:
            yield "face"


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
            hit["further"] = hit is hits[-1] and len(hits) > 1 and float(hit["rank"]) > len(hits)
            hit["parts"] = [
                f"{str(key).removeprefix('distance_')} {float(value):.3f}" if value else ""
                for key, value in hit.items()
                if str(key).startswith("distance_")
            ]
            hit["image"] = show("gallery", paths.get(hit["sample_id"], {}).get("imgs"))
        kinds = {"imgs": "query", "lr_face": "face", "hr_face": "face"}
        shown = {kind: show(size, images.get(kind)) for kind, size in kinds.items()}
        found.append({str(k): v for k, v in query.items()} | {"images": shown, "found": hits})
    return found
