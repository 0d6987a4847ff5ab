"""What held-out identities tell of a student: its mAP, and how much each of its streams counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import KIND_OF
from deskpro.stages.base.options import Evaluation, Options
from deskpro.stages.data.check import check_data
from deskpro.stages.data.identities import HELD_OUT, Identities
from deskpro.stages.evaluation.features import extract_batches
from deskpro.stages.metrics.calibration import CASES, calibrate, calibration_name
from deskpro.stages.metrics.fusion import Fusion, fit_fusion
from deskpro.stages.metrics.protocols import PROTOCOLS, Codes, Protocol
from deskpro.stages.metrics.ranking import rank_gallery
from deskpro.stages.models.extractor import FeatureExtractor
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import ModelInfo

FACE_WEIGHT = Evaluation.model_fields["face_weight"].default
"""The fixed weight for which scores are calibrated, beside the fitted ones."""
NO_FACES = len(CASES) - 1
"""The case of streams that see none."""


def read_training(
    options: Options, needs: Sequence[str], index: FileIndex
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images that are trained on, and those of held-out identities; some may lack files.

    Raises InputError where images of the kinds `needs` can't be read.
    """
    checked = check_data(
        options.data.root,
        options.train_set,
        splits=("train",),
        needs=needs,
        incomplete="keep",
        identities=Identities(*options.data.chosen),
        index=index,
    ).require()
    return checked.split("train"), checked.split(HELD_OUT)


class LabelledPairs(NamedTuple):
    """Pairs of images.

    similarities: of each stream, float32 [n]; cases: places in `metrics.calibration.CASES`, [n];
    same: whether they show one person, bool [n]; people: their numbers, [2, n].
    """

    similarities: dict[str, np.ndarray]
    cases: np.ndarray
    same: np.ndarray
    people: np.ndarray


class Validation(NamedTuple):
    """A student and images of held-out identities, each of which is ranked against all others."""

    extractor: FeatureExtractor
    table: pd.DataFrame
    """As `read_index` gives it."""
    options: Options
    device: torch.device
    flip: bool = True
    """Whether the mirror image is added, as `eval.flip` has it unless set."""

    @classmethod
    def of(
        cls, student: Student, held_out: pd.DataFrame, options: Options, device: torch.device
    ) -> Validation:
        """Of a student on the device."""
        data = options.data
        sizes = {"lr_face": data.face_size, "imgs": data.body_size}
        info = ModelInfo(
            "student", options.student.arguments, 1, None, data.face_size, data.body_size
        )
        kinds = {stream: KIND_OF[stream] for stream in student.heads}
        extractor = FeatureExtractor(student, info, student.heads, kinds, sizes)
        return cls(extractor, held_out, options, device)

    @property
    def protocol(self) -> Protocol:
        """Without images in the same clothes, where clothes are known."""
        by_clothes = PROTOCOLS["cloth-changing"]
        return PROTOCOLS["market"] if by_clothes.missing_labels(self.table) else by_clothes

    def measure(self) -> dict[str, float]:
        """mAP of each stream, 0..1, under `protocol`; nan where nothing can be ranked."""
        found = {}
        for stream, similarity in self._similarities().items():
            rows = self._seen(stream)
            query, distances = self.table[rows].reset_index(drop=True), 1 - similarity[rows]
            ranking = rank_gallery(query, self.table, distances.__getitem__, self.protocol)
            found[f"mAP_{stream}"] = ranking.mAP
        return found

    def facts(self) -> dict[str, Any]:
        """What the pairs tell, by field of `ModelInfo`: the fusion, and what scores mean."""
        pairs = self._pairs()
        fusion, same, people = self._fit(pairs), pairs.same, pairs.people
        seen, of = pairs.cases == 0, pairs.similarities
        found = {}
        if "face" in of:
            faces = of["face"][seen], pairs.cases[seen]
            found["face"] = calibrate(*faces, same[seen], people[:, seen])
        if "body" in of:
            found["body"] = calibrate(of["body"], np.full(len(same), NO_FACES), same, people)
        if fusion is not None:
            for each in (fusion, Fusion.fixed(FACE_WEIGHT)):
                scores = each.scores(of["face"], of["body"], seen)
                found[calibration_name("all", each)] = calibrate(scores, pairs.cases, same, people)
        return {"fusion": None if fusion is None else fusion.facts(), "calibration": found}

    def _fit(self, pairs: LabelledPairs) -> Fusion | None:
        """The weights of both streams; None for a student of one stream."""
        if len(pairs.similarities) < 2:
            return None
        face, body = (pairs.similarities[name] for name in ("face", "body"))
        try:
            return fit_fusion(face, body, pairs.cases == 0, pairs.same)
        except ValueError as error:
            held_out = f"{len(self.table)} images of {self.table['pid'].nunique()} identities"
            raise InputError(
                f"the weights of the streams can't be fitted: {error}. {held_out} are held out; "
                "raise data.validation"
            ) from None

    def _pairs(self) -> LabelledPairs:
        """All pairs of images, without those of one identity that the protocol doesn't compare."""
        similarities = self._similarities()
        first, second = np.triu_indices(len(self.table), 1)
        pids = pd.factorize(self.table["pid"])[0]
        same = pids[first] == pids[second]
        counted = ~(same & self._junk()[first, second])
        first, second = first[counted], second[counted]
        face = np.zeros(len(self.table), bool)
        if "face" in similarities:
            face = self._seen("face")
        return LabelledPairs(
            {stream: values[first, second] for stream, values in similarities.items()},
            NO_FACES - face[first].astype(np.int8) - face[second],
            same[counted],
            np.stack([pids[first], pids[second]]),
        )

    def _similarities(self) -> dict[str, np.ndarray]:
        """Stream → the similarities of all pairs of images, float32 [N, N]."""
        found = extract_batches(
            self.extractor,
            self.table,
            self.options,
            self.device,
            flip=self.flip,
            workers=0,
        )
        features = torch.cat([batch.features for batch in found])
        return {
            stream: (torch.einsum("nhd,mhd->nm", part, part) / part.shape[1]).numpy()
            for stream, heads in self.extractor.heads.items()
            for part in [features[:, heads]]
        }

    def _seen(self, stream: str) -> np.ndarray:
        """Which images a stream sees, bool [N]."""
        return self.table[self.extractor.kinds[stream]].notna().to_numpy(copy=True)

    def _junk(self) -> np.ndarray:
        """What the protocol does not compare of one identity, bool [N, N]."""
        codes: Codes = {
            name: pd.factorize(self.table[name], use_na_sentinel=False)[0]
            for name in ("pid", "camid", "clothes")
        }
        query = {name: values[:, None] for name, values in codes.items()}
        return self.protocol.junk(query, codes)
