"""Descriptors of fewer bytes: fitted on training images, and what they score on test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deskpro.cache.errors import CacheError
from deskpro.cache.file_index import FileIndex
from deskpro.stages.base.distributed import pick_device
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.data.index import content_hashes, read_index
from deskpro.stages.data.layouts import layout_of
from deskpro.stages.data.loader import ImageDataset, images_of
from deskpro.stages.evaluation.feature_store import FeatureStore, ResidentFeatures
from deskpro.stages.evaluation.features import extract_batches
from deskpro.stages.evaluation.image_digests import evaluate_again
from deskpro.stages.evaluation.measures import measures_of
from deskpro.stages.evaluation.rankings import rank_all
from deskpro.stages.evaluation.scoring import split
from deskpro.stages.evaluation.validation import read_training
from deskpro.stages.metrics import compact
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.models.extractor import FeatureExtractor

Parts = dict[str, np.ndarray]
"""Stream → the vectors of N images, float32 [N, L], each of length 1, or 0 without its image."""
Accuracy = dict[str, dict[str, float]]
"""Protocol → stream → mAP, 0..1."""
SAMPLE = 256
"""Images that tell the ranges of int8 numbers."""


def trained_and_held_out(
    options: Options, student: FeatureExtractor, index: FileIndex
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The images that a student is trained on, and those of held-out identities.

    Raises:
        InputError: images are unreadable, or the student was trained on a held-out identity.
    """
    train, held_out = read_training(options, student.needs, index)
    trained = sorted({*held_out["pid"]} & {*(student.info.classes or ())})
    if trained:
        raise InputError(
            f"data.validation: the student was trained on {len(trained)} of these identities, "
            f"{trained[0]} for one. Leave it as it was in the training"
        )
    return train, held_out


def parts_of(features: np.ndarray, heads: Mapping[str, slice]) -> Parts:
    """The vectors of features [N, H, D], of which each head has length 1, or 0."""
    return {
        stream: features[:, part].reshape(len(features), -1)
        * np.float32((part.stop - part.start) ** -0.5)
        for stream, part in heads.items()
    }


def fit_directions(
    extractor: FeatureExtractor,
    streams: Sequence[str],
    train: pd.DataFrame,
    dim: int,
    options: Options,
) -> Parts:
    """Stream → `dim` directions of the vectors of training images, float32 [L, dim].

    Raises:
        InputError: there are too few images, or numbers, for so many directions.
    """
    heads, length = {s: extractor.heads[s] for s in streams}, extractor.shape[1]
    sizes = {stream: (part.stop - part.start) * length for stream, part in heads.items()}
    for stream, size in sizes.items():
        images = int(train[extractor.kinds[stream]].notna().sum())
        if dim > min(size, images):
            raise InputError(
                f"--dim {dim}: vectors of the {stream} have {size} numbers, and {images} images "
                f"are trained on; must be at most {min(size, images)}"
            )
    products = {stream: np.zeros((size, size)) for stream, size in sizes.items()}
    for batch in extract_batches(extractor, train, options, pick_device(options.device)):
        for stream, vectors in parts_of(batch.features.numpy(), heads).items():
            products[stream] += vectors.T.astype(np.float64) @ vectors
    return {s: compact.principal_directions(found)[:, :dim] for s, found in products.items()}


def sample(
    extractor: FeatureExtractor, streams: Sequence[str], train: pd.DataFrame, normalise: bool
) -> Parts:
    """Stream → at most `SAMPLE` training images, spread evenly: float32 or uint8 [n, 3, h, w].

    normalise: whether they are normalised, float32; else pixels, uint8.
    """
    found = {}
    for stream in streams:
        kind = extractor.kinds[stream]
        there = train[train[kind].notna()].reset_index(drop=True)
        rows = np.linspace(0, len(there) - 1, min(len(there), SAMPLE)).astype(int)
        images = ImageDataset(there, {kind: extractor.sizes[kind]})
        pixels = images.__getitems__([(int(row), 0) for row in rows])
        seen = images_of(pixels, kind, torch.device("cpu")) if normalise else pixels[kind]
        found[stream] = seen.contiguous().numpy()
    return found


