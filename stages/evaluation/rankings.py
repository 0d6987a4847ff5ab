"""The gallery, ranked for every query by each protocol and stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log
from deskpro.stages.evaluation.measures import Compared
from deskpro.stages.evaluation.mistakes import FACTS
from deskpro.stages.metrics.protocols import Protocol
from deskpro.stages.metrics.ranking import BLOCK, Ranking, rank_gallery
from deskpro.stages.reporting.results import widest

NEAREST = 10
"""Gallery images listed for each query."""


def rank_all(
    options: Options,
    measures: Mapping[str, Compared],
    protocols: Sequence[Protocol],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    *,
    quiet: bool = False,
) -> dict[str, dict[str, Ranking]]:
    """Protocol → stream → ranking; nearest images of the first protocol and widest stream.

    A query of which a stream sees no image is not ranked by it; a stream that has nothing to rank
    has no ranking; unless `quiet`, a line says so.
    """
    scores: dict[str, dict[str, Ranking]] = {protocol.name: {} for protocol in protocols}
    for stream, compared in measures.items():
        seen, kinds = compared.query_mask(query), (compared.query_kinds, compared.gallery_kinds)
        if not seen.all() and not quiet:
            without = f"{(~seen).sum()} of {len(seen)} queries have no {kinds[0][0]}"
            log(f"eval: {stream}: {without}; they are not counted")
        if not seen.any() or not compared.gallery_mask(gallery).any():
            absent = " or ".join(dict.fromkeys(kind for kind, *_ in kinds))
            if not quiet:
                log(f"eval: {stream}: queries or gallery have no {absent}; it is left out")
            continue
        queries = query[seen]
        distances = compared.measure(queries, gallery)
        for protocol in protocols:
            listed = protocol is protocols[0] and stream == widest(measures)
            ranking = rank_gallery(
                queries, gallery, distances, protocol, nearest=NEAREST * listed, facts=FACTS
            )
            if len(ranking.queries):
                scores[protocol.name][stream] = ranking
    empty = [name for name, streams in scores.items() if not streams]
    if empty:
        raise InputError(
            f"{options.test_root}: protocol {', '.join(empty)}: no query that the network sees has "
            "a positive in the gallery. Check faces and names: deskpro check-data"
        )
    return scores


def with_streams(
    lists: pd.DataFrame,
    measures: Mapping[str, Compared],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> pd.DataFrame:
    """Lists of nearest images with `distance_STREAM`, by each stream that `all` is made of.

    NaN where a stream doesn't see the query or the image; no such columns where a network has one
    stream alone.

    Args:
        lists: of `Ranking`, of the widest stream.
        query, gallery: tables with sample_id and what the measures read.
    """
    query_rows = pd.Index(query["sample_id"]).get_indexer(lists["query"])
    gallery_rows = pd.Index(gallery["sample_id"]).get_indexer(lists["sample_id"])
    rows, place = np.unique(query_rows, return_inverse=True)
    queries, size = query.iloc[rows], max(1, BLOCK // (4 * max(len(gallery), 1)))
    for stream in [name for name in measures if name not in (widest(measures), FACE_HR)]:
        compared, found = measures[stream], np.full(len(lists), np.nan, np.float32)
        distances = compared.measure(queries, gallery)
        for start in range(0, len(rows), size):
            mine = np.flatnonzero((place >= start) & (place < start + size))
            block = distances(slice(start, min(start + size, len(rows))))
            found[mine] = block[place[mine] - start, gallery_rows[mine]]
        seen = compared.query_mask(query)[query_rows]
        seen &= compared.gallery_mask(gallery)[gallery_rows]
        lists = lists.assign(**{f"distance_{stream}": np.where(seen, found, np.nan)})
    return lists
