"""What goes wrong: whose clothes a wrong first image wears, from which camera it is, and how much
worse people are found when they have changed their clothes.

A first image is wrong where it is another person's. Of several that are equally near each counts by
its share. Where galleries are drawn, only their share is said, of the first draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from deskpro.stages.base.progress import log
from deskpro.stages.evaluation.measures import Compared
from deskpro.stages.metrics.intervals import interval, percentiles, resampled_means
from deskpro.stages.metrics.protocols import Codes, Protocol
from deskpro.stages.metrics.ranking import Distances, Ranking, rank_gallery, tasks_of
from deskpro.stages.reporting.results import merged, widest

FACTS = ("clothes", "camid")
"""What is counted of first images."""
_UNKNOWN = "clothes are not known of every image"
_DRAWN = "its galleries are drawn"
_CAMERAS = 40
"""More are no table that anybody reads; some datasets count each image as a camera."""


def mistakes_of(
    ranking: Ranking,
    compared: Compared,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    protocol: Protocol,
    shared_clothes: bool,
) -> dict[str, Any]:
    """`mistakes` of a stream and a protocol in metrics.json.

    query: the images that the stream sees; shared_clothes: whether one label of clothes is one
    outfit, whoever wears it.
    """
    shown, distances = gallery[protocol.gallery_mask(gallery)], compared.measure(query, gallery)
    found = mistake_numbers(ranking, query, shown, shared_clothes, protocol.draws > 1)
    return found | {"changed": changed_clothes(query, gallery, distances, protocol)}


def show_mistakes(report: Mapping[str, Any]) -> None:
    """A line for each protocol's widest stream of which clothes are known."""
    for names, protocol in merged(report["protocols"]).items():
        stream = widest(protocol["streams"])
        found = protocol["streams"][stream]["mistakes"]
        outfit, changed = found["outfit"], found.get("changed", {})
        if "lift" in outfit:
            low, high = outfit["interval"]
            log(
                f"eval: {names}, {stream}: {100 * found['wrong']:.1f} % of first images are wrong. "
                f"{100 * outfit['share']:.1f} % of these wear the query's outfit, as do "
                f"{100 * outfit['expected']:.1f} % of other people's images: {outfit['lift']:.2f} "
                f"times as often [{low:.2f}, {high:.2f}]"
            )
        if "difference" in changed:
            low, high = (100 * end for end in changed["interval"])
            log(
                f"eval: {names}, {stream}: mAP in the same clothes {100 * changed['same']:.1f}, in "
                f"others {100 * changed['changed']:.1f}: {100 * changed['difference']:+.1f} "
                f"[{low:+.1f}, {high:+.1f}], {changed['queries']} queries"
            )


def mistake_numbers(
    ranking: Ranking,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    shared_clothes: bool,
    drawn: bool = False,
) -> dict[str, Any]:
    """What wrong first images show; shares in 0..1.

    gallery: the images that are ranked; drawn: whether some of them are, which aren't known here.
    """
    rows = ranking.queries[ranking.queries["draw"] == 0].set_index("sample_id")
    wrong = 1 - rows["rank1"]
    who = query.set_index("sample_id").loc[rows.index, ["pid", "camid", "clothes"]]
    found: dict[str, Any] = {"wrong": float(wrong.mean())}
    if drawn:
        return {**found, "outfit": {"refused": _DRAWN}}
    found["outfit"] = _outfits(ranking.firsts, wrong, who, gallery, shared_clothes)
    cameras = pd.concat([who["camid"], gallery["camid"]])
    if cameras.notna().all() and cameras.nunique() <= _CAMERAS:
        found["cameras"] = _cameras(ranking.firsts, wrong, who, gallery)
    return found


def _outfits(
    firsts: pd.DataFrame, wrong: pd.Series, who: pd.DataFrame, gallery: pd.DataFrame, shared: bool
) -> dict[str, Any]:
    """How often wrong first images wear the query's outfit, and how often images of others do."""
    if _unknown_clothes(who, gallery):
        return {"refused": _UNKNOWN}
    if not shared:
        return {"refused": "this dataset counts clothes by person, not outfits that people share"}
    rows = firsts[firsts["fact"] == "clothes"]
    worn = rows["value"].to_numpy() == who["clothes"].reindex(rows["query"]).to_numpy()
    misled = rows[worn].groupby("query")["share"].sum().reindex(wrong.index, fill_value=0.0)
    expected = wrong * _shares_of_others(who, gallery, "clothes")
    if not wrong.sum():
        return {"refused": "no first image is wrong"}
    if not expected.sum():
        return {"refused": "nobody else wears a query's outfit"}
    parts = np.stack([misled, expected], axis=1)
    means = resampled_means(parts, who["pid"].to_numpy())
    defined = means[:, 1] > 0  # a resample without any wrong image has no lift
    lifts = means[defined, 0] / means[defined, 1]
    return {
        "share": float(misled.sum() / wrong.sum()),
        "expected": float(expected.sum() / wrong.sum()),
        "lift": float(misled.sum() / expected.sum()),
        "interval": percentiles(lifts).tolist(),
    }


