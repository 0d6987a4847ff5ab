"""How each stream of a student, and both together, measure the distance of two images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import pandas as pd
import torch

from deskpro.stages.evaluation.feature_store import FeatureStore
from deskpro.stages.metrics.fusion import Block, Fusion, choose_fusion
from deskpro.stages.models.extractor import FeatureExtractor

Measure = Callable[[pd.DataFrame, pd.DataFrame], Block]
"""(query, gallery) → distances; both are tables with `row`, the place in the feature store."""


def measures_of(
    extractor: FeatureExtractor, stored: FeatureStore, face_weight: float | Literal["fitted"]
) -> dict[str, tuple[list[str], Measure]]:
    """Stream → the kinds of images that it sees, and how it measures distances.

    Raises:
        InputError: the weights of the streams are to be the fitted ones, and the student has none.
    """
    found = dict[str, tuple[list[str], Measure]]()
    for stream, part in extractor.heads.items():
        weights = torch.zeros(stored.heads)
        weights[part] = 1 / (part.stop - part.start)
        found[stream] = [extractor.kinds[stream]], partial(_distances, stored, weights)
    if len(found) > 1:
        fusion = choose_fusion(extractor.info.fusion, face_weight)
        counted = extractor.kinds if face_weight == "fitted" else fusion.streams
        kinds = [kind for stream, kind in extractor.kinds.items() if stream in counted]
        measures = {stream: measure for stream, (_, measure) in found.items()}
        found["all"] = kinds, partial(_together, fusion, extractor.kinds["face"], measures)
    return found


def _distances(
    stored: FeatureStore, weights: torch.Tensor, query: pd.DataFrame, gallery: pd.DataFrame
) -> Block:
    return stored.distances(query["row"].to_numpy(), gallery["row"].to_numpy(), weights)


def _together(
    fusion: Fusion,
    kind: str,
    measures: dict[str, Measure],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> Block:
    """Distances of both streams; kind: that of face images."""
    face, body = (measures[stream](query, gallery) for stream in ("face", "body"))
    asked, shown = (part[kind].notna().to_numpy() for part in (query, gallery))
    return fusion.distances(face, body, asked, shown)
