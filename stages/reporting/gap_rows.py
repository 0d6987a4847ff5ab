"""Accuracy by gap of time, as rows of tables and as a chart."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from markupsafe import Markup

from deskpro.stages.reporting import cells, figures
from deskpro.stages.reporting.results import Protocols, merged, widest

Gaps = Mapping[str, Any]
"""`gaps` of a stream in metrics.json."""
COLUMNS = ("gap", "queries", "people", "gallery", "mAP", "R1", "chance")
SAME_COLUMNS = ("gap", "mAP", "R1", "chance", "from none")


def widest_gaps(protocols: Protocols) -> Iterator[tuple[str, str, Gaps]]:
    """Names, widest stream and its gaps of each protocol that has some."""
    for names, protocol in merged(protocols).items():
        stream = widest(protocol["streams"])
        gaps = protocol["streams"][stream].get("gaps")
        if gaps is not None:
            yield names, stream, gaps


def rows(gaps: Gaps) -> list[list[str]]:
    """A row for each gap over the queries that it scores, in `COLUMNS`."""
    return [
        [
            row["gap"],
            *(f"{row[key]:,.0f}" for key in ("queries", "identities", "gallery")),
            *_figures(row),
        ]
        for row in gaps["rows"]
    ]


def same_rows(gaps: Gaps) -> list[list[str]]:
    """A row for each gap over the same queries and images of others, in `SAME_COLUMNS`."""
    return [
        [row["gap"], *_figures(row["same"]), _difference(row) if row["seconds"] else "–"]
        for row in gaps["rows"]
    ]


def same_title(gaps: Gaps) -> str:
    """Which queries `same_rows` are over."""
    last = gaps["rows"][-1]["same"]
    who = f"the same {last['queries']:,} queries of {last['identities']:,} people"
    return f"{who} among the same images of others (%)"


def chart(protocols: Protocols) -> Markup | None:
    """mAP by gap of the same queries, a group of rows for each protocol; None without gaps."""
    found = [
        figures.Interval(
            f"{names} (n = {row['same']['queries']} queries)", row["gap"], stream,
            *(100 * value for value in (row["same"]["mAP"], *row["same"]["interval"]["mAP"])),
        )
        for names, stream, gaps in widest_gaps(protocols)
        for row in gaps.get("rows", [])
    ]  # fmt: skip
    if not found:
        return None
    title = "mAP by gap of time, of the same queries, and its 95 % interval"
    text = "A row for each gap under each protocol. The numbers are in the table above."
    return figures.to_svg(figures.intervals(found, title), "gaps", "mAP by gap of time", text)


def _figures(numbers: Mapping[str, Any]) -> list[str]:
    mean = cells.within(numbers["mAP"], *numbers["interval"]["mAP"])
    return [mean, cells.percent(numbers["rank1"]), cells.percent(numbers["chance"])]


def _difference(row: Mapping[str, Any]) -> str:
    same = row["same"]
    ends = (same["difference"], *same["interval"]["difference"])
    return cells.difference(*(100 * value for value in ends))
