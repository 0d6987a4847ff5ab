"""Evaluate a student (or a teacher): describe query and gallery once, score by every protocol."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deskpro.cache.files import sha256
from deskpro.stages.base import device as devices
from deskpro.stages.base import ranks
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.names import Name
from deskpro.stages.base.options import Options
from deskpro.stages.base.progress import log, table
from deskpro.stages.data.check import check_data
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.evaluation.feature_store import FeatureStore, store_features
from deskpro.stages.evaluation.features import FeatureExtractor, open_extractor
from deskpro.stages.evaluation.scores import protocol_numbers, write_scores
from deskpro.stages.metrics.protocols import PROTOCOLS, Protocol
from deskpro.stages.metrics.ranking import Distances, Ranking, has_positive, rank_gallery
from deskpro.stages.metrics.reranking import reranked

NEAREST = 10
"""Gallery images listed for each query."""


@dataclass(frozen=True)
class Inputs:
    """network: weights; file_index: known images; kind: student, or
    teacher, which is then shown the HR faces, or None for whichever the file holds."""

    network: Path
    file_index: Path
    kind: str | None


@dataclass(frozen=True)
class Outputs:
    """metrics: JSON; the others lie beside it: the same as CSV, a row per protocol, stream and
    query, the nearest images of each query, identities and cameras apart, and the curve."""

    metrics: Path
    features: Path


def run(options: Options, inputs: Inputs, outputs: Outputs) -> dict[str, object]:
    """Rank the gallery for every query, by each protocol and stream; the facts for the summary.

    Started by torchrun, the processes share the images; the first one ranks.
    """
    device = devices.pick(options.device)
    data = options.data
    extractor = open_extractor(inputs.network, inputs.kind, data.face_size, data.body_size, device)
    with ranks.join() as team:
        with team.rank_zero_first():
            checked = check_data(
                options.test_root,
                options.data_test or options.data_train,
                splits=("query", "gallery"),
                test_needs=extractor.needs,
                training=False,
            ).require()
        query, gallery = checked.split("query"), checked.split("gallery")
        protocols = _protocols(options, query, gallery)
        images = pd.concat([query, gallery], ignore_index=True)
        made = store_features(
            outputs.features,
            extractor,
            inputs.network,
            images,
            options,
            inputs.file_index,
            device,
            team,
        )
    if team.rank:
        return {}
    stored = FeatureStore(outputs.features, device, options.cache.memory * 1e9)
    scores = _score(options, extractor, stored, protocols, query, gallery)
    faces = [kind for stream, kind in extractor.kinds.items() if stream == "face"]
    without_face = {
        name: int(part[face].isna().sum())
        for name, part in (("query", query), ("gallery", gallery))
        for face in faces
    }
    report: dict[str, Any] = {
        "network": {
            "file": inputs.network.name,
            "sha256": sha256(inputs.network),
            "kind": extractor.info.kind,
        },
        "data": {
            "root": str(options.test_root),
            "dataset": options.data_test or options.data_train,
            "queries": len(query),
            "gallery": len(gallery),
            "identities": int(query["pid"].nunique()),
            "digests": _digests(images, stored),
            "without face": without_face,
        },
        "flip": options.eval.flip,
        "face_weight": options.eval.face_weight,
        "rerank": options.eval.rerank.model_dump(exclude={"enable"})
        if options.eval.rerank.enable
        else None,
        "protocols": {
            name: protocol_numbers(
                PROTOCOLS[name], of_stream, query, gallery, faces, options.eval.ranks
            )
            for name, of_stream in scores.items()
        },
    }
    write_scores(report, scores, query, gallery, faces, outputs.metrics)
    _show(report, options)
    return {
        "rules": "; ".join(PROTOCOLS[name].rule for name in scores),
        "features": f"{made}: {outputs.features}",
        "without face": "  ".join(f"{k} {v}" for k, v in without_face.items()) or "no face stream",
        "skipped": "  ".join(
            f"{name} {part['skipped']} queries" for name, part in report["protocols"].items()
        ),
        "metrics": f"{outputs.metrics}; metrics, queries, breakdown, ranked.csv; cmc.png",
    }


def _protocols(options: Options, query: pd.DataFrame, gallery: pd.DataFrame) -> list[Protocol]:
    """Those that are asked for; of the dataset's own, those that can be computed."""
    names = options.eval.protocols or LAYOUTS[options.data_test or options.data_train].protocols
    chosen, refused = [], []
    for protocol in (PROTOCOLS[name] for name in names):
        why = _impossible(options, protocol, query, gallery)
        if why is None:
            chosen.append(protocol)
        else:
            refused.append(why)
    if refused and (options.eval.protocols or not chosen):
        raise InputError(
            f"{options.test_root}: {'; '.join(refused)}. Check the data (deskpro check-data), or "
            "choose other protocols: --set eval.protocols=[market]"
        )
    for why in refused:
        log(f"eval: {why}; it is left out")
    return chosen


