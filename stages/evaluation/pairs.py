"""What the pairs of query and gallery say: who is accepted at a threshold, and what scores mean.

Pairs are those that a protocol compares: all images of a query that counts with the gallery, but
for those of its person that the rule removes. Drawn galleries count whole. An image of which a
stream sees nothing is in no pair; the ranking has it, at a cosine of 0. Scores are as
`Encoder.similarity` gives them; each face case is counted apart, and `all` is all of them.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from deskpro.stages.base.calibrated import Case
from deskpro.stages.base.progress import table
from deskpro.stages.evaluation.measures import Compared
from deskpro.stages.metrics import verification
from deskpro.stages.metrics.calibration import CASES, log_ratios
from deskpro.stages.metrics.fusion import Block
from deskpro.stages.metrics.intervals import (
    combined,
    interval,
    pair_interval,
    percentiles,
    resampled_means,
)
from deskpro.stages.metrics.protocols import Protocol
from deskpro.stages.metrics.ranking import Task, queries_at_once, slices, tasks_of
from deskpro.stages.metrics.verification import Counter, Evidence, Probes, Roc
from deskpro.stages.reporting import results

_IN_REPORT_ALONE = ("protocol", "of one", "of two")
"""Columns for which a terminal has no place."""


class Pairs(NamedTuple):
    """Query and gallery as a stream and a protocol compare them.

    scores: of some queries with the gallery, float32 [rows, G], larger is more alike; query_face,
    gallery_face: which images of each count as having a face, bool [Q] and [G].
    """

    query: pd.DataFrame
    gallery: pd.DataFrame
    scores: Block
    query_face: np.ndarray
    gallery_face: np.ndarray
    protocol: Protocol


def pairs_of(
    compared: Compared, query: pd.DataFrame, gallery: pd.DataFrame, protocol: Protocol
) -> dict[str, Any]:
    """`verification` of a stream and a protocol in metrics.json.

    query: the images that the stream sees.
    """
    mine = query[protocol.query_mask(query)].reset_index(drop=True)
    kept = protocol.gallery_mask(gallery) & compared.gallery_mask(gallery)
    others = gallery[kept].reset_index(drop=True)
    distances, highest = compared.measure(mine, others), np.float32(compared.highest)
    query_face, gallery_face = map(_faces, (mine, others), compared.faces or (None, None))
    pairs = Pairs(
        mine, others, lambda rows: highest - distances(rows), query_face, gallery_face, protocol
    )
    return pair_numbers(pairs, compared.calibration)


def show_pairs(report: Mapping[str, Any]) -> None:
    """Print a row for each face case of the widest streams that says something."""
    rows = results.pair_rows(report["protocols"], intervals=False)
    for names, group in itertools.groupby(rows, lambda row: row[0]):
        title = f"pairs of images, {names} (%; – where there are too few)"
        shown = [dict(zip(results.PAIR_COLUMNS, row, strict=True)) for row in group]
        columns = [name for name in results.PAIR_COLUMNS if name not in _IN_REPORT_ALONE]
        table(title, columns, [[row[name] for name in columns] for row in shown])


def _faces(table: pd.DataFrame, column: str | None) -> np.ndarray:
    """Which images count as having a face: none where a stream sees no faces."""
    return np.zeros(len(table), bool) if column is None else table[column].notna().to_numpy()


def pair_numbers(pairs: Pairs, calibration: Mapping[str, Case]) -> dict[str, Any]:
    """Face case, and `all` where there are several, → its numbers; empty without a positive."""
    tasks = tasks_of(pairs.query, pairs.gallery, pairs.protocol)
    if not tasks:
        return {}
    rows = np.array(sorted(tasks))
    parts = [rows[part] for part in slices(len(rows), queries_at_once(len(pairs.gallery)))]
    # Several blocks are computed twice: they may be more than memory holds.
    whole = [pairs.scores(rows)] if len(parts) == 1 else []
    genuine = pd.concat(
        [
            _genuine(pairs, scores[i], tasks[row])
            for part, scores in zip(parts, whole or map(pairs.scores, parts), strict=True)
            for i, row in enumerate(part.tolist())
        ],
        ignore_index=True,
    )
    people = np.unique(pd.concat([pairs.query["pid"], pairs.gallery["pid"]]))
    query_pid, gallery_pid = (
        np.searchsorted(people, part["pid"]) for part in (pairs.query, pairs.gallery)
    )
    cases = [_FaceCase(place, genuine, calibration, pairs, people) for place in range(len(CASES))]
    for part, block in zip(parts, whole or map(pairs.scores, parts), strict=True):
        scores = np.array(block)
        for i, row in enumerate(part.tolist()):
            scores[i, tasks[row].positive] = scores[i, tasks[row].junk] = -np.inf
        for place, row, column in _quarters(pairs, part):
            quarter = scores[np.ix_(row, column)]
            cases[place].add(quarter, part[row], query_pid[part[row]], gallery_pid[column])
    cases = [case for case in cases if len(case.genuine) or case.counted.total]
    tables = {case.name: _numbers(case) for case in cases}
    return {"all": _numbers(_together(cases, genuine))} | tables if len(tables) > 1 else tables


def _genuine(pairs: Pairs, scores: np.ndarray, task: Task) -> pd.DataFrame:
    """The pairs of a query with its person: score, place in `CASES`, query, pid, and whether they
    wear the same clothes, 1 or 0, or −1 where it isn't known."""
    worn = pairs.query["clothes"].iloc[task.query]
    others = pairs.gallery["clothes"].iloc[task.positive]
    unknown = others.isna() | pd.isna(worn)
    same = np.where(unknown, -1, (others == worn).astype(int))
    case = 2 - pairs.gallery_face[task.positive].astype(int) - int(pairs.query_face[task.query])
    pid = pairs.query["pid"].iloc[task.query]
    score = scores[task.positive]
    return pd.DataFrame(
        {"score": score, "case": case, "query": task.query, "pid": pid, "same": same}
    )


