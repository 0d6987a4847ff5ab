"""What held-out identities tell of a student: its mAP, and how much each of its streams counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.data.loader import batched
from deskpro.stages.evaluation.features import extract_batches
from deskpro.stages.metrics.fusion import Fusion, fit_fusion
from deskpro.stages.metrics.protocols import PROTOCOLS, Codes, Protocol
from deskpro.stages.metrics.ranking import rank_gallery
from deskpro.stages.models.extractor import KIND_OF, FeatureExtractor
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import ModelInfo


class Validation(NamedTuple):
    """A student and images of held-out identities, each of which is ranked against all others."""

    extractor: FeatureExtractor
    table: pd.DataFrame
    """As `read_index` gives it."""
    options: Options
    device: torch.device

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
            asked, distances = self.table[rows].reset_index(drop=True), 1 - similarity[rows]
            ranking = rank_gallery(asked, self.table, distances.__getitem__, self.protocol)
            found[f"mAP_{stream}"] = ranking.mAP
        return found

    def fusion(self) -> Fusion | None:
        """The weights of both streams; None for a student of one stream.

        Of one identity, pairs count that the protocol compares.
        """
        similarities = self._similarities()
        if len(similarities) < 2:
            return None
        first, second = np.triu_indices(len(self.table), 1)
        pids, face = self.table["pid"].to_numpy(), self._seen("face")
        same = pids[first] == pids[second]
        counted = ~(same & self._junk()[first, second])
        first, second, same = first[counted], second[counted], same[counted]
        of_face, of_body = (similarities[name][first, second] for name in ("face", "body"))
        try:
            return fit_fusion(of_face, of_body, face[first] & face[second], same)
        except ValueError as error:
            held_out = f"{len(self.table)} images of {self.table['pid'].nunique()} identities"
            raise InputError(
                f"the weights of the streams can't be fitted: {error}. {held_out} are held out; "
                "raise data.validation"
            ) from None

    def facts(self) -> dict[str, float] | None:
        """`fusion` as a weights file has it."""
        found = self.fusion()
        return None if found is None else found.facts()

    def _similarities(self) -> dict[str, np.ndarray]:
        """Stream → the similarities of all pairs of images, float32 [N, N]."""
        found = extract_batches(
            self.extractor,
            self.table,
            batched(range(len(self.table)), self.options.eval.batch),
            flip=True,
            workers=0,
            device=self.device,
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
        rows = range(len(self.table))
        return np.stack([self.protocol.junk(_row(codes, row), codes) for row in rows])


def _row(codes: Mapping[str, np.ndarray], row: int) -> Codes:
    return {name: values[row : row + 1] for name, values in codes.items()}
