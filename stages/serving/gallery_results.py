"""What is found in a gallery as JSON, CSV or a page of HTML, and the tables of the terminal."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deskpro.stages.reporting.images import Thumbnails
from deskpro.stages.reporting.page import render

Found = Mapping[str, Sequence[Mapping[str, Any]]]
"""Path of a query → its hits, as `Gallery.search` gives them."""
_SIZE = (180, 320)
"""Width and height of the largest thumbnail."""


def as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as a JSON list."""
    return json.dumps(rows, indent=1, ensure_ascii=False) + "\n"


def as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Rows as CSV; null is empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def short_paths(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Rows with the paths of each of some columns from the deepest folder that has them all."""
    short = [dict(row) for row in rows]
    for name in columns if rows else ():
        folder = os.path.commonpath([Path(row[name]).parent for row in rows])
        for row in short:
            row[name] = os.path.relpath(row[name], folder)
    return short


def as_html(found: Found, title: str, about: str) -> str:
    """One self-contained page with the pictures, which are read now."""
    show = Thumbnails({"picture": _SIZE})
    every = [hit for hits in found.values() for hit in hits]
    names = [hit["path"] for hit in short_paths(every, ("path",))]
    name = dict(zip([hit["path"] for hit in every], names, strict=True))
    queries = [
        {
            "name": query,
            "image": show("picture", query),
            "hits": [
                _in_words(hit) | {"name": name[hit["path"]], "image": show("picture", hit["path"])}
                for hit in hits
            ],
        }
        for query, hits in found.items()
    ]
    return render("search", {"title": title, "about": about, "queries": queries})


def cells(row: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    """A row of a table in the terminal."""
    shown = _in_words(row)
    return ["" if shown[name] is None else str(shown[name]) for name in columns]


def _in_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its time to the second, and its score and odds, if it is a hit, rounded."""
    shown, time = dict(row), row["time"]
    shown["time"] = None if time is None else f"{time[:10]} {time[11:19]}"
    if "score" in row:
        shown["score"] = f"{row['score']:.3f}"
        shown["odds"] = None if row["odds"] is None else f"{row['odds']:+.1f}"
    return shown
