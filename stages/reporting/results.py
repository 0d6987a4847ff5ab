"""What the evaluation found, as charts and rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from deskpro.stages.reporting import figures

Protocols = Mapping[str, Mapping[str, Any]]
"""The protocols of metrics.json: `streams` maps each stream to its numbers, shares in 0..1."""


def widest(streams: Iterable[str]) -> str:
    """The stream that sees most: `all` where there are several."""
    names = [*streams]
    return "all" if "all" in names else names[0]


def merged(protocols: Protocols) -> dict[str, Mapping[str, Any]]:
    """The protocols, those with the same results in every stream as one with joined names."""
    names: list[list[str]] = []
    for name, protocol in protocols.items():
        same = (group for group in names if protocols[group[0]]["streams"] == protocol["streams"])
        found = next(same, None)
        if found is None:
            names.append([name])
        else:
            found.append(name)
    return {", ".join(group): protocols[group[0]] for group in names}


def accuracy_chart(protocols: Protocols) -> Markup:
    """mAP with its intervals, a group of rows for each protocol."""
    rows = [
        figures.Interval(
            f"{name} (n = {protocol['queries']} queries)", stream, stream,
            *(100 * value for value in (numbers["mAP"], *numbers["interval"]["mAP"])),
        )
        for name, protocol in protocols.items()
        for stream, numbers in protocol["streams"].items()
    ]  # fmt: skip
    text = "A row for each stream under each protocol. The numbers are in the table above."
    chart = figures.intervals(rows, "mAP and its 95 % interval over identities")
    return figures.to_svg(chart, "accuracy", "mAP", text)


def cmc_figure(name: str, protocol: Mapping[str, Any]) -> Figure:
    """The CMC curves of a protocol; a stream that ranks fewer queries says how many."""
    streams, queries = protocol["streams"], protocol["queries"]
    ranks = [int(key[4:]) for key in next(iter(streams.values())) if re.fullmatch(r"rank\d+", key)]
    return figures.cmc(
        {stream: numbers["cmc"] for stream, numbers in streams.items()},
        f"CMC, {name} (n = {queries} queries)",
        ranks,
        {
            stream: f"{stream} (n = {numbers['queries']})"
            for stream, numbers in streams.items()
            if numbers["queries"] != queries
        },
    )


def cmc_charts(protocols: Protocols) -> list[Markup]:
    """The CMC curves of each protocol."""
    drawn = []
    for i, (name, protocol) in enumerate(protocols.items()):
        firsts = ", ".join(
            f"{stream} {100 * numbers['cmc'][0]:.1f} %"
            for stream, numbers in protocol["streams"].items()
        )
        text = (
            "Share of queries with a match among the first ranks. "
            f"At rank 1: {firsts}. The numbers are in the table below."
        )
        chart = cmc_figure(name, protocol)
        drawn.append(figures.to_svg(chart, f"cmc-{i}", f"CMC, {name}", text))
    return drawn


def breakdown(
    table: pd.DataFrame | None, protocol: str, stream: str, by: str, worst: int | None = None
) -> list[dict[str, Any]]:
    """The rows of breakdown.csv of one protocol and stream, by `pid` or `camid`.

    worst: only so many, of the lowest mAP.
    """
    if table is None:
        return []
    wanted = (table["protocol"] == protocol) & (table["stream"] == stream) & (table["by"] == by)
    rows = table[wanted].astype({"queries": int})
    if worst is not None:
        rows = rows.sort_values(["mAP", "value"], kind="stable").head(worst)
    else:
        rows = rows.sort_values("value", key=lambda names: names.map(_natural), kind="stable")
    return [{str(key): cell for key, cell in row.items()} for row in rows.to_dict("records")]


def _natural(name: object) -> tuple[int, str]:
    text = str(name)
    return (int(text), text) if text.isdigit() else (1 << 62, text)
