"""People and images on two sides of a split: they make scores look better than they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from deskpro.stages.data.index import Problem

_TEST = ("query", "gallery")

Row = Mapping[Any, Any]


def find_leaks(table: pd.DataFrame, contents: Mapping[str, str]) -> list[Problem]:
    """What of a dataset is in two splits that must be apart, as far as they are in the table.

    An identity that is trained on and tested; a body image that is trained on and tested; one of
    the query whose copy in the gallery counts as a match; one that is of two identities. Copies are
    files of equal bytes.

    Args:
        table: Of images, as `read_index` gives it.
        contents: Path of a body image → SHA-256 of its file, "" where it can't be read.
    """
    rows = table.sort_values("sample_id").to_dict("records")
    copies: dict[str, list[Row]] = {}
    for row in rows:
        copies.setdefault(contents.get(row["imgs"], ""), []).append(row)
    copies.pop("", None)
    return [
        *_people(rows),
        *(leak for alike in copies.values() if len(alike) > 1 for leak in _of_copies(alike)),
    ]


def _people(rows: Sequence[Row]) -> Iterator[Problem]:
    """Identities of training that are in query or gallery."""
    tested: dict[str, Row] = {}
    for row in rows:
        if row["split"] in _TEST:
            tested.setdefault(row["pid"], row)
    for pid in sorted({row["pid"] for row in rows if row["split"] not in _TEST} & tested.keys()):
        row = tested[pid]
        yield Problem(Path(row["imgs"]), f"{row['split']} image of {pid}, who is in train, too")


def _of_copies(alike: Sequence[Row]) -> Iterator[Problem]:
    """What is wrong with rows whose images are equal; at most a line for each."""
    trained = [row for row in alike if row["split"] not in _TEST]
    pids = {row["pid"]: row for row in reversed(alike) if row["pid"] is not None}
    for row in alike:
        match = next((found for found in alike if _is_match(row, found)), None)
        other = next((pids[pid] for pid in pids if pid != row["pid"]), None)
        if row["split"] in _TEST and trained:
            yield _leak(row, "trained on as", trained[0])
        elif row["split"] == "query" and match:
            yield _leak(row, "in the gallery as", match)
        elif row["pid"] is not None and other and row is not alike[0]:
            yield _leak(row, f"of {row['pid']}, and of {other['pid']} as", other)


def _is_match(query: Row, row: Row) -> bool:
    """Whether a gallery image is a match of the query under the rule that every protocol shares:
    one of the same person and camera is not."""
    same = row["pid"] == query["pid"]
    return row["split"] == "gallery" and same and row["camid"] != query["camid"]


def _leak(row: Row, what: str, other: Row) -> Problem:
    return Problem(
        Path(row["imgs"]), f"{row['split']} image, its content is {what} {other['imgs']}"
    )
