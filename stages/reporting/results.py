"""What the evaluation found, as charts and rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from deskpro.stages.reporting.figures import Interval, bars, cmc, to_svg

Protocols = Mapping[str, Mapping[str, Any]]
"""The protocols of metrics.json: `streams` maps each stream to its numbers, shares in 0..1."""


def widest(streams: Mapping[str, Any]) -> str:
    """The stream that sees most: `all` where there are several."""
    return "all" if "all" in streams else next(iter(streams))


def accuracy_chart(protocols: Protocols) -> Markup:
    """mAP with its intervals, a group of bars for each protocol."""
    rows = [
        Interval(name, stream, numbers["mAP"], *numbers["interval"]["mAP"])
        for name, protocol in protocols.items()
        for stream, numbers in protocol["streams"].items()
    ]
    text = "A bar for each stream under each protocol. The numbers are in the table above."
    return to_svg(bars(rows, "mAP and its 95 % interval, %"), "accuracy-bars", "mAP", text)


def cmc_charts(protocols: Protocols) -> dict[str, Markup]:
    """The CMC curves by protocol."""
    drawn = {}
    for i, (name, protocol) in enumerate(protocols.items()):
        curves = {stream: numbers["cmc"] for stream, numbers in protocol["streams"].items()}
        firsts = ", ".join(f"{stream} {100 * cmc[0]:.1f} %" for stream, cmc in curves.items())
        text = (
            "Share of queries with a match among the first ranks. "
            f"At rank 1: {firsts}. The numbers are in the table below."
        )
        drawn[name] = to_svg(cmc(curves), f"cmc-{i}", f"CMC, {name}", text)
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
