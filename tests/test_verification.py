"""Verification and open-set identification against brute force over all thresholds."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskpro.stages.metrics import verification
from deskpro.stages.metrics.intervals import pair_interval
from deskpro.stages.metrics.verification import Counter, Evidence, Probes, Roc, first_is_right

# A few values, so that many scores are equal.
SCORES = st.lists(st.integers(-4, 4).map(lambda n: n / 4), min_size=1, max_size=30)


def operating_points(genuine: np.ndarray, impostors: np.ndarray) -> list[tuple[float, ...]]:
    """(threshold, FAR, TAR) of every threshold that differs, from the lowest."""
    thresholds = [*np.unique(np.concatenate([genuine, impostors])), np.inf]
    return [(t, float((impostors >= t).mean()), float((genuine >= t).mean())) for t in thresholds]


def roc_of(genuine: np.ndarray, impostors: Iterable[np.ndarray]) -> Roc:
    """Of scores of pairs of one person, and of two in blocks."""
    counted = Counter(genuine)
    for block in impostors:
        counted.add(block)
    return Roc.counted(genuine, counted)


def crossing(genuine: np.ndarray, impostors: np.ndarray) -> float:
    """Where FAR = 1 − TAR on the straight lines between neighbouring operating points."""
    points = [(far, 1 - tar) for _, far, tar in operating_points(genuine, impostors)]
    for (far, miss), (far2, miss2) in zip([(1.0, 0.0), *points], points, strict=False):
        if far2 <= miss2:
            before, after = far - miss, far2 - miss2
            return far + before / (before - after) * (far2 - far)
    raise AssertionError("the last point accepts nothing")


@given(SCORES, SCORES, st.floats(0.001, 0.999), st.integers(1, 7))
def test_rates_are_those_of_the_best_threshold(
    genuine: list[float], impostors: list[float], far: float, block: int
) -> None:
    own, others = np.float32(genuine), np.float32(impostors)
    roc = roc_of(own, (others[i : i + block] for i in range(0, len(others), block)))
    points = operating_points(own, others)
    best = max(tar for _, found, tar in points if found <= far)
    rate = roc.at(far)
    assert rate is not None
    assert rate.tar == pytest.approx(best)
    assert rate.far <= far
    if rate.threshold is not None:
        assert rate.far == (others >= rate.threshold).mean()
        assert rate.tar == (own >= rate.threshold).mean()
    eer = roc.eer()
    assert eer == pytest.approx(crossing(own, others))
    corners = roc.curve()
    assert (np.diff(corners, axis=0) <= 0).all()
    for _, found, tar in points:  # every operating point lies on the curve
        lines = itertools.pairwise(corners)
        assert any(_between(np.array([found, tar]), first, second) for first, second in lines)


def _between(point: np.ndarray, first: np.ndarray, second: np.ndarray) -> bool:
    along, length = point - first, second - first
    area = along[0] * length[1] - along[1] * length[0]
    low, high = np.minimum(first, second) - 1e-9, np.maximum(first, second) + 1e-9
    return abs(area) < 1e-9 and bool(((point >= low) & (point <= high)).all())


@given(SCORES, SCORES)
def test_what_only_shifts_or_stretches_scores_changes_no_rate(
    genuine: list[float], impostors: list[float]
) -> None:
    own, others = np.float32(genuine), np.float32(impostors)
    first, second = roc_of(own, [others]), roc_of(4 * own - 1, [4 * others - 1])
    assert first.eer() == second.eer()
    np.testing.assert_array_equal(first.curve(), second.curve())


def test_equal_scores_fall_on_one_side() -> None:
    same = np.zeros(50, np.float32)
    roc = roc_of(same, [same])
    assert roc.eer() == 0.5
    assert roc.at(0.5) == (None, 0.0, 0.0)
    assert roc.at(0.999999) == (None, 0.0, 0.0)
    higher = roc_of(same + 1, [same])
    assert higher.eer() == 0
    assert higher.at(0.02) == (1.0, 0.0, 1.0)
    # One pair of two people among the highest: accepted where the rate allows one, else none.
    tied = roc_of(np.ones(10, np.float32), [np.append(np.zeros(99), 1)])
    assert tied.at(0.01) == (1.0, 0.01, 1.0)
    assert tied.at(0.0099) == (None, 0.0, 0.0)


def test_without_pairs_of_both_kinds_there_is_no_rate() -> None:
    none, some = np.zeros(0, np.float32), np.ones(3, np.float32)
    for roc in (roc_of(none, [some]), roc_of(some, []), roc_of(none, [])):
        assert roc.at(0.1) is None
        assert roc.eer() is None
        assert not len(roc.curve())
    with pytest.raises(ValueError, match="not a number"):
        roc_of(np.array([np.nan]), [some])
    with pytest.raises(ValueError, match="not a number"):
        roc_of(some, [np.array([0, np.nan])])


def test_too_few_pairs_are_refused_with_the_number_that_is_needed() -> None:
    assert verification.refusal(0.01, 1000) is None
    assert verification.refusal(1e-4, 100_000) is None
    said = verification.refusal(1e-3, 9_999)
    assert said is not None
    assert said.startswith("9,999 pairs of two people; FAR 0.1 % needs 10,000")
    assert verification.allowed(0.29, 100) == 29


def test_memory_does_not_grow_with_the_pairs_of_two_people() -> None:
    import tracemalloc

    random, genuine = np.random.default_rng(0), np.linspace(-1, 1, 1000, dtype=np.float32)
    tracemalloc.start()
    roc = roc_of(genuine, (random.random(100_000, np.float32) for _ in range(40)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert roc.impostors == 4_000_000
    assert peak < 2e6  # a block with its sorted copy; all scores are 16 MB


SEARCHES = st.lists(
    st.tuples(
        st.lists(st.integers(0, 4), min_size=1, max_size=3),
        st.lists(st.integers(0, 4), max_size=5),
    ),
    min_size=1,
    max_size=12,
)


@given(SEARCHES, st.floats(0.01, 0.99))
def test_open_set_rates_are_those_of_the_best_threshold(
    searches: list[tuple[list[int], list[int]]], far: float
) -> None:
    probes = probes_of(searches)
    found = probes.at(far)
    assert found is not None
    rate, parts = found
    best = 0.0
    for threshold in (*np.arange(5), np.inf):
        alarms = [max(others, default=-math.inf) >= threshold for _, others in searches]
        if np.mean(alarms) <= far:
            best = max(best, np.mean([_detected(*each, threshold) for each in searches]))
    assert rate.tar == pytest.approx(best)
    assert rate.tar == pytest.approx(parts.mean())
    assert rate.far <= far


def probes_of(searches: list[tuple[list[int], list[int]]]) -> Probes:
    mate = np.float32([max(mates) for mates, _ in searches])
    other = np.float32([max(others, default=-math.inf) for _, others in searches])
    mates = [mates.count(max(mates)) for mates, _ in searches]
    others = [others.count(max(others)) if others else 0 for _, others in searches]
    return Probes(mate, other, first_is_right(mate, other, mates, others))


def _detected(mates: list[int], others: list[int], threshold: float) -> float:
    """The probability that the first of the images, equal ones in random order, is accepted and of
    the person."""
    highest = max(*mates, *others, -math.inf)
    first = mates.count(int(highest)), others.count(int(highest))
    return first[0] / sum(first) if highest >= threshold else 0.0


def test_nobody_else_in_the_gallery_is_no_alarm() -> None:
    found = probes_of([([1], []), ([2, 2], [])]).at(0.1)
    assert found is not None
    assert found[0] == (1.0, 0.0, 1.0)
    empty = np.zeros(0, np.float32)
    assert Probes(empty, empty, empty).at(0.1) is None


@given(
    st.lists(st.floats(-30, 30), min_size=1, max_size=40),
    st.lists(st.floats(-30, 30), min_size=1, max_size=40),
)
def test_costs_and_calibration_errors_are_those_of_their_definitions(
    genuine: list[float], impostors: list[float]
) -> None:
    first, second = Evidence(), Evidence()
    first.add(np.array(genuine), True)
    second.add(np.array(impostors), False)
    assert math.isnan(first.cllr())
    assert math.isnan(second.error())
    first += second
    cost = np.mean([math.log2(1 + math.exp(-r)) for r in genuine]) / 2
    cost += np.mean([math.log2(1 + math.exp(r)) for r in impostors]) / 2
    assert first.cllr() == pytest.approx(cost)
    bins: dict[int, list[tuple[float, float, bool]]] = {}
    for ratios, same in ((genuine, True), (impostors, False)):
        for ratio in ratios:
            said, weight = 1 / (1 + math.exp(-ratio)), 0.5 / len(ratios)
            place = min(int(said * verification.BINS), verification.BINS - 1)
            bins.setdefault(place, []).append((weight, said, same))
    error = 0.0
    for members in bins.values():
        weight = sum(each[0] for each in members)
        said = sum(w * p for w, p, _ in members) / weight
        true = sum(w for w, _, same in members if same) / weight
        error += weight * abs(said - true)
    assert first.error() == pytest.approx(error, abs=1e-9)
    shares = [[sum(w for w, *_ in bins[place]),
               sum(w * p for w, p, _ in bins[place]) / sum(w for w, *_ in bins[place]),
               sum(w for w, _, same in bins[place] if same) / sum(w for w, *_ in bins[place])]
              for place in sorted(bins)]  # fmt: skip
    assert first.bins() == pytest.approx(np.array(shares))


def test_ratios_that_are_true_cost_least() -> None:
    """Normal scores of equal variance: the ratio is known, and any other one costs more."""
    random = np.random.default_rng(0)
    own, others = random.normal(1, 1, 100_000), random.normal(-1, 1, 300_000)
    costs, errors = [], []
    for slope, shift in ((2.0, 0.0), (1.0, 0.0), (4.0, 0.0), (2.0, 1.0), (2.0, -1.0), (0.0, 0.0)):
        found = Evidence()
        found.add(slope * own + shift, True)
        found.add(slope * others + shift, False)
        costs.append(found.cllr())
        errors.append(found.error())
    assert min(costs) == costs[0]
    assert errors[0] < 0.005
    assert min(errors[1:-1]) > 0.03
    assert (costs[-1], errors[-1]) == (
        pytest.approx(1),
        pytest.approx(0),
    )  # what says nothing is not wrong


def test_values_are_counted_at_each_edge() -> None:
    counted = Counter(np.array([0.5, 0.5, -1.0]))
    counted.add(np.array([[0.5, 0.5], [-np.inf, 2.0]]))
    counted.add(np.zeros((0, 2)))
    assert counted.edges.tolist() == [-1, 0.5]
    assert counted.at_least.tolist() == [3, 3]
    assert counted.above.tolist() == [3, 1]
    assert counted.total == 4


def pair_rates(seed: int, people: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Accepted pairs and pairs of two people, by identity of the query and of the gallery image;
    some people resemble others more than most do, which is the same in both roles."""
    random = np.random.default_rng(seed)
    alike = random.normal(0, 0.5, people)
    rates = 0.03 * np.exp(alike[:, None] + alike[None] - 0.25)
    pairs = np.where(np.eye(people, dtype=bool), 0, 30)
    return random.binomial(pairs, np.minimum(rates, 1)), pairs


