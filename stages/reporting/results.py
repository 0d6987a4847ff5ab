"""What the evaluation found, as charts and rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure

from deskpro.stages.reporting import cells, figures

Protocols = Mapping[str, Mapping[str, Any]]
"""The protocols of metrics.json: `streams` maps each stream to its numbers, shares in 0..1."""


def widest(streams: Iterable[str]) -> str:
    """The stream that sees most: `all` where there are several."""
    names = [*streams]
    return "all" if "all" in names else names[0]


def merged(protocols: Protocols) -> dict[str, Mapping[str, Any]]:
    """The protocols, those with the same results in every stream as one with joined names."""
    groups: dict[str, list[str]] = {}
    for name, protocol in protocols.items():
        same = (first for first in groups if protocols[first]["streams"] == protocol["streams"])
        groups.setdefault(next(same, name), []).append(name)
    return {", ".join(names): protocols[first] for first, names in groups.items()}


PAIR_COLUMNS = ("protocol", "pairs", "of one", "of two", "EER", "TAR 1 %", "TAR 0.1 %",
                "DIR 10 %", "FAR for 1 %", "Cllr", "ECE")  # fmt: skip
"""TAR at a FAR on test; DIR at a share of searches without the person; FAR on test at the threshold
that accepts 1 % of pairs of two held-out people; Cllr in bits, ECE in 0..1."""


def pair_rows(protocols: Protocols, *, intervals: bool = True) -> list[list[str]]:
    """A row for each face case of each protocol's widest stream, in `PAIR_COLUMNS`; those that have
    nothing but an EER are left out."""
    over, of_far = ("interval", "far_interval") if intervals else (None, None)
    rows = []
    for names, protocol in merged(protocols).items():
        stream = widest(protocol["streams"])
        for case, numbers in protocol["streams"][stream].get("verification", {}).items():
            decided = [
                *(_rate(numbers["TAR"][far], "rate", over) for far in ("0.01", "0.001")),
                _rate(numbers["DIR"]["0.1"], "rate", over),
                _rate((numbers.get("held_out") or {}).get("0.01", {}), "FAR", of_far),
                *(_number(numbers["calibration"].get(key)) for key in ("Cllr", "ECE")),
            ]
            if {*decided} == {"–"}:
                continue
            counts = (f"{numbers[key]:,}" for key in ("genuine", "impostors"))
            rows.append([names, case, *counts, cells.percent(numbers["EER"]), *decided])
    return rows


def _rate(decision: Mapping[str, Any], key: str, interval: str | None) -> str:
    ends = None if interval is None else decision.get(interval)
    return cells.percent(decision.get(key)) if ends is None else cells.within(decision[key], *ends)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


TRANSDUCTIVE_COLUMNS = ("protocol", "stream", "rule", "mAP", "R1", "mAP plain", "R1 plain")


def transductive_rows(protocols: Protocols) -> list[list[str]]:
    """A row for each protocol, stream and rule that looks at other queries, too."""
    rows = []
    for names, protocol in merged(protocols).items():
        for stream, numbers in protocol["streams"].items():
            for rule, found in numbers.get("transductive", {}).items():
                mean = cells.within(found["mAP"], *found["interval"]["mAP"])
                others = (found["cmc"][0], numbers["mAP"], numbers["cmc"][0])
                rows.append([names, stream, rule, mean, *map(cells.percent, others)])
    return rows


def confused_cameras(numbers: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each camera of queries: name, and of each gallery camera how many wrong first
    images are of it, and how many times as many as if others' images were equally likely."""
    found = (numbers.get("mistakes") or {}).get("cameras") or {}
    return [
        {
            "name": camera,
            "cells": [
                {"name": shown, "wrong": wrong, "lift": wrong / chance if chance else None}
                for shown, wrong, chance in zip(found["gallery"], observed, expected, strict=True)
            ],
        }
        for camera, observed, expected in zip(
            found.get("query", []), found.get("wrong", []), found.get("expected", []), strict=True
        )
    ]


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
    title = "mAP and its 95 % interval over identities"
    chart = figures.intervals(rows, title, width=figures.PAGE)
    return figures.to_svg(chart, "accuracy", "mAP", text)


def cmc_figure(name: str, protocol: Mapping[str, Any], width: int = 440) -> Figure:
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
        width,
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
        chart = cmc_figure(name, protocol, figures.PAGE)
        drawn.append(figures.to_svg(chart, f"cmc-{i}", f"CMC, {name}", text))
    return drawn


def breakdown(
    table: pd.DataFrame | None, protocol: str, stream: str, by: str, worst: int | None = None
) -> list[dict[Any, Any]]:
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
    found: list[dict[Any, Any]] = rows.to_dict("records")
    return found


def _natural(name: object) -> tuple[int, str]:
    text = str(name)
    return (int(text), text) if text.isdigit() else (1 << 62, text)
