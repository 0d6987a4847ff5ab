"""How the parts of a feature, and all together, measure the distance of two images.

The features are of any network, a row an image; a part whose row is 0 is not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial, reduce
from typing import Literal

import numpy as np
import pandas as pd
import torch

from deskpro.stages.base.errors import InputError
from deskpro.stages.base.foreign import some
from deskpro.stages.evaluation.measures import Compared, Measure
from deskpro.stages.metrics.fusion import Block

Metric = Literal["cosine", "euclidean"]


def choose_weights(names: list[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """How much each part counts in `all`: equally, where nothing is given.

    Raises:
        InputError: a part has no weight, one is none of the parts, or all are 0.
    """
    if given is None:
        return {name: 1 / len(names) for name in names}
    advice = f"Give a weight for each: --weights {','.join(f'{name}=1' for name in names)}"
    if unknown := [name for name in given if name not in names]:
        raise InputError(
            f"--weights: no part {some(unknown)}, there is {', '.join(names)}. {advice}"
        )
    if missing := [name for name in names if name not in given]:
        raise InputError(f"--weights: no weight for {some(missing)}. {advice}")
    if not any(given.values()):
        raise InputError(f"--weights: all are 0. {advice}")
    return {name: given[name] for name in names}


def measures_of_parts(
    features: Mapping[str, np.ndarray],
    weights: Mapping[str, float],
    metric: Metric,
    device: torch.device,
) -> dict[str, Compared]:
    """Part, and `all` where there are several → what it sees, and how it measures distances.

    Tables need `row`, the image's place among the features, and a column for each part, None where
    it is not there. `all` is the sum over the parts of the weight times 1 − cosine, which is 1
    where one of two images lacks the part; or times the Euclidean distance.

    Args:
        features: part → float64 [N, D].
    """
    highest = float(metric == "cosine")
    measures = {name: _measure(values, metric, device) for name, values in features.items()}
    faces = ("face", "face") if "face" in features else None
    found = {
        name: Compared([name], [name], measure, highest, faces if name == "face" else None)
        for name, measure in measures.items()
    }
    if len(found) > 1:
        used = [name for name, weight in weights.items() if weight]
        together = partial(_together, {name: measures[name] for name in used}, weights)
        highest *= sum(weights.values())
        found["all"] = Compared(used, used, together, highest, faces)
    return found


def unit_rows(values: np.ndarray) -> np.ndarray:
    """Rows of length 1, or 0; float64 [N, D]."""
    highest = np.abs(values).max(axis=1, keepdims=True)
    scaled = values / np.where(highest > 0, highest, 1)  # so that no square is beyond a float
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return scaled / np.where(lengths > 0, lengths, 1)


def _measure(values: np.ndarray, metric: Metric, device: torch.device) -> Measure:
    # Equal features once: their distances are equal, bit for bit, whatever a library rounds.
    rows = np.ascontiguousarray(values).view(np.dtype((np.void, values[0].nbytes))).reshape(-1)
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    distinct = values[first]
    # Without their mean Euclidean distances are as before, and rounding is less.
    distinct = unit_rows(distinct) if metric == "cosine" else distinct - distinct.mean(0)
    return partial(_distances, torch.from_numpy(distinct).to(device), place.reshape(-1), metric)


def _distances(
    features: torch.Tensor,
    place: np.ndarray,
    metric: Metric,
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> Block:
    query_rows = place[query["row"].to_numpy()]
    needed, shown = np.unique(place[gallery["row"].to_numpy()], return_inverse=True)
    theirs = features[torch.from_numpy(needed).to(features.device)]
    squares = (theirs * theirs).sum(1)

    def block(rows: slice | np.ndarray) -> np.ndarray:
        mine = features[torch.from_numpy(query_rows[rows]).to(features.device)]
        found = mine @ theirs.T
        if metric == "cosine":
            found = 1 - found
        else:
            found = ((mine * mine).sum(1)[:, None] + squares - 2 * found).clamp(min=0).sqrt()
        return found.float().cpu().numpy()[:, shown.reshape(-1)]

    return block


def _together(
    measures: Mapping[str, Measure],
    weights: Mapping[str, float],
    query: pd.DataFrame,
    gallery: pd.DataFrame,
) -> Block:
    blocks = {name: measure(query, gallery) for name, measure in measures.items()}

    def block(rows: slice | np.ndarray) -> np.ndarray:
        parts = (np.float32(weights[name]) * part(rows) for name, part in blocks.items())
        return reduce(np.add, parts)

    return block
