"""Gallery enrichment by faces: a query stands for the gallery image whose face it matches.

After GEFF (Arkushin et al., WACV 2024), which adds queries to the gallery by the face that they
match, so that another query in the same clothes meets clothes that it knows. Here the gallery keeps
its images: an enrolled query lends its distances to the image that it matched. The first image has
then the identity that GEFF's would have, and mAP is over the same positives as without.
"""

from __future__ import annotations

import numpy as np

from deskpro.stages.metrics.ranking import Distances, queries_at_once, slices


def enrolled(faces: Distances, queries: int, gallery: int, furthest: float) -> np.ndarray:
    """Which query matches the face of which gallery image: int64 [E, 2], query and image.

    A query matches the nearest, and all that are equally near, where that is within `furthest`. No
    label is read.

    Args:
        faces: distances of faces, float [rows, gallery]; inf where one of two has none.
        queries, gallery: how many there are.
        furthest: the largest distance of a match.
    """
    pairs = [np.empty((0, 2), np.int64)]
    for part in slices(queries, queries_at_once(gallery)):
        rows = faces(part)
        nearest = rows.min(axis=1, keepdims=True)
        found = np.argwhere((rows == nearest) & (nearest <= furthest) & np.isfinite(nearest))
        pairs.append(found + np.array([part.start, 0]))
    return np.concatenate(pairs)


def enriched(distances: Distances, among: Distances, pairs: np.ndarray) -> Distances:
    """Distances to gallery images, each as near as the nearest query that is enrolled under it.

    Args:
        distances: of some queries to the gallery, float [rows, G].
        among: of some queries to all queries, float [rows, Q].
        pairs: as `enrolled` gives them. No query is enrolled for itself.
    """
    queries, images = pairs.T

    def new(rows: slice) -> np.ndarray:
        found, theirs = np.array(distances(rows)), np.array(among(rows))
        np.fill_diagonal(theirs[:, rows.start :], np.inf)
        size = max(1, found.shape[1])  # of equal faces there may be as many pairs as of images
        for some in slices(len(pairs), size):
            np.minimum.at(found.T, images[some], theirs[:, queries[some]].T)
        return found

    return new
