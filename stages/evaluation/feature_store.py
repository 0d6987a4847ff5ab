"""Features of query and gallery, computed once and kept in a store beside the network's run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from deskpro.cache.file_index import FileIndex
from deskpro.cache.files import sha256
from deskpro.cache.reader import ZarrReader, all_bytes
from deskpro.cache.schema import Column, Field, Schema
from deskpro.cache.writer import GroupWriter
from deskpro.stages.base import distributed
from deskpro.stages.base.engine import map_items, torch_threads
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import bar
from deskpro.stages.data.index import content_hashes
from deskpro.stages.data.loader import batched
from deskpro.stages.evaluation.features import extract_batches
from deskpro.stages.evaluation.image_digests import evaluate_again
from deskpro.stages.models.extractor import FeatureExtractor, open_extractor

BLOCK = 1024
"""Images per block of the store."""
GROUP = "features"
_CONTENT = "_sha256"
"""Kind of image + this: the column with the contents of its files."""


class Distinct(NamedTuple):
    """The images of a table by their contents: those of equal content once, in that order."""

    table: pd.DataFrame
    columns: dict[str, Column]
    """What a store of them has of each: the name of one of this content, and its contents."""
    rows: np.ndarray
    """The place of each image of the whole table, int64 [N]."""
    contents: np.ndarray
    """SHA-256 of the files of each image of the whole table, uint8 [N, 32 · kinds]."""


def distinct_images(table: pd.DataFrame, kinds: Iterable[str], index: FileIndex) -> Distinct:
    """kinds: the files of an image that count."""
    hashes = {kind: content_hashes(table[kind].tolist(), index) for kind in kinds}
    contents = np.concatenate([*hashes.values()], axis=1)
    _, first, rows = np.unique(contents, axis=0, return_index=True, return_inverse=True)
    names = table["sample_id"].to_numpy(object)[first]
    columns = {"sample_id": Column(names, ("sample",), "1", "one of this content")} | {
        kind + _CONTENT: Column(
            values[first], ("sample", "byte"), "1", f"SHA-256 of the {kind} file"
        )
        for kind, values in hashes.items()
    }
    return Distinct(table.iloc[first], columns, rows.reshape(-1), contents)


def open_writer(
    path: Path, group: str, schema: Schema, images: Distinct, fingerprint: dict[str, Any]
) -> GroupWriter:
    """The writer of what is computed from images; blocks of others, or damaged ones, are missing.

    They are replaced: they are computed from what is still here, and nothing is lost.
    """
    depends = [name for name in images.columns if name.endswith(_CONTENT)]
    return GroupWriter(
        path, group, schema, images.columns, fingerprint, depends=depends, replace=True
    )


class Stored(NamedTuple):
    """Where the features of a table's images are, and what was done for them."""

    rows: np.ndarray
    """The row of the store of each image of the table, int64 [N]."""
    kept: int
    """Blocks that were there, of `blocks`."""
    blocks: int


class FeatureWorker:
    """Computes blocks of features. Made from plain values, so that it can run in any process."""

    def __init__(
        self, network: Path, kind: str | None, table: pd.DataFrame, options: Options
    ) -> None:
        """network: its weights; kind: student, teacher, or None for whichever the file holds."""
        self.table, self.options, data = table, options, options.data
        self.device = distributed.pick_device(options.device)
        self.extractor = open_extractor(network, kind, data.face_size, data.body_size, self.device)

    def __call__(self, rows: range) -> np.ndarray:
        """The features of neighbouring rows of the table, float32 [rows, 1, H, D]."""
        return next(self.run([rows]))

    def run(self, blocks: Iterable[range]) -> Iterator[np.ndarray]:
        """The features of each block in order; images are loaded ahead, also of the next block."""
        plan = [batched(rows, self.options.eval.batch) for rows in blocks]
        extracted = extract_batches(
            self.extractor,
            self.table,
            self.options,
            self.device,
            batches=[rows for batches in plan for rows in batches],
        )
        for batches in plan:
            parts = [next(extracted).features.numpy() for _ in batches]
            yield np.concatenate(parts)[:, None]
        next(extracted, None)  # it ends, and so does its progress bar


def store_features(
    path: Path,
    extractor: FeatureExtractor,
    network: Path,
    table: pd.DataFrame,
    options: Options,
    index: FileIndex,
    scores: Path | None = None,
) -> Stored:
    """Bring the store to the features of the table's images.

    scores: a file that was made of the features; it is removed before they change.

    Images of equal content have one feature, and the store's order is that of the contents: no
    value depends on file names. Blocks that are there of the same network, options and image
    contents are kept, whichever run made them; the others are computed.
    """
    distinct = distinct_images(table, extractor.kinds.values(), index)
    images, text = len(distinct.table), "features, each of length 1 or 0"
    field = Field(extractor.shape, "float32", ("head", "feature"), "1", text)
    schema = Schema(images, 1, BLOCK, {"features": field})
    fingerprint = _fingerprint(extractor, network, options.eval.flip)
    with open_writer(path, GROUP, schema, distinct, fingerprint) as writer:
        if scores is not None and not writer.sealed:
            scores.unlink(missing_ok=True)
        if writer.missing:
            make = partial(FeatureWorker, network, extractor.info.kind, distinct.table, options)
            blocks = {range(*schema.rows(b).indices(images)): b for b in writer.missing}
            for rows, features in _computed([*blocks], make, options):
                writer.write(blocks[rows], {"features": features})
        writer.seal()
        return Stored(distinct.rows, writer.there, schema.blocks)


