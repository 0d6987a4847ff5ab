"""Evaluation protocols by name: who is asked, among whom, and what is not compared.

To add one: write its function under `@protocol`; tests/test_metrics.py wants the same rule in
plain words, and holds the two against each other by itself. The rules are those that the datasets'
authors publish and public code has; where code disagrees each rule has a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Codes = Mapping[str, np.ndarray]
"""Of some images: `camid`, `clothes` and `scene` as int64 codes that query and gallery share."""
Rule = Callable[[Codes, Codes], np.ndarray]
"""(a query's codes, [1]; those of the n gallery images of its identity) → bool [n], what is taken
out. Images of others are never taken out."""


@dataclass(frozen=True)
class Protocol:
    """A rule under its own name, in words that are printed and saved with every number."""

    name: str
    rule: str
    junk: Rule
    needs: tuple[str, ...] = ()
    """What must be known of every image, of `clothes` and `scene`."""
    query_cameras: tuple[int, ...] | None = None
    """Queries are images of these cameras; of all where None."""
    gallery_cameras: tuple[int, ...] | None = None
    draws: int = 1
    """More than one: the gallery is one random image of each identity, drawn so many times."""
    trapezoidal: bool = False
    """AP is the trapezoidal area under precision and recall, not the mean precision at each hit."""

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


PROTOCOLS: dict[str, Protocol] = {}


def protocol(name: str, rule: str, **more: object) -> Callable[[Rule], Rule]:
    """Register the function below under a name; one function may serve several."""

    def register(junk: Rule) -> Rule:
        PROTOCOLS[name] = Protocol(name, rule, junk, **more)  # type: ignore[arg-type]
        return junk

    return register


_SKIPPED = "a query without a positive left is not counted"
_MARKET = "gallery images of the same identity from the same camera are removed"
_NOTHING = "nothing is removed"
_DRAWN = "the gallery is one random image of each identity, mean of 10 seeded draws"


@protocol("market", f"Market rule: {_MARKET}; {_SKIPPED}")
@protocol(
    "vcclothes-same-clothes",
    f"VC-Clothes, same clothes by cameras: images of cameras 2 and 3 only; {_MARKET}; {_SKIPPED}",
    query_cameras=(2, 3),
    gallery_cameras=(2, 3),
)
@protocol(
    "vcclothes-cloth-changing",
    f"VC-Clothes, cloth-changing by cameras: images of cameras 3 and 4 only; {_MARKET}; {_SKIPPED}",
    query_cameras=(3, 4),
    gallery_cameras=(3, 4),
)
def _same_camera(query: Codes, same: Codes) -> np.ndarray:
    return same["camid"] == query["camid"]


@protocol(
    "cloth-changing",
    "cloth-changing, as of LTCC: gallery images of the same identity from the same camera or in "
    f"the same clothes are removed; {_SKIPPED}",
    needs=("clothes",),
)
@protocol(
    "vcclothes-cloth-changing-by-id",
    "VC-Clothes, cloth-changing by clothes id: gallery images of the same identity from the same "
    f"camera or in the same clothes are removed; {_SKIPPED}",
    needs=("clothes",),
)
def _same_camera_or_clothes(query: Codes, same: Codes) -> np.ndarray:
    return (same["camid"] == query["camid"]) | (same["clothes"] == query["clothes"])


@protocol(
    "same-clothes",
    "same clothes, as of LTCC: gallery images of the same identity from the same camera or in "
    f"other clothes are removed; {_SKIPPED}",
    needs=("clothes",),
)
@protocol(
    "vcclothes-same-clothes-by-id",
    "VC-Clothes, same clothes by clothes id: gallery images of the same identity from the same "
    f"camera or in other clothes are removed; {_SKIPPED}",
    needs=("clothes",),
)
def _same_camera_or_other_clothes(query: Codes, same: Codes) -> np.ndarray:
    return (same["camid"] == query["camid"]) | (same["clothes"] != query["clothes"])


@protocol(
    "prcc-cloth-changing",
    f"PRCC, cloth-changing, multi-shot: queries of camera C, gallery all of A; {_NOTHING}",
    query_cameras=(3,),
    gallery_cameras=(1,),
)
@protocol(
    "prcc-same-clothes",
    f"PRCC, same clothes, multi-shot: queries of camera B, gallery all of A; {_NOTHING}",
    query_cameras=(2,),
    gallery_cameras=(1,),
)
@protocol(
    "prcc-cloth-changing-single-shot",
    f"PRCC, cloth-changing, single-shot: queries of camera C, of A {_DRAWN}; {_NOTHING}",
    query_cameras=(3,),
    gallery_cameras=(1,),
    draws=10,
)
@protocol(
    "prcc-same-clothes-single-shot",
    f"PRCC, same clothes, single-shot: queries of camera B, of A {_DRAWN}; {_NOTHING}",
    query_cameras=(2,),
    gallery_cameras=(1,),
    draws=10,
)
@protocol("celeb-plain", f"Celeb-reID, plain: {_NOTHING}; {_SKIPPED}")
@protocol("last", f"LaST: every image is its own camera, {_NOTHING}; {_SKIPPED}")
def _nothing(query: Codes, same: Codes) -> np.ndarray:
    return np.zeros(len(same["camid"]), bool)


@protocol(
    "celeb-official",
    "Celeb-reID, official: the first digit of an image's number is its camera; gallery images "
    f"of the same identity from the same camera are removed; {_SKIPPED}; AP is the trapezoidal "
    "area under precision and recall",
    needs=("scene",),
    trapezoidal=True,
)
@protocol(
    "deepchange",
    "DeepChange: gallery images of the same identity from the same tracklet are removed; "
    f"{_SKIPPED}",
    needs=("scene",),
)
def _same_scene(query: Codes, same: Codes) -> np.ndarray:
    return same["scene"] == query["scene"]
