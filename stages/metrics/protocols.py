"""Evaluation protocols by name: which images are queries and gallery, and what is not compared.

To add one: a row in `PROTOCOLS`, and its rule in plain words in tests/test_metrics.py, which checks
one against the other. The rules are those of the datasets' authors and of public code; where code
disagrees each rule has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Codes = Mapping[str, np.ndarray]
"""Of some images: the fields of `Name` as int64 codes that query and gallery share."""
Junk = Callable[[Codes, Codes], np.ndarray]
"""(codes of a query, [1]; of the n gallery images of its identity) → bool [n], which are removed.
No such rule removes images of other identities."""


def no_junk(query: Codes, same: Codes) -> np.ndarray:
    return np.zeros(len(same["pid"]), bool)


def same_camera(query: Codes, same: Codes) -> np.ndarray:
    return same["camid"] == query["camid"]


def same_camera_or_clothes(query: Codes, same: Codes) -> np.ndarray:
    return (same["camid"] == query["camid"]) | (same["clothes"] == query["clothes"])


def same_camera_or_other_clothes(query: Codes, same: Codes) -> np.ndarray:
    return (same["camid"] == query["camid"]) | (same["clothes"] != query["clothes"])


def same_scene(query: Codes, same: Codes) -> np.ndarray:
    return same["scene"] == query["scene"]


@dataclass(frozen=True)
class Protocol:
    """A rule under its own name, in words that are printed and saved with every number."""

    name: str
    rule: str
    junk: Junk
    needs: tuple[str, ...] = ()
    """Fields of `Name` that must be known of every image."""
    query_cameras: tuple[int, ...] | None = None
    """Queries are images of these cameras; of all where None."""
    gallery_cameras: tuple[int, ...] | None = None
    draws: int = 1
    """More than one: the gallery is one random image of each identity, drawn so many times."""
    trapezoidal: bool = False
    """AP is the trapezoidal area under precision and recall, not the mean precision at each hit."""
    gap: int = 0
    """Gallery images of a query's person that were taken less than so many seconds before or after
    it are removed, too. Then the time of every image must be known (`gaps.Near`)."""
    gap_of_others: int = 0
    """The same of other people's images."""

    def query_mask(self, query: pd.DataFrame) -> np.ndarray:
        """Which images are queries: bool [Q]."""
        return _of_cameras(query, self.query_cameras)

    def gallery_mask(self, gallery: pd.DataFrame) -> np.ndarray:
        """Which images are in the gallery, before any draw: bool [G]."""
        return _of_cameras(gallery, self.gallery_cameras)

    def missing_labels(self, table: pd.DataFrame) -> list[str]:
        """Samples of which something that the rule needs isn't known."""
        unknown = table[list(self.needs)].isna().any(axis=1)
        return list(table.loc[unknown, "sample_id"])


def _of_cameras(table: pd.DataFrame, cameras: tuple[int, ...] | None) -> np.ndarray:
    if cameras is None:
        return np.ones(len(table), bool)
    return table["camid"].isin(cameras).to_numpy()


_SKIPPED = "a query without a positive left is not counted"
_SAME = "gallery images of the same identity from the same"
_MARKET = f"{_SAME} camera are removed"
_CHANGED = f"{_SAME} camera or in the same clothes are removed; {_SKIPPED}"
_UNCHANGED = f"{_SAME} camera or in other clothes are removed; {_SKIPPED}"
_NOTHING = "nothing is removed"
_DRAWN = (
    f"of A the gallery is one random image of each identity, mean of 10 seeded draws; {_NOTHING}"
)
_CLOTHES = ("clothes",)
_prcc = partial(Protocol, junk=no_junk, gallery_cameras=(1,))

_ROWS = (
    Protocol("market", f"Market rule: {_MARKET}; {_SKIPPED}", same_camera),
    Protocol(
        "cloth-changing",
        f"cloth-changing, as of LTCC: {_CHANGED}",
        same_camera_or_clothes,
        _CLOTHES,
    ),
    Protocol(
        "same-clothes",
        f"same clothes, as of LTCC: {_UNCHANGED}",
        same_camera_or_other_clothes,
        _CLOTHES,
    ),
    _prcc(
        "prcc-cloth-changing",
        f"PRCC, cloth-changing, multi-shot: queries of camera C, gallery all of A; {_NOTHING}",
        query_cameras=(3,),
    ),
    _prcc(
        "prcc-same-clothes",
        f"PRCC, same clothes, multi-shot: queries of camera B, gallery all of A; {_NOTHING}",
        query_cameras=(2,),
    ),
    _prcc(
        "prcc-cloth-changing-single-shot",
        f"PRCC, cloth-changing, single-shot: queries of camera C, {_DRAWN}",
        query_cameras=(3,),
        draws=10,
    ),
    _prcc(
        "prcc-same-clothes-single-shot",
        f"PRCC, same clothes, single-shot: queries of camera B, {_DRAWN}",
        query_cameras=(2,),
        draws=10,
    ),
    Protocol(
        "vcclothes-same-clothes",
        "VC-Clothes, same clothes by cameras: images of cameras 2 and 3 only; "
        f"{_MARKET}; {_SKIPPED}",
        same_camera,
        query_cameras=(2, 3),
        gallery_cameras=(2, 3),
    ),
    Protocol(
        "vcclothes-cloth-changing",
        f"VC-Clothes, cloth-changing by cameras: images of cameras 3 and 4 only; "
        f"{_MARKET}; {_SKIPPED}",
        same_camera,
        query_cameras=(3, 4),
        gallery_cameras=(3, 4),
    ),
    Protocol(
        "vcclothes-cloth-changing-by-id",
        f"VC-Clothes, cloth-changing by clothes id: {_CHANGED}",
        same_camera_or_clothes,
        _CLOTHES,
    ),
    Protocol(
        "vcclothes-same-clothes-by-id",
        f"VC-Clothes, same clothes by clothes id: {_UNCHANGED}",
        same_camera_or_other_clothes,
        _CLOTHES,
    ),
    Protocol("celeb-plain", f"Celeb-reID, plain: {_NOTHING}; {_SKIPPED}", no_junk),
    Protocol(
        "celeb-official",
        f"Celeb-reID, official: the first digit of an image's number is its camera; {_MARKET}; "
        f"{_SKIPPED}; AP is the trapezoidal area under precision and recall",
        same_scene,
        needs=("scene",),
        trapezoidal=True,
    ),
    Protocol(
        "deepchange",
        f"DeepChange: {_SAME} tracklet are removed; {_SKIPPED}",
        same_scene,
        needs=("scene",),
    ),
    Protocol("last", f"LaST: every image is its own camera, {_NOTHING}; {_SKIPPED}", no_junk),
)
PROTOCOLS: dict[str, Protocol] = {row.name: row for row in _ROWS}
