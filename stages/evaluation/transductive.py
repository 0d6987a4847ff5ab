"""Rankings that look at more than a query and the gallery: their numbers stand apart.

What a query finds depends here on who else is asked, so that these numbers can't be compared with
those of a plain ranking, which every evaluation has, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, table
from deskpro.stages.evaluation.measures import Compared
from deskpro.stages.evaluation.scores import ranking_numbers
from deskpro.stages.metrics.enrichment import enriched, enrolled
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import Distances, rank_gallery
from deskpro.stages.metrics.reranking import reranked
from deskpro.stages.reporting import results

_ROUNDING = 1e-6
"""By how much a cosine of equal features may differ from 1."""


class Search(NamedTuple):
    """What a stream ranks under a protocol."""

    options: Options
    measures: Mapping[str, Compared]
    stream: str
    query: pd.DataFrame
    """The queries of which the stream sees an image."""
    gallery: pd.DataFrame


Ranked = tuple[Distances, dict[str, Any]]
"""Distances of queries to the gallery, and what else is to be said of them."""


def _rerank(search: Search) -> Ranked:
    options, compared = search.options, search.measures[search.stream]
    picked = pd.concat([search.query, search.gallery])
    shown = compared.gallery_mask(search.gallery)
    settings = options.eval.rerank
    try:
        distances = reranked(
            compared.measure(picked, picked),
            len(search.query),
            len(search.gallery),
            known=np.concatenate([np.ones(len(search.query), bool), shown]),
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
    return distances, {}


def _enrich(search: Search) -> Ranked:
    query, gallery = search.query, search.gallery
    face, measure = search.measures["face"], search.measures[search.stream].measure
    distances, (column,) = face.measure(query, gallery), face.query_kinds
    has, shows = (part[column].notna().to_numpy() for part in (query, gallery))

    def faces(rows: slice) -> np.ndarray:
        return np.where(has[rows, None] & shows, distances(rows), np.float32(np.inf))

    furthest = face.highest - least_score(search.options, face) + _ROUNDING
    pairs = enrolled(faces, len(query), len(gallery), furthest)
    pids = query["pid"].to_numpy()[pairs[:, 0]], gallery["pid"].to_numpy()[pairs[:, 1]]
    about = {
        "enrolled": len({*pairs[:, 0].tolist()}),
        "right": float((pids[0] == pids[1]).mean()) if len(pairs) else None,
    }
    return enriched(measure(query, gallery), measure(query, query), pairs), about


RULES: Mapping[str, Callable[[Search], Ranked]] = {"rerank": _rerank, "enrich": _enrich}
"""Section of the options → how it ranks. To add one: its section, and a row."""


def chosen(options: Options) -> dict[str, dict[str, Any]]:
    """The rules that are asked for, with their settings, as metrics.json has them."""
    settings = {name: getattr(options.eval, name).model_dump() for name in RULES}
    return {
        name: {key: value for key, value in given.items() if key != "enable"}
        for name, given in settings.items()
        if given["enable"]
    }


def least_score(options: Options, face: Compared) -> float:
    """The least score of two faces by which a query is enrolled.

    Raises:
        InputError: it is neither given nor known from held-out people.
    """
    settings = options.eval.enrich
    if settings.score is not None:
        return settings.score
    case = face.calibration.get("face-face")
    known = None if case is None else case.threshold(settings.far)
    if known is None:
        some = case is not None and case.lowest_far <= 1
        lowest = f"it has them down to {case.lowest_far:.2g}" if case and some else "it has none"
        raise InputError(
            f"eval.enrich.far {settings.far:g}: needs a threshold of face scores from held-out "
            f"people, {lowest}. Give the least score of two faces, 0.6 for example: --set "
            "eval.enrich.score=0.6, or turn it off",
            command="eval --set eval.enrich.enable=false",
        )
    return known


def require_faces(options: Options, streams: Sequence[str]) -> None:
    """Raise InputError where a gallery is to be enriched by faces that no stream sees."""
    if options.eval.enrich.enable and "face" not in streams:
        raise InputError(
            f"eval.enrich.enable needs a stream face, there is {', '.join(streams)}. Turn it off",
            command="eval --set eval.enrich.enable=false",
        )


def add_transductive(
    report: Mapping[str, Any],
    options: Options,
    measures: Mapping[str, Compared],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> None:
    """Add `transductive` to each stream of each protocol of metrics.json: rule → its numbers.

    Neighbours are those of the protocol: it says who is there at all. What can't be ranked so is
    left out, and a line says so.
    """
    for name in report["transductive"]:
        for protocol in (PROTOCOLS[each] for each in report["protocols"]):
            if protocol.draws > 1:
                log(f"eval: {name} needs a gallery that isn't drawn; {protocol.name} has none")
                continue
            queries, others = query[protocol.query_mask(query)], gallery
            others = others[protocol.gallery_mask(others)].reset_index(drop=True)
            for stream, numbers in report["protocols"][protocol.name]["streams"].items():
                if stream == FACE_HR:
                    log(f"eval: {name} needs one network for all images; {stream} has two")
                    continue
                seen = queries[measures[stream].query_mask(queries)].reset_index(drop=True)
                distances, about = RULES[name](Search(options, measures, stream, seen, others))
                ranking = rank_gallery(seen, others, distances, protocol)
                each = ranking_numbers(ranking, seen, options.eval.ranks) | about
                numbers.setdefault("transductive", {})[name] = each


def show_transductive(report: Mapping[str, Any]) -> None:
    """Print a row for each protocol, stream and rule; nothing where none is asked for."""
    rows = results.transductive_rows(report["protocols"])
    if rows:
        title = "transductive: what a query finds depends on the other queries (%)"
        table(title, results.TRANSDUCTIVE_COLUMNS, rows)
