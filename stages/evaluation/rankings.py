"""The gallery, ranked for every query by each protocol and stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log
from deskpro.stages.evaluation.measures import Compared, Measure
from deskpro.stages.evaluation.mistakes import FACTS
from deskpro.stages.metrics.protocols import Protocol
from deskpro.stages.metrics.ranking import Distances, Ranking, rank_gallery
from deskpro.stages.metrics.reranking import reranked
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
        asked, kinds, measure = compared.asked, compared.shown, compared.measure
        seen, shown = query[asked].notna().any(axis=1), gallery[kinds].notna().any(axis=1)
        if not seen.all() and not quiet:
            without = f"{(~seen).sum()} of {len(seen)} queries have no {asked[0]}"
            log(f"eval: {stream}: {without}; they are not counted")
        if not seen.any() or not shown.any():
            absent = " or ".join(dict.fromkeys((asked[0], kinds[0])))
            if not quiet:
                log(f"eval: {stream}: queries or gallery have no {absent}; it is left out")
            continue
        for protocol in protocols:
            queries, others = query[seen], gallery
            if options.eval.rerank.enable:
                # Neighbours are those of the protocol: it says who is there at all.
                queries = queries[protocol.query_mask(queries)]
                others = gallery[protocol.gallery_mask(gallery)]
                known = np.concatenate([np.ones(len(queries), bool), shown[others.index]])
                distances = _reranked(options, measure, queries, others, known)
            else:
                distances = measure(queries, others)
            listed = protocol is protocols[0] and stream == widest(measures)
            count = NEAREST * listed
            ranking = rank_gallery(queries, others, distances, protocol, nearest=count, facts=FACTS)
            if len(ranking.queries):
                scores[protocol.name][stream] = ranking
    empty = [name for name, streams in scores.items() if not streams]
    if empty:
        raise InputError(
            f"{options.test_root}: protocol {', '.join(empty)}: no query that the network sees has "
            "a positive in the gallery. Check faces and names: deskpro check-data"
        )
    return scores


def _reranked(
    options: Options,
    measure: Measure,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    known: np.ndarray,
) -> Distances:
    """Re-ranked distances; known: bool [queries + gallery], what the stream sees."""
    settings = options.eval.rerank
    picked = pd.concat([query, gallery])
    try:
        return reranked(
            measure(picked, picked),
            len(query),
            len(gallery),
            known=known,
            k1=settings.k1,
            k2=settings.k2,
            weight=settings.weight,
            memory=options.cache.memory * 1e9,
        )
    except MemoryError as error:
        raise InputError(
            f"eval.rerank: {len(picked)} images need {error}. Allow more: --set "
            f"cache.memory={max(2 * options.cache.memory, 2):g}; or lower eval.rerank.k1"
        ) from None
