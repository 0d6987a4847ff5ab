"""How each stream of a student, and both together, measure the distance of two images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from deskpro.stages.base.calibrated import Case
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.evaluation.feature_store import FeatureStore
from deskpro.stages.metrics.calibration import calibration_name
from deskpro.stages.metrics.fusion import Block, Fusion, choose_fusion
from deskpro.stages.models.extractor import FeatureExtractor

Measure = Callable[[pd.DataFrame, pd.DataFrame], Block]
"""(query, gallery) → distances; both are tables with `row`, the place in the feature store. With a
teacher's store the gallery has `hr_row`, the place in that."""


class Compared(NamedTuple):
    """What a stream compares, and how."""

    query_kinds: list[str]
    """The kinds of images that it sees of a query, which has one of them or isn't ranked."""
    gallery_kinds: list[str]
    """The same of the gallery, whose images without any are at a cosine of 0."""
    measure: Measure
    highest: float = 1.0
    """The score of equal features; a distance is how far a score lies below it."""
    faces: tuple[str, str] | None = None
    """The columns by which an image of query and gallery counts as having a face; else none has."""
    calibration: Mapping[str, Case] = {}
    """Face case → what scores mean, where that is known."""

    def query_mask(self, query: pd.DataFrame) -> np.ndarray:
        """Of which queries it sees an image: bool [Q]."""
        return query[self.query_kinds].notna().any(axis=1).to_numpy()

    def gallery_mask(self, gallery: pd.DataFrame) -> np.ndarray:
        """Of which images of the gallery it sees something: bool [G]."""
        return gallery[self.gallery_kinds].notna().any(axis=1).to_numpy()


def measures_of(
    extractor: FeatureExtractor,
    stored: FeatureStore,
    face_weight: float | Literal["fitted"],
    of_teacher: FeatureStore | None = None,
) -> dict[str, Compared]:
    """Stream → what it sees, and how it measures distances.

    Args:
        extractor: the network whose features are stored.
        of_teacher: features of the gallery by a teacher with the heads of the face stream; adds the
            stream `face_hr`.

    Raises:
        InputError: the weights of the streams are to be the fitted ones, and the student has none.
    """
    found, weights_of = dict[str, Compared](), dict[str, torch.Tensor]()
    calibrations = extractor.info.calibration or {}
    for stream, part in extractor.heads.items():
        weights_of[stream] = weights = torch.zeros(stored.heads)
        weights[part] = 1 / (part.stop - part.start)
        kind, measure = extractor.kinds[stream], partial(_distances, stored, weights)
        faces = (kind, kind) if stream == "face" else None
        known = calibrations.get(calibration_name(stream), {})
        found[stream] = Compared([kind], [kind], measure, faces=faces, calibration=known)
    measures = {stream: compared.measure for stream, compared in found.items()}
    if of_teacher is not None:
        across = partial(_distances, stored, weights_of["face"], others=of_teacher, column="hr_row")
        # The student's calibration is of the scores of one network.
        faces = extractor.kinds["face"], "hr_face"
        found[FACE_HR] = Compared([faces[0]], [faces[1]], across, faces=faces)
    if len(measures) > 1:
        fusion = choose_fusion(extractor.info.fusion, face_weight)
        counted = extractor.kinds if face_weight == "fitted" else fusion.streams
        kinds = [kind for stream, kind in extractor.kinds.items() if stream in counted]
        face = extractor.kinds["face"]
        together = partial(_together, fusion, face, measures)
        known = calibrations.get(calibration_name("all", fusion), {})
        found["all"] = Compared(kinds, kinds, together, fusion.highest, (face, face), known)
    return found


def _distances(
    stored: FeatureStore,
    weights: torch.Tensor,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    *,
    others: FeatureStore | None = None,
    column: str = "row",
) -> Block:
    """others: the store of the gallery, where it is another one, and `column` the places in it."""
    return stored.distances(query["row"].to_numpy(), gallery[column].to_numpy(), weights, others)


def _together(
    fusion: Fusion,
    kind: str,
    measures: dict[str, Measure],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> Block:
    """Distances of both streams; kind: that of face images."""
    face, body = (measures[stream](query, gallery) for stream in ("face", "body"))
    has_face = (part[kind].notna().to_numpy() for part in (query, gallery))
    return fusion.distances(face, body, *has_face)