def test_the_interval_of_a_rate_of_pairs_covers_the_truth() -> None:
    """Of 400 samples of people about 95 % of the intervals have the rate among all people."""
    covered, widths, binomial = 0, [], []
    for seed in range(400):
        accepted, pairs = pair_rates(seed)
        low, high = pair_interval(
            np.stack([accepted.sum(1), accepted.sum(0)]), np.stack([pairs.sum(1), pairs.sum(0)])
        )
        covered += low <= 0.03 <= high
        widths.append(high - low)
        rate = accepted.sum() / pairs.sum()
        binomial.append(4 * math.sqrt(rate / pairs.sum()))
    assert 0.92 <= covered / 400 <= 0.98
    assert np.mean(widths) > 3 * np.mean(binomial)  # as if pairs were independent


def test_intervals_of_pairs_at_their_limits() -> None:
    pairs = np.full((2, 5), 20)
    low, high = pair_interval(np.zeros((2, 5)), pairs)
    assert (low, high) == (0, pytest.approx(0.6))  # three of five people
    assert pair_interval(pairs, pairs) == [pytest.approx(0.4), 1]
    assert pair_interval(np.ones((2, 2)), np.full((2, 2), 20)) == [0, 1]
    idle = np.zeros((2, 95))  # people of whom there are no pairs say nothing
    some = np.concatenate([np.arange(10).reshape(2, 5), idle], axis=1)
    assert pair_interval(some, np.concatenate([pairs, idle], axis=1)) == pytest.approx(
        pair_interval(some[:, :5], pairs)
    )
