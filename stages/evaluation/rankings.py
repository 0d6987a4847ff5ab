"""The gallery, ranked for every query by each protocol and stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log
from deskpro.stages.evaluation.measures import Compared
from deskpro.stages.evaluation.mistakes import FACTS
from deskpro.stages.metrics.protocols import Protocol
from deskpro.stages.metrics.ranking import Ranking, rank_gallery
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
        queries = query[seen]
        distances = measure(queries, gallery)
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