@dataclass(frozen=True)
class Sizes:
    """What descriptors of a student score, by how long they are and how they are stored."""

    options: Options
    extractor: FeatureExtractor
    query: pd.DataFrame
    gallery: pd.DataFrame
    vectors: Parts
    """Those that `eval` stored; `row` of the tables is their place."""
    directions: Parts
    """Of each stream that is compared, float32 [L, dim], the longest first."""

    @property
    def dim(self) -> int:
        return next(iter(self.directions.values())).shape[1]

    @classmethod
    def of(
        cls,
        options: Options,
        extractor: FeatureExtractor,
        features: Path,
        directions: Parts,
        index: FileIndex,
    ) -> Sizes:
        """features: the store of the student's evaluation.

        Raises:
            CacheError: images have changed since.
        """
        store, root = FeatureStore(features, torch.device("cpu"), np.inf), options.test_root
        table, _ = read_index(root, layout_of(root, options.test_set), ("query", "gallery"))
        known = store.contents()
        keys = np.concatenate([*known.values()], axis=1)
        places = {key.tobytes(): row for row, key in enumerate(keys)}
        found = [content_hashes(table[kind].tolist(), index) for kind in known]
        rows = [places.get(key.tobytes()) for key in np.concatenate(found, axis=1)]
        if None in rows:
            command = evaluate_again(features.parent)
            raise CacheError("images have changed since the evaluation", command=command)
        table = table.assign(row=np.array(rows, np.int64)).sort_values(
            ["row", "sample_id"], ignore_index=True
        )
        every = store.take(np.arange(len(keys))).numpy()
        return cls(options, extractor, *split(table), parts_of(every, extractor.heads), directions)

    def accuracy(
        self,
        protocols: Sequence[str],
        fusion: dict[str, float] | None,
        dim: int | None = None,
        storage: str = "float32",
    ) -> Accuracy:
        """What parts of `dim` numbers score, of all where None; fusion: fitted weights, if any."""
        parts = [
            self.vectors[stream]
            if dim is None
            else compact.projected(self.vectors[stream], directions[:, :dim])
            for stream, directions in self.directions.items()
        ]
        kept = np.split(compact.stored(np.concatenate(parts, 1), storage), len(parts), axis=1)
        features = torch.from_numpy(np.stack([compact.restored(part) for part in kept], 1))
        extractor = replace(
            self.extractor,
            info=replace(self.extractor.info, fusion=fusion),
            heads={stream: slice(i, i + 1) for i, stream in enumerate(self.directions)},
            kinds={stream: self.extractor.kinds[stream] for stream in self.directions},
        )
        store = ResidentFeatures(features)
        measures = measures_of(extractor, store, self.options.eval.face_weight)
        rules = [PROTOCOLS[name] for name in protocols]
        found = rank_all(self.options, measures, rules, self.query, self.gallery, quiet=True)
        return {
            name: {stream: ranking.mAP for stream, ranking in of_stream.items()}
            for name, of_stream in found.items()
        }

    def table(self, protocol: str, fusion: dict[str, float] | None) -> list[dict[str, Any]]:
        """Rows of numbers (a part's), storage, bytes (an image's) and mAP by stream: whole vectors,
        those of all directions, of half and of a quarter, each in every storage.

        fusion: that of shorter vectors; whole ones have the student's own.
        """
        length, rows = len(next(iter(self.directions.values()))), []
        for numbers in (None, *dict.fromkeys(max(self.dim // share, 1) for share in (1, 2, 4))):
            weights = self.extractor.info.fusion if numbers is None else fusion
            for storage in compact.STORAGE:
                found = self.accuracy([protocol], weights, numbers, storage)
                size = (numbers or length) * np.dtype(storage).itemsize * len(self.directions)
                row = {"numbers": numbers or length, "storage": storage, "bytes": size}
                rows.append(row | {"mAP": found[protocol]})
        return rows
