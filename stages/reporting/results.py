"""What the evaluation found, as rows and charts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup

from deskpro.stages.reporting.figures import Line, chart, interval

Numbers = Mapping[str, Any]


def widest(protocol: Numbers) -> str:
    """The stream that sees most: `all` where there are several."""
    streams = protocol["streams"]
    return "all" if "all" in streams else next(iter(streams))


def kind(stream: str) -> str:
    """A stream's CSS class in every chart and table."""
    return f"s-{stream}" if stream in ("face", "body", "all") else "s0"


def accuracy(protocols: Mapping[str, Numbers]) -> list[dict[str, Any]]:
    """A row per protocol and stream; shares 0..1, or None where not known."""
    everything = [numbers for p in protocols.values() for numbers in p["streams"].values()]
    ends = [_bounds(numbers, "mAP")[1] for numbers in everything]
    highest = max((end for end in ends if math.isfinite(end)), default=1.0)
    top = min(1.0, -(-highest * 10 // 1) / 10)  # the next tenth, for all alike
    rows = []
    for name, protocol in protocols.items():
        for i, (stream, numbers) in enumerate(protocol["streams"].items()):
            cmc = numbers["cmc"]
            low, high = _bounds(numbers, "mAP")
            rows.append(
                {
                    "protocol": name,
                    "span": len(protocol["streams"]) if i == 0 else 0,
                    "stream": stream,
                    "mAP": numbers["mAP"],
                    "mINP": numbers["mINP"],
                    "rank1": numbers.get("rank1", cmc[0]),
                    "rank5": numbers.get("rank5", cmc[4] if len(cmc) > 4 else None),
                    "interval": numbers.get("interval") or {},
                    "sd": numbers.get("sd") or {},
                    "drawn": interval(numbers["mAP"], low, high, top, kind(stream)),
                    "kind": kind(stream),
                    "scale": top,
                }
            )
    return rows


def by_face(protocols: Mapping[str, Numbers]) -> list[dict[str, Any]]:
    """A row per protocol and stream of a network with a face stream: queries with and without."""
    return [
        {
            "protocol": name,
            "stream": stream,
            "kind": kind(stream),
            "with": numbers["with face"],
            "without": numbers["without face"],
        }
        for name, protocol in protocols.items()
        for stream, numbers in protocol["streams"].items()
        if "with face" in numbers and "without face" in numbers
    ]


def cmc_charts(protocols: Mapping[str, Numbers]) -> list[dict[str, Any]]:
    """By protocol its CMC curves, and the same numbers as a table."""
    charts = []
    for i, (name, protocol) in enumerate(protocols.items()):
        streams = protocol["streams"]
        ranks = max(len(numbers["cmc"]) for numbers in streams.values())
        lines = [
            Line(s, range(1, len(n["cmc"]) + 1), [100 * share for share in n["cmc"]], kind(s))
            for s, n in streams.items()
        ]
        firsts = ", ".join(f"{s} {100 * n['cmc'][0]:.1f} %" for s, n in streams.items())
        drawn = chart(
            f"CMC, {name}",
            f"Share of queries whose first right image is within the first 1 to {ranks} ranks. "
            f"At rank 1: {firsts}. The numbers are in the table below.",
            lines,
            name=f"cmc-{i}",
            x_label="rank",
            y_label="queries matched, %",
            top=100,
            size=(390, 250),
        )
        charts.append({"name": name, "drawn": drawn, "streams": streams, "ranks": ranks})
    return charts


def breakdown(
    table: pd.DataFrame | None, protocol: str, stream: str, by: str, worst: int | None = None
) -> list[dict[str, Any]]:
    """The rows of breakdown.csv of one protocol and stream, by `pid` or `camid`.

    worst: only so many, of the lowest mAP.
    """
    if table is None:
        return []
    wanted = (table["protocol"] == protocol) & (table["stream"] == stream) & (table["by"] == by)
    rows = table[wanted].astype({"mAP": float, "rank1": float, "queries": int})
    if worst is not None:
        rows = rows.sort_values(["mAP", "value"], kind="stable").head(worst)
    else:
        rows = rows.sort_values("value", key=lambda names: names.map(_natural), kind="stable")
    return [
        {"value": row.value, "queries": row.queries, "mAP": row.mAP, "rank1": row.rank1}
        for row in rows.itertuples()
    ]


def legend(protocols: Mapping[str, Numbers]) -> list[tuple[str, Markup]]:
    """Each stream of any protocol with a sample of its line."""
    streams = dict.fromkeys(s for p in protocols.values() for s in p["streams"])
    sample = (
        '<svg class="key {}" viewBox="0 0 30 10" aria-hidden="true" focusable="false">'
        '<path class="line" d="M1 5H29"/></svg>'
    )
    return [(stream, Markup(sample).format(kind(stream))) for stream in streams]


def _bounds(numbers: Numbers, metric: str) -> tuple[float, float]:
    low, high = (numbers.get("interval") or {}).get(metric) or (numbers[metric], numbers[metric])
    return low, high


def _natural(name: object) -> tuple[int, str]:
    text = str(name)
    return (int(text), text) if text.isdigit() else (1 << 62, text)