def _impossible(
    options: Options, protocol: Protocol, query: pd.DataFrame, gallery: pd.DataFrame
) -> str | None:
    """Why a protocol can't be computed; None where it can."""
    missing = protocol.missing_labels(query) + protocol.missing_labels(gallery)
    if missing:
        return (
            f"protocol {protocol.name} needs the {' and '.join(protocol.needs)} of every image; "
            f"{len(missing)} of {len(query) + len(gallery)} have none, {missing[0]} for one"
        )
    if not has_positive(query, gallery, protocol):
        return f"no query has a positive in the gallery under the rule '{protocol.rule}'"
    if options.eval.rerank.enable and protocol.draws > 1:
        return f"protocol {protocol.name} draws its gallery, and eval.rerank needs a fixed one"
    return None


def _score(
    options: Options,
    extractor: FeatureExtractor,
    stored: FeatureStore,
    protocols: list[Protocol],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> dict[str, dict[str, Ranking]]:
    """Protocol → stream → ranking; nearest images of the first protocol and widest stream."""
    streams = _weights(extractor, stored.heads, options.eval.face_weight)
    everything = range(len(query) + len(gallery))
    scores: dict[str, dict[str, Ranking]] = {protocol.name: {} for protocol in protocols}
    for stream, weights in streams.items():
        for protocol in protocols:
            listed = protocol is protocols[0] and stream == [*streams][-1]
            asked, shown = query, gallery
            if options.eval.rerank.enable:
                # Neighbours are those of the protocol: it says who is there at all.
                mine, theirs = protocol.query_mask(query), protocol.gallery_mask(gallery)
                asked, shown = query[mine], gallery[theirs]
                picked = np.flatnonzero(np.concatenate([mine, theirs]))
                distances = _reranked(options, stored, picked, len(asked), weights)
            else:
                others = everything[len(query) :]
                distances = stored.distances(everything[: len(query)], others, weights)
            scores[protocol.name][stream] = rank_gallery(
                asked, shown, distances, protocol, nearest=NEAREST * listed
            )
    return scores


def _reranked(
    options: Options,
    stored: FeatureStore,
    picked: np.ndarray,
    queries: int,
    weights: torch.Tensor,
) -> Distances:
    """Re-ranked distances among the picked rows of the store, of which the first are queries."""
    settings = options.eval.rerank
    everything = range(stored.reader.schema.samples)
    every = stored.distances(everything, everything, weights)
    return reranked(
        lambda rows: every(picked[rows])[:, picked],
        queries,
        len(picked) - queries,
        known=stored.seen(everything, weights)[picked],
        k1=settings.k1,
        k2=settings.k2,
        weight=settings.weight,
    )


def _digests(images: pd.DataFrame, stored: FeatureStore) -> dict[str, str]:
    """What tells these images from others: SHA-256 of who they are said to show, and of the
    contents of each kind that the network sees."""
    labels = images[["sample_id", *Name._fields]].to_csv(index=False)
    found = {"labels": hashlib.sha256(labels.encode()).hexdigest()}
    for kind, contents in stored.contents().items():
        found[kind] = hashlib.sha256(contents.tobytes()).hexdigest()
    return found


def _weights(extractor: FeatureExtractor, heads: int, face: float) -> dict[str, torch.Tensor]:
    """Stream → the weight of each head, float32 [H], whose sum is 1; `all` weighs the streams."""
    streams = {}
    for stream, part in extractor.heads.items():
        streams[stream] = torch.zeros(heads)
        streams[stream][part] = 1.0
        streams[stream] /= streams[stream].sum()
    if len(streams) > 1:
        streams["all"] = face * streams["face"] + (1 - face) * streams["body"]
    return streams


def _show(report: dict[str, Any], options: Options) -> None:
    columns = ["mAP", "mINP", *(f"rank{r}" for r in options.eval.ranks)]
    lines = []
    for name, protocol in report["protocols"].items():
        for stream, numbers in protocol["streams"].items():
            low, high = (100 * end for end in numbers["interval"]["mAP"])
            cells = [f"{100 * numbers[column]:.1f}" for column in columns]
            cells[0] += f" ({low:.1f}–{high:.1f})"
            if "sd" in numbers:
                cells[0] += f" ± {100 * numbers['sd']['mAP']:.1f}"
            lines.append([name, stream, *cells])
    data = report["data"]
    title = f"{report['network']['kind']}: {data['queries']} queries, {data['gallery']} gallery "
    table(title + "images (%; 95 % interval)", ["protocol", "stream", *columns], lines)