def _unknown_clothes(*tables: pd.DataFrame) -> bool:
    return any(table["clothes"].isna().any() for table in tables)


def _shares_of_others(who: pd.DataFrame, gallery: pd.DataFrame, fact: str) -> pd.Series:
    """Of each query, the share of other people's images that have its value of a fact."""
    total, own = gallery.groupby(fact).size(), gallery.groupby(["pid", fact]).size()
    images = gallery.groupby("pid").size().reindex(who["pid"], fill_value=0).to_numpy()
    of_value = total.reindex(who[fact], fill_value=0).to_numpy()
    mine = own.reindex(pd.MultiIndex.from_frame(who[["pid", fact]]), fill_value=0).to_numpy()
    return pd.Series((of_value - mine) / np.maximum(len(gallery) - images, 1), who.index)


def _cameras(
    firsts: pd.DataFrame, wrong: pd.Series, who: pd.DataFrame, gallery: pd.DataFrame
) -> dict[str, Any]:
    """Wrong first images by camera of the query and of the image, and how many there would be if
    each of others' images were as likely: numbers of queries."""
    query_cams, gallery_cams = sorted(who["camid"].unique()), sorted(gallery["camid"].unique())
    rows = firsts[firsts["fact"] == "camid"]
    rows = rows.assign(query_cam=who["camid"].reindex(rows["query"]).to_numpy())
    table = rows.pivot_table("share", "query_cam", "value", "sum", fill_value=0.0)
    observed = table.reindex(index=query_cams, columns=gallery_cams, fill_value=0.0)
    chance = pd.DataFrame(
        {c: wrong * _shares_of_others(who.assign(camid=c), gallery, "camid") for c in gallery_cams}
    )
    expected = chance.groupby(who["camid"]).sum().reindex(query_cams)
    return {
        "query": [int(camera) for camera in query_cams],
        "gallery": [int(camera) for camera in gallery_cams],
        "wrong": observed.to_numpy().tolist(),
        "expected": expected.to_numpy().tolist(),
    }


def changed_clothes(
    query: pd.DataFrame, gallery: pd.DataFrame, distances: Distances, protocol: Protocol
) -> dict[str, Any]:
    """mAP of the queries that have images of their person in the same clothes and in others: once
    with the first alone, once with the second, and the difference with its 95 % interval."""
    if _unknown_clothes(query, gallery):
        return {"refused": _UNKNOWN}
    if protocol.draws > 1:
        return {"refused": _DRAWN}
    # Without images in other clothes, and without those in the same.
    rules = [_without(protocol, np.not_equal), _without(protocol, np.equal)]
    shown = gallery[protocol.gallery_mask(gallery)]
    with_same, with_others = (tasks_of(query, shown, rule).keys() for rule in rules)
    both = sorted(with_same & with_others)
    if not both:
        return {"refused": "no query has images of its person in the same clothes and in others"}
    ap = [
        rank_gallery(query, gallery, distances, rule).queries.set_index("sample_id")["ap"]
        for rule in rules
    ]
    names, pids = query["sample_id"].iloc[both], query["pid"].iloc[both].to_numpy()
    same, changed = (of_rule.loc[names].to_numpy() for of_rule in ap)
    return {
        "queries": len(both),
        "same": float(same.mean()),
        "changed": float(changed.mean()),
        "difference": float((same - changed).mean()),
        "interval": interval(same - changed, pids),
    }


def _without(protocol: Protocol, unwanted: Callable[..., np.ndarray]) -> Protocol:
    """A protocol without images whose clothes compare so with those of the query."""

    def junk(query: Codes, same: Codes) -> np.ndarray:
        return protocol.junk(query, same) | unwanted(same["clothes"], query["clothes"])

    return replace(protocol, junk=junk)
