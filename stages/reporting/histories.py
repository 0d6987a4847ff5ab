"""Training histories as charts and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from deskpro.stages.reporting.cells import percent
from deskpro.stages.reporting.figures import history_chart, number, spark, to_svg

MEASURES = {
    "agree": ("agreement with the teacher on training views, in training mode, %", percent),
    "mAP": ("mAP on held-out identities, %", percent),
    "divergence": ("KL from the teacher on training views, in training mode, nats", number),
}
"""Metric by head → its title in the page and how its values are written; others keep their name."""
_OTHERS = ("epoch", "lr", "images_per_s")


def split(columns: Iterable[str]) -> tuple[list[str], list[str]]:
    """The loss terms and the metrics among the columns of a history.

    Training writes them in this order: the loss terms, `total`, the metrics. A metric of a head is
    named MEASURE_HEAD.
    """
    names = [column for column in columns if column not in _OTHERS]
    end = names.index("total") + 1 if "total" in names else len(names)
    return names[:end], names[end:]


def charts(who: str, history: pd.DataFrame) -> list[Markup]:
    """A chart by epoch of `total`, of every loss term and of the learning rate."""
    losses, _ = split(history.columns)
    shown = sorted([*losses, "lr"], key=lambda name: name != "total")
    epochs = history["epoch"].tolist()
    drawn = []
    for column in shown:
        title, values = column.replace("_", " "), history[column].tolist()
        ends = f"{number(values[0])} → {number(values[-1])}"
        stream = column.rpartition("_")[2]
        colour = stream if stream in ("face", "body") else "ink"
        figure = history_chart(f"{title}: {ends}", epochs, values, colour)
        text = f"{ends} from epoch {epochs[0]} to {epochs[-1]}. All values are in the table below."
        drawn.append(to_svg(figure, f"{who}-{column}", f"{who}: {title} by epoch", text))
    return drawn


def heads(history: pd.DataFrame) -> list[dict[str, Any]]:
    """The metrics by measure: its title, and for each head first and last value and curve.

    The curves of a measure share one scale.
    """
    measures: dict[str, dict[str, str]] = {}
    for column in split(history.columns)[1]:
        measure, _, head = column.partition("_")
        measures.setdefault(measure, {})[head.replace("_", " ")] = column
    found = []
    for measure, columns in measures.items():
        title, write = MEASURES.get(measure, (measure, number))
        values = history[[*columns.values()]]
        top = float(np.nanmax(values.to_numpy(), initial=0))
        cells = {}
        for head, column in columns.items():
            known = values[column].dropna().tolist()  # not every epoch has a value
            curve = to_svg(spark(known, top, "ink"), f"head-{column}") if known else ""
            first, last = known[:1] or [np.nan], known[-1:] or [np.nan]
            cells[head] = (write(*first), write(*last), curve)
        found.append({"title": title, "heads": cells})
    return found


def numbers(history: pd.DataFrame, columns: Sequence[str]) -> dict[str, Any]:
    """Columns of the history by epoch, as the cells of a table."""
    names = ["epoch", *columns]
    cells = [[number(value) for value in row] for row in history[names].to_numpy(float).tolist()]
    return {"columns": names, "rows": cells}
