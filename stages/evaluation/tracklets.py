"""Tracklets in the place of images: the features of all images of one are pooled.

Published rules of video datasets count a tracklet as one item, with the mean of its frames'
features (CCVID, MEVID).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.data.index import tracklet_key
from deskpro.stages.evaluation.feature_store import BLOCK, FeatureStore, ResidentFeatures
from deskpro.stages.evaluation.parts import unit_rows


class Pooled(ResidentFeatures):
    """Features of tracklets, in memory: of each head the mean of unit vectors, of length 1 again.

    Images without a part, whose feature there is 0, don't count in it: a face is pooled from the
    images that have one. Tracklets of equal features have one row.
    """

    def __init__(self, stored: FeatureStore, members: Sequence[np.ndarray]) -> None:
        """members: of each tracklet the rows of its images in the store, int64.

        `rows` is then the row of each tracklet here, int64 [tracklets].
        """
        directions = torch.nn.functional.normalize(_sums(stored, members), dim=-1).float()
        distinct, rows = np.unique(directions.numpy(), axis=0, return_inverse=True)
        self.rows = rows.reshape(-1)
        super().__init__(torch.from_numpy(distinct).to(stored.device))


def _sums(stored: FeatureStore, members: Sequence[np.ndarray]) -> torch.Tensor:
    """Of each tracklet the sum of its images' features, float64 [tracklets, H, D] on the CPU.

    The store is read once, a block at a time. A tracklet's images are added one after the other in
    the order of their rows: equal images have equal sums, bit for bit.
    """
    rows, owner = np.concatenate(members), np.repeat(np.arange(len(members)), [*map(len, members)])
    order = np.argsort(rows, kind="stable")
    rows, owner = rows[order], owner[order]
    needed, place = np.unique(rows, return_inverse=True)
    sums = torch.zeros(len(members), *stored.shape, dtype=torch.float64)
    for start in range(0, len(needed), BLOCK):
        for part, features in stored.parts(needed[start : start + BLOCK]):
            first, last = start + part.start, start + part.stop
            mine = slice(*np.searchsorted(place, [first, last]))
            added = features.cpu().double()[torch.from_numpy(place[mine] - first)]
            sums.index_add_(0, torch.from_numpy(owner[mine]), added)
    return sums


def pool_parts(
    features: Mapping[str, np.ndarray], members: Sequence[np.ndarray], metric: str
) -> dict[str, np.ndarray]:
    """Features of any network by part, float64 [N, D], as those of tracklets.

    Of the rows that aren't 0, which have the part: the mean, for cosine of unit vectors.
    """
    found = {}
    for name, values in features.items():
        there = (values != 0).any(axis=1)
        used = unit_rows(values) if metric == "cosine" else values
        means = [used[rows].sum(0) / max(there[rows].sum(), 1) for rows in members]
        found[name] = np.stack(means)
    return found


def pool_tracklets(
    images: pd.DataFrame, kinds: Sequence[str]
) -> tuple[pd.DataFrame, list[np.ndarray]]:
    """A row for each tracklet, named by its first image; and the values of `row` of its images.

    kinds: columns of images; a tracklet has one where any of its images has, the first. A tracklet
    lasts from `time` to `time_end`, None where one of its images has no time.

    Raises:
        InputError: the dataset knows no tracklets, or an image is of none, or one wears several
            clothes.
    """
    unknown = images["tracklet"].isna()
    if unknown.any():
        example = images.loc[unknown, "sample_id"].iloc[0]
        raise InputError(
            f"eval.unit is tracklet, but {unknown.sum()} of {len(images)} images are of no known "
            f"tracklet, such as {example}. ccvid, mevid and deepchange have tracklets; of others "
            "score images",
            command="eval --set eval.unit=picture",
        )
    key = tracklet_key(images)
    groups = images.sort_values([*key, "sample_id"], kind="stable").groupby(key, sort=False)
    clothes = groups["clothes"].nunique(dropna=False)
    if (clothes > 1).any():
        where = str(clothes.index[clothes > 1][0])
        raise InputError(f"tracklet {where} has images in several clothes")
    # first() takes the first that is known, head(1) the first image.
    table = groups.head(1).drop(columns=[*kinds, "row"]).reset_index(drop=True)
    for kind in kinds:
        table[kind] = groups[kind].first().to_numpy()
    lasts = [
        (None, None) if times.isna().any() else (min(times), max(times))
        for _, times in groups["time"]
    ]
    table[["time", "time_end"]] = pd.DataFrame(lasts, table.index, dtype=object)
    table = table.astype(object).where(table.notna(), None).astype({"camid": "int64"})
    members = [np.sort(rows.to_numpy(np.int64)) for _, rows in groups["row"]]
    return table.assign(row=np.arange(len(table))), members