def _quarters(pairs: Pairs, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Queries and gallery with and without a face: place in `CASES`, positions among the rows, and
    in the gallery."""
    for query, gallery in itertools.product((True, False), repeat=2):
        row = np.flatnonzero(pairs.query_face[rows] == query)
        column = np.flatnonzero(pairs.gallery_face == gallery)
        if len(row) and len(column):
            yield 2 - query - gallery, row, column


class _FaceCase:
    """A face case: its pairs of one person, and those of two, of which only numbers are kept."""

    def __init__(
        self,
        place: int,
        genuine: pd.DataFrame,
        calibration: Mapping[str, Case],
        pairs: Pairs,
        people: np.ndarray,
    ) -> None:
        self.name, self.place = CASES[place], place
        self.genuine = genuine[genuine["case"] == place]
        self.calibration = calibration
        self.calibrated = calibration.get(self.name)
        known = self.calibrated is not None and self.calibrated.slope is not None
        self.uncalibrated = [] if known else [self.name]
        """Face cases whose scores have no known meaning."""
        # At the scores of all cases, so that they can be added up.
        self.counted, self.evidence = Counter(genuine["score"].to_numpy()), Evidence()
        self.best = np.full(len(pairs.query), -np.inf, np.float32)
        """Of each query, the highest score with anybody else, and how many images have it."""
        self.images = np.zeros(len(pairs.query), np.int64)
        self.limits = dict[float, float]()
        for far in verification.FARS:
            limit = None if self.calibrated is None else self.calibrated.threshold(far)
            if limit is not None:
                self.limits[far] = limit
        self.accepted = {far: np.zeros((2, len(people)), np.int64) for far in self.limits}
        self.pairs = np.zeros((2, len(people)), np.int64)
        """Pairs of each person, as query and in the gallery; of these `accepted`, by FAR."""
        self._weigh(self.genuine["score"].to_numpy(), True)

    def add(
        self,
        scores: np.ndarray,
        queries: np.ndarray,
        query_pid: np.ndarray,
        gallery_pid: np.ndarray,
    ) -> None:
        """Count a block, where −inf is no pair; of each side, whose images they are, as numbers."""
        there = scores > -np.inf
        values = scores[there]
        self.counted.add(values)
        self._weigh(values, False)
        best = self.best[queries] = scores.max(1)
        self.images[queries] = ((scores == best[:, None]) & there).sum(1)
        _by_person(self.pairs, there, query_pid, gallery_pid)
        for far, limit in self.limits.items():
            _by_person(self.accepted[far], scores >= np.float32(limit), query_pid, gallery_pid)

    def _weigh(self, scores: np.ndarray, same: bool) -> None:
        if not self.uncalibrated:
            self.evidence.add(log_ratios(self.calibration, scores, self.place), same)

    def probes(self) -> Probes:
        """Searches by the queries with a pair of one person, in their order."""
        queries, place = np.unique(self.genuine["query"].to_numpy(), return_inverse=True)
        scores = self.genuine["score"].to_numpy()
        mate = np.full(len(queries), -np.inf, np.float32)
        np.maximum.at(mate, place, scores)
        mates = np.bincount(place, scores == mate[place], len(queries))
        other = self.best[queries]
        right = verification.first_is_right(mate, other, mates, self.images[queries])
        return Probes(mate, other, right)


def _by_person(
    totals: np.ndarray, which: np.ndarray, query_pid: np.ndarray, gallery_pid: np.ndarray
) -> None:
    """Add a block's pairs to those of each person in both roles, [2, people]."""
    people = totals.shape[1]
    totals[0] += np.bincount(query_pid, which.sum(1), people).astype(np.int64)
    totals[1] += np.bincount(gallery_pid, which.sum(0), people).astype(np.int64)


def _together(cases: Sequence[_FaceCase], genuine: pd.DataFrame) -> _FaceCase:
    """All pairs as one case; made of the first, which has its own numbers by now."""
    whole = copy.copy(cases[0])
    whole.name, whole.genuine, whole.calibrated, whole.limits = "all", genuine, None, {}
    whole.counted, whole.evidence = Counter(genuine["score"].to_numpy()), Evidence()
    whole.best = np.max([case.best for case in cases], axis=0)
    equal = [case.images * (case.best == whole.best) for case in cases]
    whole.images = np.sum(equal, axis=0)
    for case in cases:
        whole.counted += case.counted
        whole.evidence += case.evidence
    whole.uncalibrated = [name for case in cases for name in case.uncalibrated]
    return whole


def _numbers(case: _FaceCase) -> dict[str, Any]:
    """What metrics.json holds of a face case; shares in 0..1."""
    genuine, total = case.genuine, case.counted.total
    roc = Roc.counted(genuine["score"].to_numpy(), case.counted)
    found = {
        "genuine": len(genuine),
        "impostors": total,
        "identities": int(genuine["pid"].nunique()),
        "EER": roc.eer(),
        "ROC": _curve(roc, genuine),
        "TAR": {f"{far:g}": _accepted(roc, genuine, far) for far in verification.FARS},
        "DIR": {f"{far:g}": _identified(case, far) for far in verification.PROBE_FARS},
        "calibration": _calibration(case),
    }
    if case.name != "all":
        found["held_out"] = {f"{far:g}": _held_out(case, far) for far in verification.FARS}
    worn = {"same": genuine[genuine["same"] == 1], "changed": genuine[genuine["same"] == 0]}
    found["clothes"] = {
        name: _of_clothes(part, roc, case.counted) for name, part in worn.items() if len(part)
    }
    return found


def _accepted(roc: Roc, genuine: pd.DataFrame, far: float) -> dict[str, Any]:
    """Pairs of one person that are accepted at a rate, with the interval at the first rate."""
    rate = roc.at(far)
    why = verification.refusal(far, roc.impostors)
    if rate is None or why:
        return {"refused": why or "no pairs of one person"}
    found: dict[str, Any] = {"threshold": rate.threshold, "FAR": rate.far, "rate": rate.tar}
    if far == verification.FARS[0]:
        found["interval"] = _share_interval(genuine, rate.threshold)
    return found


def _curve(roc: Roc, genuine: pd.DataFrame) -> dict[str, list[float]]:
    """TAR at each rate that the pairs support, with the 95 % interval over identities."""
    # 1, 10^(−1/4), 10^(−2/4) …: points of a curve on a logarithmic axis.
    steps = itertools.takewhile(
        lambda far: verification.refusal(far, roc.impostors) is None,
        (10 ** (-step / 4) for step in itertools.count()),
    )
    rates = {far: rate for far in steps if (rate := roc.at(far)) is not None}
    if not rates:
        return {"FAR": [], "TAR": [], "low": [], "high": []}
    accepted = np.stack([_accepts(rate.threshold, genuine) for rate in rates.values()], axis=1)
    low, high = percentiles(resampled_means(accepted, genuine["pid"].to_numpy()))
    tars = [rate.tar for rate in rates.values()]
    return {"FAR": [*rates], "TAR": tars, "low": low.tolist(), "high": high.tolist()}


def _accepts(threshold: float | None, genuine: pd.DataFrame) -> np.ndarray:
    """Which pairs a threshold accepts, float [n]: 1 or 0; None accepts nothing."""
    limit = np.float32(np.inf if threshold is None else threshold)
    return (genuine["score"].to_numpy() >= limit).astype(float)


def _share_interval(genuine: pd.DataFrame, threshold: float | None) -> list[float]:
    return interval(_accepts(threshold, genuine), genuine["pid"].to_numpy())


def _identified(case: _FaceCase, far: float) -> dict[str, Any]:
    """Queries whose first image is of their person and is accepted."""
    probes = case.probes()
    why = verification.refusal(far, len(probes.mate), "searches")
    result = probes.at(far)
    if why or result is None:
        return {"refused": why or "no searches"}
    rate, parts = result
    people = case.genuine.drop_duplicates("query").sort_values("query")["pid"].to_numpy()
    return {
        "threshold": rate.threshold,
        "FAR": rate.far,
        "rate": rate.tar,
        "interval": interval(parts, people),
    }


def _held_out(case: _FaceCase, far: float) -> dict[str, Any]:
    """Both rates at the threshold that held-out people gave."""
    if case.calibrated is None:
        return {"refused": "the network has no calibration of these scores"}
    limit, known = case.limits.get(far), case.calibrated.impostors
    why = verification.refusal(far, known, "pairs of two held-out people") or (
        verification.refusal(far, case.counted.total)
    )
    if why or limit is None or not len(case.genuine):
        return {"refused": why or "no pairs of one person"}
    accepted = case.accepted[far]
    share = float(accepted[0].sum() / case.counted.total)
    spread, stated = pair_interval(accepted, case.pairs), case.calibrated.interval(far)
    return {
        "threshold": limit,
        "FAR": share,
        "far_interval": combined(share, spread, *([stated] if stated else [])),
        "rate": float(_accepts(limit, case.genuine).mean()),
        "interval": _share_interval(case.genuine, limit),
    }


def _calibration(case: _FaceCase) -> dict[str, Any]:
    if case.uncalibrated:
        why = "" if case.calibrated is None else f": {case.calibrated.reason}"
        return {"refused": f"no calibration of {' and '.join(case.uncalibrated)}{why}"}
    if not case.evidence.complete:
        return {"refused": "pairs of one person and of two are needed"}
    return {
        "Cllr": case.evidence.cllr(),
        "ECE": case.evidence.error(),
        "bins": case.evidence.bins().tolist(),
    }


def _of_clothes(genuine: pd.DataFrame, whole: Roc, impostors: Counter) -> dict[str, Any]:
    """Pairs of one person in the same, or in changed, clothes, against all pairs of two people: so
    the thresholds are those of all, the curve `whole`."""
    rates = {
        f"{far:g}": float(_accepts(rate.threshold, genuine).mean())
        for far in verification.FARS
        if (rate := whole.at(far)) is not None and not verification.refusal(far, whole.impostors)
    }
    eer = Roc.counted(genuine["score"].to_numpy(), impostors).eer()
    return {"genuine": len(genuine), "EER": eer, "TAR": rates}