def _computed(
    blocks: list[range], make_worker: Callable[[], FeatureWorker], options: Options
) -> Iterator[tuple[range, np.ndarray]]:
    """Blocks with their features; by this process in one stream, which loads images ahead."""
    launch = options.launch
    if launch.engine == "local" and launch.workers == 1:
        with torch_threads(launch.threads):
            yield from zip(blocks, make_worker().run(blocks), strict=True)
        return
    with bar("features", sum(map(len, blocks)), "images") as progress:
        for rows, features in map_items(launch, make_worker, blocks):
            progress.advance(len(rows))
            yield rows, features


def _fingerprint(extractor: FeatureExtractor, network: Path, flip: bool) -> dict[str, Any]:
    return {
        "network": {"weights": sha256(network), "kind": extractor.info.kind},
        "sizes": {kind: list(extractor.sizes[kind]) for kind in extractor.kinds.values()},
        "flip": flip,
        "heads": {
            stream: list(part.indices(extractor.shape[0])[:2])
            for stream, part in extractor.heads.items()
        },
    }


def require_features(path: Path, extractor: FeatureExtractor, network: Path, flip: bool) -> None:
    """Raise InputError where a store's features are of another network, or were made otherwise.

    flip: whether mirror images were added. An evaluation that was stopped leaves such a store.
    """
    if ZarrReader(path, GROUP).fingerprint != _fingerprint(extractor, network, flip):
        raise InputError(
            f"{path}: holds features of other weights or options (eval.flip, image sizes) than "
            f"those of {network} under its evaluation. Evaluate it again",
            command=evaluate_again(path.parent),
        )


class FeatureStore:
    """Features read from their store; resident on the device where `budget` (bytes) allows.

    Rows, everywhere below, are positions in the store, int64 [n].
    """

    def __init__(self, path: Path, device: torch.device, budget: float) -> None:
        # Read, not mapped: mapped pages would count as this process's memory, all of them in time.
        self.reader, self.device = ZarrReader(path, GROUP), device
        self.shape = self.reader.schema.fields["features"].shape
        self._resident: torch.Tensor | None = None
        if all_bytes(self.reader) <= budget:
            everything = np.arange(self.reader.schema.samples)
            self._resident = torch.cat([part for _, part in self._parts(everything)])

    @property
    def heads(self) -> int:
        return self.shape[0]

    @property
    def resident(self) -> int:
        """Bytes that are kept in memory."""
        return 0 if self._resident is None else self._resident.nbytes

    def contents(self) -> dict[str, np.ndarray]:
        """The content of the image files: by kind SHA-256, uint8 [rows, 32]."""
        kinds = [name for name in self.reader.columns if name.endswith(_CONTENT)]
        return {name.removesuffix(_CONTENT): self.reader.column(name) for name in kinds}

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """float32 [n, H, D] on the device."""
        needed, place = np.unique(rows, return_inverse=True)
        features = torch.cat([part for _, part in self.parts(needed)])
        return features[torch.from_numpy(place.reshape(-1)).to(self.device)]

    def parts(self, rows: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
        """Ascending rows, some at a time: their place among `rows`, and float32 [n, H, D]."""
        if self._resident is not None:
            yield slice(0, len(rows)), self._resident[torch.from_numpy(rows).to(self.device)]
        else:
            yield from self._parts(rows)

    def _parts(self, rows: np.ndarray) -> Iterator[tuple[slice, torch.Tensor]]:
        schema = self.reader.schema
        starts = np.searchsorted(rows, np.arange(schema.blocks + 1) * schema.block)
        for block in np.flatnonzero(np.diff(starts)).tolist():
            part = slice(int(starts[block]), int(starts[block + 1]))
            chunk = self.reader.chunk("features", block, 0)[rows[part] - block * schema.block]
            yield part, torch.from_numpy(chunk).to(self.device)

    def distances(
        self,
        queries: np.ndarray,
        others: np.ndarray,
        weights: torch.Tensor,
        gallery: FeatureStore | None = None,
    ) -> Callable[[slice | np.ndarray], np.ndarray]:
        """Some of the queries → their distances to all others, float32 [n, len(others)].

        The distance is 1 − Σ w_h ⟨q_h, g_h⟩ over the heads; weights: float32 [H]. Equal rows have
        equal distances, bit for bit: each product is computed once.

        Args:
            gallery: the store that `others` are rows of, this one where not given. All of its
                heads, in order, meet the heads here whose weight is not 0.
        """
        used = weights.nonzero().flatten().tolist()
        store, theirs = (self, used) if gallery is None else (gallery, [*range(gallery.heads)])
        scale = weights[used].to(self.device)[:, None]
        needed, place = np.unique(others, return_inverse=True)
        ordered = np.array_equal(needed, others)  # one image each, in the store's order

        def block(rows: slice | np.ndarray) -> np.ndarray:
            few = (self.take(queries[rows])[:, used] * scale).flatten(1)
            found = np.empty((len(few), len(needed)), np.float32)
            for part, features in store.parts(needed):
                products = few @ features[:, theirs].flatten(1).T
                found[:, part] = (1 - products).cpu().numpy()
            return found if ordered else found[:, place.reshape(-1)]

        return block


class ResidentFeatures(FeatureStore):
    """Features that are in no file; float32 [N, H, D]."""

    def __init__(self, features: torch.Tensor) -> None:
        self.device, self.shape, self._resident = features.device, features.shape[1:], features
