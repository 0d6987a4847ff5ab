"""How training went: loss terms by epoch, agreement with the teacher by head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from deskpro.stages.reporting.figures import Line, chart, number, spark

_OTHER = {"epoch", "images_per_s"}
_METRICS = ("agree_", "divergence_")
_WORDS = {
    "lr": "learning rate",
    "total": "total loss",
    "ce": "cross-entropy",
    "triplet": "triplet",
    "kd": "distillation",
    "attention": "attention",
}


def curves(who: str, history: pd.DataFrame | None) -> list[Markup]:
    """A small chart for each loss term by epoch, the total first and the learning rate last."""
    if history is None or history.empty:
        return []
    terms = [c for c in history.columns if c not in _OTHER and not c.startswith(_METRICS)]
    terms.sort(key=lambda term: (term == "lr", term != "total"))
    return [_panel(who, term, history) for term in terms]


def _panel(who: str, term: str, history: pd.DataFrame) -> Markup:
    epochs, values = history["epoch"].tolist(), history[term].tolist()
    title = title_of(term)
    return chart(
        f"{who}: {title} by epoch",
        f"From {number(values[0])} in epoch {epochs[0]} to {number(values[-1])} in epoch "
        f"{epochs[-1]}. The numbers are in the table below.",
        [Line(title, epochs, values, "s-all" if term == "total" else "s0")],
        name=f"{who}-{term}",
        x_label="epoch",
        y_label=f"{title}: {number(values[0])} → {number(values[-1])}",
        size=(300, 190),
    )


def title_of(term: str) -> str:
    """A history's column in words: `ce_face` is "cross-entropy (face)"."""
    first, _, stream = term.partition("_")
    words = _WORDS.get(first, first)
    return f"{words} ({stream})" if stream else words


def heads(history: pd.DataFrame | None) -> list[dict[str, Any]]:
    """By head: how often student and teacher agree and how far apart they are, first and last
    epoch, and the way between. Empty for a student that wasn't distilled."""
    if history is None or history.empty:
        return []
    names = [c.removeprefix("agree_") for c in history.columns if c.startswith("agree_")]
    names = [name for name in names if f"divergence_{name}" in history.columns]
    highest = _highest(history, [f"divergence_{name}" for name in names])
    best = _highest(history, [f"agree_{name}" for name in names])
    rows = []
    for name in names:
        agree, apart = (history[f"{what}{name}"].tolist() for what in _METRICS)
        rows.append(
            {
                "name": name.replace("_", " "),
                "agree": (agree[0], agree[-1]),
                "divergence": (apart[0], apart[-1]),
                "agree_curve": spark(agree, best, "s-all"),
                "divergence_curve": spark(apart, highest, "s-body"),
            }
        )
    return rows


def _highest(history: pd.DataFrame, columns: Sequence[str]) -> float:
    return float(history[list(columns)].max().max()) if columns else 1.0


def numbers(history: pd.DataFrame | None, *, metrics: bool = False) -> dict[str, Any] | None:
    """The history as the cells of a table: loss terms, or (`watched`) the comparison by head.

    None where there is nothing to show.
    """
    if history is None or history.empty:
        return None
    columns = [c for c in history.columns if c.startswith(_METRICS) == metrics and c != "epoch"]
    if not columns:
        return None
    wanted = history[["epoch", *columns]].to_numpy(float)
    return {
        "columns": ["epoch", *columns],
        "rows": [[number(float(value)) for value in row] for row in wanted],
    }
