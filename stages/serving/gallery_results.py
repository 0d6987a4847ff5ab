"""What is found in a gallery as JSON, CSV or a page of HTML, and the tables of the terminal."""

from __future__ import annotations

import csv
import io
import json
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


def as_html(found: Found, title: str, about: str) -> str:
    """One self-contained page with the pictures, which are read now."""
    show = Thumbnails({"picture": _SIZE})
    queries = [
        {
            "name": query,
            "image": show("picture", query),
            "hits": [
                _in_words(hit)
                | {"name": Path(hit["path"]).name, "image": show("picture", hit["path"])}
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
