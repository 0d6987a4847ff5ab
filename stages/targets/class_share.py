"""How much of the teacher's targets a table by class explains.

A target's samples, each view for itself, are points x_i with a mean. A convex function φ says how
far they lie apart: by Jensen's inequality mean φ(x_i) − φ(mean) is at least 0, and it is the sum of
what lies between the classes' means and of what lies within classes.

| target | points | φ | how far apart |
| --- | --- | --- | --- |
| logits | p_i = softmax(logits), temperature 1 | Σ p ln p | mean KL(p_i ‖ p̄), nats |
| embedding | the embedding | Σ x² | variance |

With p̄_c the mean of class c the chain rule reads, for logits: mean KL(p_i ‖ p̄) =
mean KL(p̄_c(i) ‖ p̄) + mean KL(p_i ‖ p̄_c(i)). The share of the class is the first summand over the
sum: 1 where all views of a class have the same target, 0 where the classes' means are equal.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from deskpro.cache.reader import MappedReader
from deskpro.stages.data.loader import batched
from deskpro.stages.targets.kinds import OfHeads, tensors

_NUMBERS = 2**22
"""So many numbers of a target are in memory at a time, as float64."""


def class_share(target: OfHeads, reader: MappedReader, labels: np.ndarray) -> np.ndarray:
    """The share of the class, 0..1, by head: float64 [H]; NaN where all points are the same.

    Of every (sample, view) that can be read and whose sample has a label: int64 [N], −1 for none.
    A class is read after the other, so that memory doesn't grow with samples or classes.
    """
    heads, length = reader.schema.fields[target.name].shape
    between, within = torch.zeros(2, heads, dtype=torch.float64)
    count, total = 0, torch.zeros(heads, length, dtype=torch.float64)
    for rows in _classes(labels, reader.valid):
        members, of_class = 0, torch.zeros_like(total)
        for pairs in _pairs(reader, rows, max(1, _NUMBERS // total.numel())):
            points = target.points(tensors(reader.read(*pairs)))
            members, of_class = members + len(points), of_class + points.sum(0)
            within = within + target.convex(points).sum(0)
        if members:
            between = between + members * target.convex(of_class / members)
            count, total = count + members, total + of_class
    middle = target.convex(total / count)
    apart = within / count - middle
    share = ((between / count - middle) / apart).clamp(0, 1)
    # Rounding alone takes equal points apart; it grows with φ.
    some = apart > 1e-10 * middle.abs().clamp(min=1)
    found: np.ndarray = torch.where(some, share, torch.nan).numpy()
    return found


def _classes(labels: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
    """The samples of each class that have the target."""
    rows = np.flatnonzero((labels >= 0) & valid)
    rows = rows[np.argsort(labels[rows], kind="stable")]
    return np.split(rows, np.flatnonzero(np.diff(labels[rows])) + 1)


def _pairs(
    reader: MappedReader, rows: np.ndarray, most: int
) -> Iterator[tuple[list[int], list[int]]]:
    """The (samples, views) of these samples that can be read, up to `most` pairs at a time."""
    block, views = reader.schema.block, range(reader.schema.views)
    pairs = [(row, view) for row in rows.tolist() for view in views]
    there = [(row, view) for row, view in pairs if (row // block, view) in reader.records]
    for part in batched(there, most):
        yield [row for row, _ in part], [view for _, view in part]
