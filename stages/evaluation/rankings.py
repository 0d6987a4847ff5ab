"""The gallery, ranked for every query by each protocol and stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log
from deskpro.stages.evaluation.measures import Compared
from deskpro.stages.evaluation.mistakes import FACTS
from deskpro.stages.metrics.protocols import Protocol
from deskpro.stages.metrics.ranking import (
    Ranking,
    has_positive,
    queries_at_once,
    rank_gallery,
    slices,
)
from deskpro.stages.reporting.results import widest

NEAREST = 10
"""Gallery images listed for each query."""
Say = Callable[[str], object]


def rank_all(
    options: Options,
    measures: Mapping[str, Compared],
    protocols: Sequence[Protocol],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    *,
    quiet: bool = False,
) -> dict[str, dict[str, Ranking]]:
    """Protocol → stream → ranking; nearest images of the first protocol and its widest stream.

    A query of which a stream sees no image is not ranked by it. What has nothing to rank, a stream
    or a protocol, or a stream under a protocol, is left out; unless `quiet`, a line says so.

    Raises:
        InputError: a protocol that is asked for, or every protocol, has nothing to rank.
    """
    say: Say = (lambda _: None) if quiet else log
    able = _able(measures, protocols, query, gallery, say)
    empty = [p.name for p in protocols if not any(p in found for found in able.values())]
    if empty and (options.eval.protocols or len(empty) == len(protocols)):
        raise InputError(
            f"{options.test_root}: protocol {', '.join(empty)}: no query that the network sees has "
            "a positive in the gallery. Check faces and names: deskpro check-data"
        )
    scores: dict[str, dict[str, Ranking]] = {p.name: {} for p in protocols if p.name not in empty}
    for name in empty:
        say(f"eval: {name}: no query that the network sees has a positive; it is left out")
    first = next(protocol for protocol in protocols if protocol.name in scores)
    listed = widest(stream for stream, found in able.items() if first in found)
    for stream, found in able.items():
        compared = measures[stream]
        queries = query[compared.query_mask(query)]
        distances = compared.measure(queries, gallery)
        for protocol in found:
            nearest = NEAREST if protocol is first and stream == listed else 0
            scores[protocol.name][stream] = rank_gallery(
                queries, gallery, distances, protocol, nearest=nearest, facts=FACTS
            )
        for name in [name for name, of_stream in scores.items() if stream not in of_stream]:
            say(f"eval: {name}, {stream}: no query that it sees has a positive; it is left out")
    return scores


def _able(
    measures: Mapping[str, Compared],
    protocols: Sequence[Protocol],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    say: Say,
) -> dict[str, list[Protocol]]:
    """Stream → the protocols by which it can rank a query."""
    found = {}
    for stream, compared in measures.items():
        seen, mine = compared.query_mask(query), compared.query_kinds
        if not seen.all():
            without = f"{(~seen).sum()} of {len(seen)} queries have no {' or '.join(mine)}"
            say(f"eval: {stream}: {without}; they are not counted")
        if seen.any() and compared.gallery_mask(gallery).any():
            found[stream] = [p for p in protocols if has_positive(query[seen], gallery, p)]
        else:
            absent = " or ".join(dict.fromkeys([*mine, *compared.gallery_kinds]))
            say(f"eval: {stream}: queries or gallery have no {absent}; it is left out")
    return found


def with_streams(
    lists: pd.DataFrame,
    listed: str,
    measures: Mapping[str, Compared],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> pd.DataFrame:
    """Lists of nearest images with `distance_STREAM`, by each stream that `all` may be made of.

    NaN where a stream doesn't see the query or the image; no such columns where a network has one
    stream alone.

    Args:
        lists: of `Ranking`, of the stream `listed`.
        query, gallery: tables with sample_id and what the measures read.
    """
    query_rows = pd.Index(query["sample_id"]).get_indexer(lists["query"])
    gallery_rows = pd.Index(gallery["sample_id"]).get_indexer(lists["sample_id"])
    rows, place = np.unique(query_rows, return_inverse=True)
    queries = query.iloc[rows]
    for stream in [name for name in measures if name not in (listed, "all", FACE_HR)]:
        compared, found = measures[stream], np.full(len(lists), np.nan, np.float32)
        distances = compared.measure(queries, gallery)
        for part in slices(len(rows), queries_at_once(len(gallery))):
            mine = np.flatnonzero((place >= part.start) & (place < part.stop))
            found[mine] = distances(part)[place[mine] - part.start, gallery_rows[mine]]
        seen = compared.query_mask(query)[query_rows]
        seen &= compared.gallery_mask(gallery)[gallery_rows]
        lists = lists.assign(**{f"distance_{stream}": np.where(seen, found, np.nan)})
    return lists
