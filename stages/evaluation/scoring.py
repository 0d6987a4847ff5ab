"""From measures of distances to the files of an evaluation, whichever network they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, table
from deskpro.stages.data.layouts import dataset_name, layout_of
from deskpro.stages.evaluation.gaps import gap_numbers, show_gaps, times_unknown
from deskpro.stages.evaluation.image_digests import LABELS, contents_digest, labels_digest
from deskpro.stages.evaluation.measures import Compared
from deskpro.stages.evaluation.mistakes import mistakes_of, show_mistakes
from deskpro.stages.evaluation.pairs import pairs_of, show_pairs
from deskpro.stages.evaluation.rankings import rank_all, with_streams
from deskpro.stages.evaluation.scores import protocol_numbers, write_scores
from deskpro.stages.evaluation.transductive import (
    add_transductive,
    chosen,
    least_score,
    show_transductive,
)
from deskpro.stages.metrics.protocols import PROTOCOLS, Protocol
from deskpro.stages.metrics.ranking import has_positive
from deskpro.stages.reporting import cells, results


def score(
    about: Mapping[str, Any],
    options: Options,
    measures: Mapping[str, Compared],
    protocols: Sequence[Protocol],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
    faces: Sequence[str],
    metrics: Path,
) -> dict[str, Any]:
    """Rank the gallery for every query, by each protocol and stream; write and print the results.

    Args:
        about: what metrics.json holds beside the scores.
        query, gallery: tables with what the measures read.
        faces: columns of the face images that the network sees, none or one.

    Returns:
        What metrics.json holds.
    """
    if options.eval.enrich.enable and "face" in measures:
        least_score(options, measures["face"])  # refused before it takes long
    scores, settings = rank_all(options, measures, protocols, query, gallery), options.eval
    report = {
        **about,
        "transductive": chosen(options),
        "protocols": {
            name: protocol_numbers(
                PROTOCOLS[name], of_stream, query, gallery, faces, settings.ranks
            )
            for name, of_stream in scores.items()
        },
    }
    shared = layout_of(options.test_root, options.test_set).shared_clothes
    untimed = times_unknown(query, gallery)
    for name, of_stream in scores.items():
        for stream, ranking in of_stream.items():
            compared, rule = measures[stream], PROTOCOLS[name]
            seen = query[compared.query_mask(query)].reset_index(drop=True)
            numbers = report["protocols"][name]["streams"][stream]
            numbers["verification"] = pairs_of(compared, seen, gallery, rule)
            numbers["mistakes"] = mistakes_of(ranking, compared, seen, gallery, rule, shared)
            if untimed:
                numbers["gaps"] = {"refused": untimed}
            elif untimed is None:
                numbers["gaps"] = gap_numbers(seen, gallery, compared.measure, rule)
    add_transductive(report, options, measures, query, gallery)
    first = next(iter(scores.values()))
    stream = results.widest(first)
    lists = with_streams(first[stream].lists, stream, measures, query, gallery)
    first[stream] = replace(first[stream], lists=lists)
    write_scores(report, scores, query, gallery, faces, metrics)
    _show(report, options)
    show_transductive(report)
    show_pairs(report)
    show_mistakes(report)
    show_gaps(report)
    return report


def about_data(
    options: Options, images: pd.DataFrame, contents: Mapping[str, np.ndarray], faces: Sequence[str]
) -> dict[str, Any]:
    """What metrics.json says of the images.

    Args:
        images: query and gallery by their names.
        contents: kind of image → SHA-256 of each file, uint8 [N, 32].
        faces: columns of the face images that the network sees, none or one.
    """
    of_contents = {kind: contents_digest(found) for kind, found in contents.items()}
    return {
        "root": str(options.test_root),
        "dataset": dataset_name(options.test_root, options.test_set),
        "digests": {LABELS: labels_digest(images)} | of_contents,
        "unit": options.eval.unit,
        **count_images(images, faces),
    }


def count_images(images: pd.DataFrame, faces: Sequence[str]) -> dict[str, Any]:
    """How many images, or tracklets, there are. The arguments are those of `about_data`."""
    query, gallery = split(images)
    return {
        "queries": len(query),
        "gallery": len(gallery),
        "identities": int(query["pid"].nunique()),
        "without face": {
            name: int(part[face].isna().sum())
            for name, part in (("query", query), ("gallery", gallery))
            for face in faces
        },
    }


def split(images: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Query and gallery, each with rows counted from 0."""
    query, gallery = (
        images[images["split"] == name].reset_index(drop=True) for name in ("query", "gallery")
    )
    return query, gallery


def choose_protocols(
    options: Options, query: pd.DataFrame, gallery: pd.DataFrame
) -> list[Protocol]:
    """Those that are asked for; of the dataset's own, those that can be computed.

    Raises:
        InputError: one that is asked for can't be computed, or none can.
    """
    layout = layout_of(options.test_root, options.test_set)
    names = options.eval.protocols or layout.protocols
    chosen, refused = [], []
    for protocol in (PROTOCOLS[name] for name in names):
        why = _impossible(protocol, query, gallery)
        if why is None:
            chosen.append(protocol)
        else:
            refused.append(why)
    if refused and (options.eval.protocols or not chosen):
        possible = [p.name for p in PROTOCOLS.values() if not _impossible(p, query, gallery)]
        advice = "No protocol can be computed: check the data (deskpro check-data)"
        if possible:
            advice = (
                "Check the data (deskpro check-data), or choose of the protocols that can be "
                f"computed ({', '.join(possible)}): --set eval.protocols=[{possible[0]}]"
            )
        raise InputError(f"{options.test_root}: {'; '.join(refused)}. {advice}")
    for why in refused:
        log(f"eval: {why}; it is left out")
    return chosen


def _impossible(protocol: Protocol, query: pd.DataFrame, gallery: pd.DataFrame) -> str | None:
    """Why a protocol can't be computed; None where it can."""
    missing = protocol.missing_labels(query) + protocol.missing_labels(gallery)
    if missing:
        return (
            f"protocol {protocol.name} needs the {' and '.join(protocol.needs)} of every image; "
            f"{len(missing)} of {len(query) + len(gallery)} have none, {missing[0]} for one"
        )
    if not has_positive(query, gallery, protocol):
        return f"no query has a positive in the gallery under the rule '{protocol.rule}'"
    return None


def _show(report: dict[str, Any], options: Options) -> None:
    """Print a row for each stream; protocols with the same results stand one below the other."""
    ranks = options.eval.ranks
    rows = []
    for names, protocol in results.merged(report["protocols"]).items():
        lines = []
        for stream, numbers in protocol["streams"].items():
            mean = cells.within(numbers["mAP"], *numbers["interval"]["mAP"])
            if "sd" in numbers:
                mean += f" ± {100 * numbers['sd']['mAP']:.1f}"
            lines.append([stream, mean, *(f"{100 * numbers[f'rank{r}']:.1f}" for r in ranks)])
        for name, line in zip_longest(names.split(" "), lines, fillvalue=""):
            rows.append([name, *(line or [""] * (2 + len(ranks)))])
    data = report["data"]
    title = (
        f"{report['network']['kind']}: {data['queries']} queries of {data['identities']} "
        f"identities, {data['gallery']} gallery images (%; 95 % interval over identities)"
    )
    table(title, ["protocol", "stream", "mAP", *(f"R{r}" for r in ranks)], rows)
