"""Features of query and gallery, made once and kept in a store beside the network's run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deskpro.cache.errors import CacheError
from deskpro.cache.files import sha256
from deskpro.cache.fingerprint import differences, sample_differences
from deskpro.cache.reader import ZarrReader, all_bytes, open_reader
from deskpro.cache.schema import Column, Field, Schema
from deskpro.cache.writer import TargetWriter, Team
from deskpro.stages.base.options import Options
from deskpro.stages.base.ranks import Ranks
from deskpro.stages.data.file_index import FileIndex, content_hashes
from deskpro.stages.evaluation.features import FeatureExtractor, batched, extract_batches
from deskpro.stages.models.lmbn import HEADS

BLOCK = 1024
"""Images per block of the store."""
_CONTENT = "_sha256"
"""Kind of image + this: the column with the contents of its files."""


def store_features(
    path: Path,
    extractor: FeatureExtractor,
    network: Path,
    table: pd.DataFrame,
    options: Options,
    file_index: Path,
    device: torch.device,
    team: Ranks,
) -> str:
    """See to it that the store holds the features of the table's images, in its order.

    What is there of the same network, options and image contents is kept, whichever run made it;
    the rest is computed, in blocks, by all processes of the team. Returns, in words, what was done.
    """
    with team.rank_zero_first():  # it hashes; the others find that in the file index
        schema, columns, fingerprint = _wanted(extractor, network, table, options, file_index)
    if team.share(not team.rank and _is_fresh(path, schema, columns, fingerprint)):
        return "were there"
    writer = TargetWriter(
        path,
        schema,
        columns,
        fingerprint,
        replace=True,  # features are made of what is still here; nothing is lost
        team=Team(team.rank, team.size, team.share, team.gather),
    )
    try:
        batches = [
            rows
            for block in writer.mine
            for rows in batched(range(*schema.rows(block).indices(len(table))), options.eval.batch)
        ]
        described = extract_batches(
            extractor,
            table,
            batches,
            flip=options.eval.flip,
            workers=options.data.workers,
            device=device,
        )
        for block in writer.mine:
            rows = schema.rows(block)
            count = len(batched(range(rows.start, rows.stop), options.eval.batch))
            parts = [next(described).features.numpy() for _ in range(count)]
            dtype = schema.fields["features"].dtype
            writer.write(block, {"features": np.concatenate(parts)[:, None].astype(dtype)})
        for _ in described:  # let it end well
            pass
        there = writer.there
        writer.seal()
    finally:
        writer.close()
    return f"of {there} of {schema.blocks} blocks were there" if there else "were made"


def _wanted(
    extractor: FeatureExtractor,
    network: Path,
    table: pd.DataFrame,
    options: Options,
    file_index: Path,
) -> tuple[Schema, dict[str, Column], dict[str, Any]]:
    shape = len(HEADS) * len(extractor.kinds), extractor.info.network["feature_dim"]
    fields = {
        "features": Field(
            shape,
            options.eval.dtype,
            ("head", "feature"),
            "1",
            "features, each of length 1 or 0",
        )
    }
    remembered = FileIndex(file_index)
    names = table["sample_id"].to_numpy(object)
    columns = {"sample_id": Column(names, ("sample",))} | {
        kind + _CONTENT: Column(
            content_hashes(table[kind].tolist(), remembered),
            ("sample", "byte"),
            description=f"SHA-256 of the {kind} file",
        )
        for kind in extractor.kinds.values()
    }
    remembered.save()
    fingerprint = {
        "network": {"weights": sha256(network), "kind": extractor.info.kind},
        "sizes": {kind: list(extractor.sizes[kind]) for kind in extractor.kinds.values()},
        "flip": options.eval.flip,
        "heads": {
            stream: list(part.indices(shape[0])[:2]) for stream, part in extractor.heads.items()
        },
    }
    return Schema(len(table), 1, BLOCK, fields), columns, fingerprint


def _is_fresh(
    path: Path, schema: Schema, columns: dict[str, Column], fingerprint: dict[str, Any]
) -> bool:
    if not path.exists():
        return False
    try:
        reader = open_reader(path)
        stored = {name: reader.column(name) for name in columns}
        return reader.schema == schema and not (
            differences(reader.fingerprint, fingerprint)
            or sample_differences(stored, {n: column.values for n, column in columns.items()})
        )
    except CacheError:  # unfinished, or damaged: what is sound is taken over
        return False


class FeatureStore:
    """Features read from their store; held on the device where `budget` (bytes) allows."""

    def __init__(self, path: Path, device: torch.device, budget: float) -> None:
        # Read, not mapped: mapped pages would count as this process's memory, all of them in time.
        self.reader, self.device = ZarrReader(path, ["features"]), device
        field = self.reader.schema.fields["features"]
        self.heads = field.shape[0]
        self._held: torch.Tensor | None = None
        if all_bytes(self.reader) * 4 // np.dtype(field.dtype).itemsize <= budget:
            everything = range(self.reader.schema.samples)
            self._held = torch.cat([part for _, part in self._parts(everything)])

    def contents(self) -> dict[str, np.ndarray]:
        """The content of the files that were described: by kind SHA-256, uint8 [N, 32]."""
        kinds = [name for name in self.reader.columns if name.endswith(_CONTENT)]
        return {name.removesuffix(_CONTENT): self.reader.column(name) for name in kinds}

    def take(self, rows: range) -> torch.Tensor:
        """float32 [len(rows), H, D] on the device."""
        return torch.cat([part for _, part in self.parts(rows)])

    def parts(self, rows: range) -> Iterator[tuple[slice, torch.Tensor]]:
        """Neighbouring rows, some at a time: their place among `rows`, and float32 [n, H, D]."""
        if self._held is not None:
            yield slice(0, len(rows)), self._held[rows.start : rows.stop]
        else:
            yield from self._parts(rows)

    def _parts(self, rows: range) -> Iterator[tuple[slice, torch.Tensor]]:
        schema = self.reader.schema
        for block in range(rows.start // schema.block, -(-rows.stop // schema.block)):
            here = schema.rows(block)
            start, stop = max(here.start, rows.start), min(here.stop, rows.stop)
            chunk = self.reader.chunk("features", block, 0)[start - here.start : stop - here.start]
            features = torch.from_numpy(np.ascontiguousarray(chunk)).to(self.device).float()
            yield slice(start - rows.start, stop - rows.start), features

    def seen(self, rows: range, weights: torch.Tensor) -> np.ndarray:
        """Which images have a feature in a head that has a weight: bool [len(rows)]."""
        used = weights.nonzero().flatten().tolist()
        parts = [part[:, used].abs().amax((1, 2)) > 0 for _, part in self.parts(rows)]
        return torch.cat(parts).cpu().numpy()

    def distances(
        self, queries: range, others: range, weights: torch.Tensor
    ) -> Callable[[slice | np.ndarray], np.ndarray]:
        """Some queries → their distances to all others, float32 [n, len(others)].

        The distance is 1 − Σ w_h ⟨q_h, g_h⟩ over the heads; weights: float32 [H].
        """
        used = weights.nonzero().flatten().tolist()
        scale = weights[used].to(self.device)[:, None]
        asked = (self.take(queries)[:, used] * scale).flatten(1)

        def block(rows: slice | np.ndarray) -> np.ndarray:
            few = asked[rows]
            found = np.empty((len(few), len(others)), np.float32)
            for part, features in self.parts(others):
                products = few @ features[:, used].flatten(1).T
                found[:, part] = (1 - products).cpu().numpy()
            return found

        return block
