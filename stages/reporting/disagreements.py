"""A page of queries that one of two runs finds and the other doesn't, with their first images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deskpro.stages.reporting import record, results
from deskpro.stages.reporting.images import Thumbnails
from deskpro.stages.reporting.page import render
from deskpro.stages.reporting.record import Run

SHOWN = 12
"""Queries of each kind, those whose AP differs most; one of an identity."""
_FOUND = 5
"""Images of each list."""


def disagreements(runs: Sequence[Run], paths: Mapping[str, str]) -> str:
    """The page, of the first run against each other: of the first protocol and widest stream that
    all have. Of other streams than the widest there are no lists.

    paths: sample_id → body image.
    """
    first, *others = runs
    shared = [place for place in first.queries if all(place in other.queries for other in others)]
    name = shared[0][0]
    stream = results.widest(dict.fromkeys(s for p, s in shared if p == name))
    protocol = first.report["protocols"][name]
    show = Thumbnails({"picture": (120, 240)})
    pairs = [pair for other in others for pair in _pairs(first, other, (name, stream), paths, show)]
    facts = {"protocol": name, "stream": stream, "rule": protocol["rule"], "pairs": pairs}
    return render("compare", {**facts, "names": [run.name for run in runs]}, style="search")


def _pairs(
    first: Run,
    other: Run,
    place: tuple[str, str],
    paths: Mapping[str, str],
    show: Thumbnails,
) -> list[dict[str, Any]]:
    """What each of two runs finds alone."""
    mine, theirs = first.queries[place], other.queries[place]
    both = mine.merge(theirs, left_index=True, right_index=True, suffixes=("", "_other"))
    lists = {run.name: _lists(run, place) for run in (first, other)}
    found = []
    for winner, loser, of_winner, of_loser in (
        (first.name, other.name, "", "_other"), (other.name, first.name, "_other", ""),
    ):  # fmt: skip
        rows = both[(both[f"rank1{of_winner}"] == 1) & (both[f"rank1{of_loser}"] < 1)]
        gap = (rows[f"ap{of_winner}"] - rows[f"ap{of_loser}"]).rename("gap")
        ordered = rows.join(gap).reset_index().sort_values(
            ["gap", "sample_id"], ascending=[False, True]
        ).drop_duplicates("pid")  # fmt: skip
        queries = [
            {
                "name": row["sample_id"],
                "pid": row["pid"],
                "image": show("picture", paths.get(row["sample_id"])),
                "lists": [
                    {
                        "run": run,
                        "ap": row[f"ap{suffix}"],
                        "hits": _hits(lists[run], row["sample_id"], paths, show),
                    }
                    for run, suffix in ((winner, of_winner), (loser, of_loser))
                ],
            }
            for row in ordered.head(SHOWN).to_dict("records")
        ]
        found.append({"winner": winner, "loser": loser, "count": len(rows), "queries": queries})
    return found


def _lists(run: Run, place: tuple[str, str]) -> Mapping[str, list[dict[Any, Any]]]:
    """The nearest images of each query; they are those of a run's first protocol, widest stream."""
    name, protocol = next(iter(run.report["protocols"].items()))
    streams = {results.widest(protocol["streams"]), results.widest(s for _, s in run.queries)}
    table = record.read_table(run.path / "ranked.csv")
    if table is None or place[0] != name or place[1] not in streams:
        return {}
    return {str(query): rows.to_dict("records") for query, rows in table.groupby("query")}


def _hits(
    lists: Mapping[str, list[dict[Any, Any]]],
    query: str,
    paths: Mapping[str, str],
    show: Thumbnails,
) -> list[dict[str, Any]]:
    return [
        {
            "rank": f"{float(hit['rank']):g}",
            "pid": hit["pid"],
            "match": hit["positive"] == "True",
            "image": show("picture", paths.get(hit["sample_id"])),
        }
        for hit in lists.get(query, [])[:_FOUND]
    ]
