"""How each stream of a student, and both together, measure the distance of two images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import pandas as pd
import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.evaluation.feature_store import FeatureStore
from deskpro.stages.evaluation.features import FeatureExtractor
from deskpro.stages.evaluation.fusion import Block, Fusion

Measure = Callable[[pd.DataFrame, pd.DataFrame], Block]
"""(query, gallery) → distances; both are tables with `row`, the place in the feature store."""


def measures_of(
    extractor: FeatureExtractor, stored: FeatureStore, face_weight: float | Literal["fitted"]
) -> dict[str, tuple[list[str], Measure]]:
    """Stream → the kinds of images that it sees, and how it measures distances.

    Raises:
        InputError: the weights of the streams are to be the fitted ones, and the student has none.
    """
    weights, found = {}, dict[str, tuple[list[str], Measure]]()
    for stream, part in extractor.heads.items():
        weights[stream] = torch.zeros(stored.heads)
        weights[stream][part] = 1 / (part.stop - part.start)
        found[stream] = [extractor.kinds[stream]], partial(_distances, stored, weights[stream])
    if len(weights) > 1:
        if face_weight == "fitted":
            found["all"] = [*extractor.kinds.values()], _fitted(extractor, found)
        else:
            both = face_weight * weights["face"] + (1 - face_weight) * weights["body"]
            used = [
                kind
                for stream, kind in extractor.kinds.items()
                if both[extractor.heads[stream]].any()
            ]
            found["all"] = used, partial(_distances, stored, both)
    return found


def _distances(
    stored: FeatureStore, weights: torch.Tensor, query: pd.DataFrame, gallery: pd.DataFrame
) -> Block:
    return stored.distances(query["row"].to_numpy(), gallery["row"].to_numpy(), weights)


def _fitted(
    extractor: FeatureExtractor, of: Mapping[str, tuple[Sequence[str], Measure]]
) -> Measure:
    """The distances of both streams by the weights that the student has."""
    if extractor.info.fusion is None:
        raise InputError(
            "eval.face_weight: fitted, but the student's weights of its streams were not fitted: "
            "no identities were held out in its training. Train with --set data.validation=0.1, or "
            "give a number, such as --set eval.face_weight=0.5"
        )
    fusion, kind = Fusion(**extractor.info.fusion), extractor.kinds["face"]

    def measure(query: pd.DataFrame, gallery: pd.DataFrame) -> Block:
        face, body = (of[stream][1](query, gallery) for stream in ("face", "body"))
        asked, shown = (part[kind].notna().to_numpy() for part in (query, gallery))
        return fusion.distances(face, body, asked, shown)

    return measure
