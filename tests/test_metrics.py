"""Ranking and metrics against brute force that sorts and counts one by one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deskpro.stages.metrics.enrichment import enriched, enrolled
from deskpro.stages.metrics.intervals import (
    holm,
    interval,
    paired_t,
    sign_flip_test,
    t_interval,
    t_quantile,
)
from deskpro.stages.metrics.protocols import PROTOCOLS, Protocol
from deskpro.stages.metrics.ranking import (
    Ranking,
    _drawn,
    random_order,
    rank_gallery,
    tie_groups,
)
from deskpro.stages.metrics.reranking import reranked


def people(
    pids: list[int],
    camids: list[int],
    clothes: list[int] | None = None,
    scenes: list[int] | None = None,
) -> pd.DataFrame:
    names = [f"{i}" for i in range(len(pids))]
    return pd.DataFrame(
        {
            "sample_id": names,
            "pid": [str(p) for p in pids],
            "camid": camids,
            "clothes": [str(c) for c in clothes or camids],
            "scene": [str(c) for c in scenes or camids],
        }
    )


Rule = Callable[[pd.Series, pd.Series], bool]
Case = tuple[pd.DataFrame, pd.DataFrame, np.ndarray]
"""Query, gallery, distances float32 [Q, G]."""

RULES: dict[str, Rule] = {
    "market": lambda q, g: g.camid == q.camid,
    "cloth-changing": lambda q, g: g.camid == q.camid or g.clothes == q.clothes,
    "same-clothes": lambda q, g: g.camid == q.camid or g.clothes != q.clothes,
    "prcc-cloth-changing": lambda q, g: False,
    "prcc-same-clothes": lambda q, g: False,
    "prcc-cloth-changing-single-shot": lambda q, g: False,
    "prcc-same-clothes-single-shot": lambda q, g: False,
    "vcclothes-same-clothes": lambda q, g: g.camid == q.camid,
    "vcclothes-cloth-changing": lambda q, g: g.camid == q.camid,
    "vcclothes-cloth-changing-by-id": lambda q, g: g.camid == q.camid or g.clothes == q.clothes,
    "vcclothes-same-clothes-by-id": lambda q, g: g.camid == q.camid or g.clothes != q.clothes,
    "celeb-plain": lambda q, g: False,
    "celeb-official": lambda q, g: g.scene == q.scene,
    "deepchange": lambda q, g: g.scene == q.scene,
    "last": lambda q, g: False,
}
"""Protocol → whether a gallery image of the query's identity is removed, in plain words."""
CAMERAS: dict[str, tuple[set[int], set[int]]] = {
    "prcc-cloth-changing": ({3}, {1}),
    "prcc-same-clothes": ({2}, {1}),
    "prcc-cloth-changing-single-shot": ({3}, {1}),
    "prcc-same-clothes-single-shot": ({2}, {1}),
    "vcclothes-same-clothes": ({2, 3}, {2, 3}),
    "vcclothes-cloth-changing": ({3, 4}, {3, 4}),
}
"""Protocol → the cameras of its queries and of its gallery, where not all."""


def plain_average_precision(name: str, hits: list[int]) -> float:
    """Of the ranks of the positives, step by step."""
    total = 0.0
    for found, place in enumerate(hits, 1):
        if name == "celeb-official":
            before = (found - 1) / (place - 1) if place > 1 else 1.0
            total += (before + found / place) / 2
        else:
            total += found / place
    return total / len(hits)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few people, cameras, clothes, distances with many ties; queries without a positive occur."""
    queries, gallery = draw(st.integers(1, 4)), draw(st.integers(1, 16))

    def rows(count: int, pids: int) -> pd.DataFrame:
        def numbers(low: int, high: int) -> list[int]:
            return draw(st.lists(st.integers(low, high), min_size=count, max_size=count))

        return people(numbers(0, pids), numbers(1, 4), numbers(0, 2), numbers(1, 3))

    # Pairs are equally near, or groups of up to five: their orders can all be tried.
    widths = draw(st.sampled_from([(1,), (1, 2), (1, 2, 5)]))
    distances = np.empty((queries, gallery), np.float32)
    for row in distances:
        sizes = draw(st.lists(st.sampled_from(widths), min_size=gallery, max_size=gallery))
        levels = np.repeat(np.arange(gallery), sizes)[:gallery]
        row[:] = np.asarray(draw(st.permutations(levels.tolist()))) / 6
    return rows(queries, 2), rows(gallery, 3), distances


@pytest.mark.parametrize("name", PROTOCOLS)
@given(case=cases(), block=st.integers(1, 6))
def test_metrics_are_those_of_brute_force(name: str, case: Case, block: int) -> None:
    require_brute_force(PROTOCOLS[name], RULES[name], case, block)


@settings(max_examples=25)
@given(case=cases(), block=st.integers(1, 6))
def test_a_protocol_is_one_row_and_its_rule_in_plain_words(case: Case, block: int) -> None:
    row = Protocol(
        "other-scene",
        "gallery images of the same identity in the same scene and clothes are removed",
        lambda query, same: (
            (same["scene"] == query["scene"]) & (same["clothes"] == query["clothes"])
        ),
        needs=("scene", "clothes"),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PROTOCOLS, row.name, row)
        require_brute_force(
            PROTOCOLS["other-scene"],
            lambda q, g: g.scene == q.scene and g.clothes == q.clothes,
            case,
            block,
        )


def every_order(row: np.ndarray, images: list[int]) -> Iterator[list[int]]:
    """Every order of images by distance: equally near ones in each order that they can have."""
    groups = [
        [*group]
        for _, group in itertools.groupby(sorted(images, key=row.__getitem__), row.__getitem__)
    ]
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [*itertools.chain(*orders)]


def expected_numbers(name: str, row: np.ndarray, hit: dict[int, bool]) -> np.ndarray | None:
    """ap, inp, first and the CMC at 1..10 of one query, counted in one order after the other.

    Orders that place the positives alike count together: what is left is which places of a group
    hold a positive, and each choice of them is as likely as another.
    """
    if not any(hit.values()):
        return None
    choices = []
    start = 0
    for _, same in itertools.groupby(sorted(hit, key=row.__getitem__), row.__getitem__):
        group = [*same]
        positives = sum(hit[j] for j in group)
        places = range(start + 1, start + len(group) + 1)
        choices.append([*itertools.combinations(places, positives)])
        start += len(group)
    found = []
    for chosen in itertools.product(*choices):
        hits = [*itertools.chain(*chosen)]
        found.append(
            [
                plain_average_precision(name, hits),
                len(hits) / hits[-1],
                hits[0],
                *(hits[0] <= k for k in range(1, 11)),
            ]
        )
    return np.mean(found, axis=0)


def require_brute_force(protocol: Protocol, rule: Rule, case: Case, block: int) -> None:
    """Ranking must give what counting one by one gives, on average over every order of equals."""
    query, gallery, distances = case
    name = protocol.name
    of_query, of_gallery = CAMERAS.get(name, ({1, 2, 3, 4}, {1, 2, 3, 4}))
    galleries = [gallery.index[gallery.camid.isin(of_gallery)]]
    if protocol.draws > 1:
        galleries = [d for d in _drawn(gallery, protocol) if not isinstance(d, slice)]
        for drawn in galleries:  # one image of each identity
            part = gallery.loc[drawn]
            assert set(part.camid) <= of_gallery
            assert sorted(part.pid) == sorted(gallery[gallery.camid.isin(of_gallery)].pid.unique())
    numbers, skipped, nearest = [], set(), {}
    positives: dict[str, float] = {}
    firsts: dict[tuple[str, str], float] = {}
    for draw, members in enumerate(galleries):
        for i, who in query.iterrows():
            if who.camid not in of_query:
                continue
            hit = {
                j: gallery.pid[j] == who.pid
                for j in members
                if not (gallery.pid[j] == who.pid and rule(who, gallery.loc[j]))
            }
            row = distances[int(str(i))]
            expected = expected_numbers(name, row, hit)
            if expected is None:
                skipped.add(i)
                continue
            numbers.append(expected)
            if draw == 0:
                nearest[who.sample_id] = sorted(
                    (
                        row[j],
                        np.mean([sum(row[k] < row[j] for k in hit) + 1,
                                 sum(row[k] <= row[j] for k in hit)]),
                    )
                    for j in hit
                )  # fmt: skip
                positives[who.sample_id] = min(row[j] for j, same in hit.items() if same)
                first = [j for j in hit if row[j] == min(row[j] for j in hit)]
                for j in first:
                    if not hit[j]:
                        key = (who.sample_id, gallery.clothes[j])
                        firsts[key] = firsts.get(key, 0) + 1 / len(first)

    ranking = rank_gallery(
        query, gallery, lambda rows: distances[rows], protocol, block=block, nearest=3,
        facts=("clothes",),
    )  # fmt: skip
    found_firsts = ranking.firsts.set_index(["query", "value"])["share"].to_dict()
    assert found_firsts == pytest.approx(firsts)
    assert ranking.skipped == len(skipped)
    assert len(ranking.queries) == len(numbers)
    for who_id, listed in ranking.lists.groupby("query"):
        rows = [*listed[["distance", "rank"]].itertuples(index=False, name=None)]
        assert rows[:3] == nearest[who_id][:3]
        if listed["positive"][:3].any():
            assert len(rows) <= 3
        else:  # the first positive comes last
            assert (
                rows[3:] == [each for each in nearest[who_id] if each[0] == positives[who_id]][:1]
            )
            assert listed["positive"].iloc[3]
        pids = gallery.set_index("sample_id").pid
        same = pids[listed["sample_id"]].to_numpy() == query.set_index("sample_id").pid[who_id]
        assert (listed["positive"].to_numpy() == same).all()
    if numbers:
        table = np.asarray(numbers)
        found = ranking.queries[["ap", "inp", "first", "rank1"]].to_numpy()
        np.testing.assert_allclose(found, table[:, :4], rtol=0, atol=1e-9)
        np.testing.assert_allclose(ranking.cmc(10), table[:, 3:].mean(0), rtol=0, atol=1e-9)
        assert ranking.mAP == pytest.approx(table[:, 0].mean(), abs=1e-12)


@given(st.data())
def test_the_oracle_is_the_mean_over_all_permutations(data: st.DataObject) -> None:
    """What `expected_numbers` shortens, by each permutation of groups of up to seven."""
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)) or [7]
    sizes = data.draw(st.sampled_from([sizes, [7], [1, 6], [5, 2]]))
    row = np.repeat(np.arange(len(sizes)), sizes).astype(np.float32)
    hit = dict(enumerate(data.draw(st.lists(st.booleans(), min_size=len(row), max_size=len(row)))))
    name = data.draw(st.sampled_from(["market", "celeb-official"]))
    found = []
    for order in every_order(row, [*hit]):
        hits = [place for place, j in enumerate(order, 1) if hit[j]]
        if hits:
            found.append([plain_average_precision(name, hits), len(hits) / hits[-1], hits[0]])
    expected = expected_numbers(name, row, hit)
    assert (expected is None) == (not found)
    if expected is not None:
        np.testing.assert_allclose(expected[:3], np.mean(found, axis=0), rtol=0, atol=1e-9)


def large_ties(
    seed: int, levels: int, order: np.ndarray | None = None
) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """A query and 200 gallery images at few distances; `order`: of the gallery's rows."""
    random = np.random.default_rng(seed)
    pids, camids = random.integers(0, 12, 200), random.integers(1, 4, 200)
    row = (random.integers(0, levels, 200) / levels).astype(np.float32)
    order = np.arange(200) if order is None else order
    gallery = people(pids[order].tolist(), camids[order].tolist())
    return people([3], [1]), gallery, row[order][None]


def numbers_of(ranking: Ranking) -> np.ndarray:
    return np.array([ranking.mAP, ranking.mINP, *ranking.cmc(20)])


@pytest.mark.parametrize("levels", [1, 2, 5, 20])
def test_large_ties_are_the_mean_of_random_orders(levels: int) -> None:
    """20,000 orders: a tiny random number is added to each distance."""
    query, gallery, distances = large_ties(levels, levels)
    found = numbers_of(rank_gallery(query, gallery, lambda rows: distances, PROTOCOLS["market"]))
    random = np.random.default_rng(0)
    kept = ((gallery.pid != "3") | (gallery.camid != 1)).to_numpy()
    orders = np.argsort(distances[0, kept] + random.random((20_000, kept.sum())) / 1000, axis=1)
    hits = (gallery.pid == "3").to_numpy()[kept][orders]
    places = np.nonzero(hits)[1].reshape(20_000, -1) + 1
    count = places.shape[1]
    drawn = np.column_stack(
        [
            (np.arange(1, count + 1) / places).mean(1),
            count / places[:, -1],
            places[:, :1] <= np.arange(1, 21),
        ]
    )
    error = drawn.std(0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(0) - found) <= 4 * error + 1e-12).all()


@given(seed=st.integers(0, 2**20), levels=st.integers(1, 30))
def test_the_order_of_files_changes_no_number(seed: int, levels: int) -> None:
    order = np.random.default_rng(seed + 1).permutation(200)
    found = []
    for case in (large_ties(seed, levels), large_ties(seed, levels, order)):
        ranking = rank_gallery(*case[:2], lambda rows, d=case[2]: d, PROTOCOLS["market"])  # type: ignore[misc]
        found.append(numbers_of(ranking))
    np.testing.assert_array_equal(found[0], found[1])


def test_draws_differ_and_do_not_depend_on_who_else_is_there() -> None:
    gallery = people([pid for pid in range(30) for _ in range(8)], [1] * 240)
    protocol = PROTOCOLS["prcc-cloth-changing-single-shot"]
    draws = [*_drawn(gallery, protocol)]
    assert len({tuple(draw.tolist()) for draw in draws if not isinstance(draw, slice)}) == 10
    fewer = gallery.iloc[:120]
    for draw, part in zip(draws, _drawn(fewer, protocol), strict=True):
        assert not isinstance(draw, slice)
        assert not isinstance(part, slice)
        assert draw[:15].tolist() == part.tolist()


@given(st.data())
def test_ties_are_counted_alike_by_few_and_by_many_positives(data: st.DataObject) -> None:
    """Few positives are counted one by one, many after a sort of the values."""
    count = data.draw(st.integers(1, 200))
    values = st.lists(st.integers(0, 12), min_size=count, max_size=count)
    distances = np.asarray(data.draw(values), np.float32)
    roles = np.asarray(
        data.draw(st.lists(st.sampled_from("pro"), min_size=count, max_size=count)), str
    )
    positive, junk = np.flatnonzero(roles == "p"), np.flatnonzero(roles == "r")
    kept = distances[roles != "r"]
    expected = [
        ((kept < value).sum(), (kept == value).sum(), (distances[positive] == value).sum())
        for value in sorted({*distances[positive].tolist()})
    ]
    assert [*zip(*tie_groups(distances, positive, junk), strict=True)] == expected


def test_a_case_worked_out_by_hand() -> None:
    query = people([1, 2], [0, 0])
    gallery = people([1, 2, 1, 1, 3], [0, 1, 1, 2, 0])
    distances = np.array([[0.0, 0.1, 0.2, 0.4, 0.3], [0.5, 0.5, 0.5, 0.5, 0.1]], np.float32)
    ranking = rank_gallery(query, gallery, lambda rows: distances[rows], PROTOCOLS["market"])
    # Query 1: its own camera's image is removed; order 2, 1, 3, 1: hits at 2 and 4.
    # Query 2: first 3; four images are equally near, so its hit is at 2, 3, 4 or 5.
    places = np.array([2, 3, 4, 5])
    assert ranking.queries["first"].tolist() == [2, 3.5]
    assert ranking.queries["rank1"].tolist() == [0, 0]
    precision = (1 / places).mean()
    assert ranking.queries["ap"].tolist() == pytest.approx([(1 / 2 + 2 / 4) / 2, precision])
    assert ranking.queries["inp"].tolist() == pytest.approx([2 / 4, precision])
    assert ranking.cmc(3).tolist() == pytest.approx([0.0, (1 + 1 / 4) / 2, (1 + 2 / 4) / 2])


HAND: dict[str, tuple[list[int], list[float]]] = {
    # One query of person 1, camera 3, clothes 0, scene 1; the gallery, by distance:
    #   pid      2  1  1  2  1  1  1
    #   camera   3  3  1  4  2  4  1
    #   clothes  0  0  1  0  0  0  1
    #   scene    1  1  1  2  2  2  3
    "market": ([2, 4, 5, 6], [1 / 2, 2 / 4, 3 / 5, 4 / 6]),  # without the second
    "cloth-changing": ([2, 4], [1 / 2, 2 / 4]),  # the third and the last are left of 1
    "same-clothes": ([3, 4], [1 / 3, 2 / 4]),  # the fifth and the sixth
    "prcc-cloth-changing": ([1, 2], [1, 1]),  # camera 1 alone
    "vcclothes-same-clothes": ([2], [1 / 2]),  # 2, (1), 1 of cameras 2 and 3
    "vcclothes-cloth-changing": ([3], [1 / 3]),  # 2, (1), 2, 1 of cameras 3 and 4
    "vcclothes-cloth-changing-by-id": ([2, 4], [1 / 2, 2 / 4]),
    "vcclothes-same-clothes-by-id": ([3, 4], [1 / 3, 2 / 4]),
    "celeb-plain": ([2, 3, 5, 6, 7], [1 / 2, 2 / 3, 3 / 5, 4 / 6, 5 / 7]),
    "last": ([2, 3, 5, 6, 7], [1 / 2, 2 / 3, 3 / 5, 4 / 6, 5 / 7]),
    "deepchange": ([3, 4, 5], [1 / 3, 2 / 4, 3 / 5]),  # 2, 2, 1, 1, 1
    "celeb-official": ([3, 4, 5], [(0 + 1 / 3) / 2, (1 / 3 + 2 / 4) / 2, (2 / 4 + 3 / 5) / 2]),
}


@pytest.mark.parametrize("name", HAND)
def test_every_protocol_by_hand(name: str) -> None:
    query = people([1], [3], [0], [1])
    gallery = people(
        [2, 1, 1, 2, 1, 1, 1], [3, 3, 1, 4, 2, 4, 1], [0, 0, 1, 0, 0, 0, 1], [1, 1, 1, 2, 2, 2, 3]
    )
    distances = np.arange(7, dtype=np.float32)[None]
    found = rank_gallery(query, gallery, lambda rows: distances[rows], PROTOCOLS[name]).queries
    ranks, precisions = HAND[name]
    assert found["first"].tolist() == [ranks[0]]
    assert found["rank1"].tolist() == [float(ranks[0] == 1)]
    assert found["positives"].tolist() == [len(ranks)]
    assert found["inp"].tolist() == [len(ranks) / ranks[-1]]
    assert found["ap"].tolist() == pytest.approx([sum(precisions) / len(precisions)], abs=1e-12)


def test_prcc_by_hand() -> None:
    """Person 1 at 0.1 and 0.4, person 2 at 0.2 and 0.3; the queries are of 1, cameras B and C."""
    query, gallery = people([1, 1], [2, 3]), people([1, 2, 2, 1], [1, 1, 1, 1])
    distances = np.array([[0.1, 0.2, 0.3, 0.4]] * 2, np.float32)
    for name, who in (("prcc-same-clothes", "0"), ("prcc-cloth-changing", "1")):
        ranking = rank_gallery(query, gallery, lambda rows: distances[rows], PROTOCOLS[name])
        assert ranking.queries["sample_id"].tolist() == [who]
        assert ranking.mAP == (1 / 1 + 2 / 4) / 2
        single = rank_gallery(
            query, gallery, lambda rows: distances[rows], PROTOCOLS[f"{name}-single-shot"]
        )
        assert len(single.queries) == 10
        assert set(single.queries["first"]) == {1, 2}  # by which image of 1 was drawn
        assert single.mAP == pytest.approx(single.by_draw()["ap"].mean())
        assert single.by_draw()["ap"].std() > 0


@pytest.mark.slow
def test_an_interval_covers_the_mean_95_times_of_100() -> None:
    """Of samples of a known mean some 95 % of the intervals contain it.

    The queries of one identity are nearly alike, as they are in a gallery: were they drawn one by
    one, half of the intervals would miss.
    """
    random = np.random.default_rng(0)
    covered = {"identities": 0, "queries": 0}
    for seed in range(40):
        values = random.exponential(size=60).repeat(8) + random.normal(0, 0.05, 480)
        for unit, groups in (("identities", np.arange(480) // 8), ("queries", np.arange(480))):
            low, high = interval(values, groups, seed)
            covered[unit] += low <= 1 <= high
    assert 33 <= covered["identities"] <= 40
    assert covered["queries"] < 28


def test_an_interval_of_one_query_an_identity_is_the_plain_bootstrap() -> None:
    random = np.random.default_rng(1)
    values = random.random(40)
    rows = [np.random.default_rng([0, draw]).integers(0, 40, 40) for draw in range(2000)]
    ends = np.quantile([values[row].mean() for row in rows], (0.025, 0.975))
    assert interval(values, np.arange(40)) == pytest.approx(ends.tolist(), abs=1e-12)


def test_a_paired_test_by_every_arrangement_of_signs() -> None:
    sums = np.array([0.5, 0.25, -0.125, 1.0, 0.0, 0.75])
    differences, identities = np.array([*sums / 2, *sums / 2]), [*"abcdef"] * 2
    signs = np.array([*itertools.product((-1, 1), repeat=5)])
    arranged = np.abs(signs @ sums[sums != 0])
    exact = np.mean(arranged >= abs(sums.sum()))
    assert sign_flip_test(differences, identities) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(-differences, identities) == pytest.approx(exact, abs=0.02)
    assert sign_flip_test(np.zeros(4), np.arange(4)) == 1.0


def dense_reranking(
    distances: np.ndarray, queries: int, k1: int, k2: int, weight: float
) -> np.ndarray:
    """k-reciprocal re-ranking as in the paper, with full matrices and sets; of equal distances
    all or none are among the nearest."""
    count = len(distances)
    d = distances / distances.max(1, keepdims=True)
    self_first = d + 2 * (1 - np.eye(count))
    nearer = np.array([[(row < one).sum() for one in row] for row in self_first])

    @cache
    def nearest(i: int, k: int) -> set[int]:
        return {*np.flatnonzero(nearer[i] < k).tolist()}

    @cache
    def mutual(i: int, k: int) -> set[int]:
        return {j for j in nearest(i, k + 1) if i in nearest(j, k + 1)}

    v = np.zeros((count, count))
    for i in range(count):
        near = mutual(i, k1)
        wide = set(near)
        for j in near:
            theirs = mutual(j, round(k1 / 2))
            if len(theirs & near) > 2 / 3 * len(theirs):
                wide |= theirs
        for j in wide:
            v[i, j] = np.exp(-d[i, j])
        v[i] /= v[i].sum()
    if k2 > 1:
        v = np.array([v[[*nearest(i, k2)]].mean(0) for i in range(count)])
    found = np.zeros((queries, count - queries))
    for i in range(queries):
        for j in range(queries, count):
            shared = np.minimum(v[i], v[j]).sum()
            jaccard = 1 - shared / (2 - shared)
            found[i, j - queries] = (1 - weight) * jaccard + weight * d[i, j]
    return found


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (5, 1), (7, 3), (200, 100)])
def test_reranking_in_blocks_is_that_of_full_matrices(k1: int, k2: int) -> None:
    random = np.random.default_rng(3)
    features = random.standard_normal((70, 4)) + 3 * random.standard_normal((7, 4)).repeat(10, 0)
    distances = np.square(features[:, None] - features[None]).sum(2)
    expected = dense_reranking(distances, 12, min(k1, 69), min(k2, 70), 0.3)
    new = reranked(lambda rows: distances[rows], 12, 58, k1=k1, k2=k2, weight=0.3, block=9)
    with pytest.raises(MemoryError, match="more than 5e-05 GB"):
        reranked(lambda rows: distances[rows], 12, 58, k1=k1, k2=k2, memory=5e4)
    found = np.concatenate([new(slice(0, 5)), new(slice(5, 12))])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 12))
def test_reranking_of_equal_distances_does_not_depend_on_the_order(
    seed: int, k1: int, k2: int
) -> None:
    random = np.random.default_rng(seed)
    points = random.integers(0, 4, (14, 2))
    distances = np.square(points[:, None] - points[None]).sum(2).astype(float)
    order = np.concatenate([np.arange(4), 4 + random.permutation(10)])
    shuffled = distances[np.ix_(order, order)]
    found, again = (
        reranked(lambda rows, d=d: d[rows], 4, 10, k1=k1, k2=k2)(slice(0, 4))  # type: ignore[misc]
        for d in (distances, shuffled)
    )
    np.testing.assert_allclose(found[:, order[4:] - 4], again, rtol=0, atol=1e-6)
    expected = dense_reranking(distances, 4, min(k1, 13), min(k2, 14), 0.3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_states_its_rule(name: str) -> None:
    assert len(PROTOCOLS[name].rule) > 20


def test_the_reference_figures(reference: Path) -> None:
    """Six random cases with mAP and CMC of the published metric."""
    import json

    rows = json.loads((reference / "expected_losses.json").read_text())["metrics"]
    rng = np.random.default_rng(20261122)
    for expected in rows:
        distances = rng.random((40, 300)).astype(np.float32)
        pids, gallery_pids = rng.integers(0, 25, 40), rng.integers(0, 30, 300)
        camids, gallery_camids = rng.integers(0, 4, 40), rng.integers(0, 4, 300)
        ranking = rank_gallery(
            people(pids.tolist(), camids.tolist()),
            people(gallery_pids.tolist(), gallery_camids.tolist()),
            lambda rows, distances=distances: distances[rows],  # type: ignore[misc]
            PROTOCOLS["market"],
        )
        cmc = ranking.cmc(20)
        found = [ranking.mAP, *(cmc[k - 1] for k in (1, 5, 10, 20))]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_quantiles_of_students_t_are_those_of_tables() -> None:
    known = {1: 12.7062047, 2: 4.3026527, 3: 3.1824463, 4: 2.7764451, 9: 2.2621572, 999: 1.9623415}
    for df, value in known.items():
        assert t_quantile(0.95, df) == pytest.approx(value, abs=1e-7)
    assert t_interval([1.0, 2.0, 3.0]) == pytest.approx([2 - 2.48413771, 2 + 2.48413771])
    assert np.isnan(t_interval([1.0])).all()


def test_p_of_students_t_is_that_of_tables() -> None:
    # t = mean·√n / sd: of one degree of freedom p = 1 − 2·atan(t)/π, of two 1 − t/√(2 + t²).
    assert paired_t([1.0, 3.0]) == pytest.approx(1 - 2 * np.arctan(2) / np.pi)
    assert paired_t([1.0, 2.0, 3.0]) == pytest.approx(1 - 12**0.5 / 14**0.5)
    for df, t in ((4, 4.604094871), (9, 3.249835542)):  # the tables' t of p = 0.01
        n = df + 1
        values = np.linspace(-1, 1, n)
        values = values / values.std(ddof=1) + t / n**0.5
        assert paired_t(values) == pytest.approx(0.01, rel=1e-7)
    assert paired_t([0.5, 0.5, 0.5]) == 0
    assert paired_t([0.0, 0.0]) == 1
    assert np.isnan(paired_t([0.5]))


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8), st.floats(0.1, 10))
def test_p_depends_on_neither_sign_nor_scale_and_agrees_with_the_interval(
    values: list[float], scale: float
) -> None:
    found = np.round(values, 3)
    p = paired_t(found)
    assert 0 <= p <= 1
    assert paired_t(-scale * found) == pytest.approx(p, abs=1e-9)
    low, high = t_interval(found)
    if abs(low) > 1e-6 and abs(high) > 1e-6:
        assert (p < 0.05) == (low > 0 or high < 0)


@given(st.lists(st.one_of(st.floats(0, 1), st.just(np.nan)), max_size=8))
def test_holm_is_its_definition(values: list[float]) -> None:
    """The adjusted p is the lowest level at which the step-down procedure rejects."""
    found = holm(values)
    known = [p for p in values if not np.isnan(p)]
    ranked = sorted(known)
    for p, adjusted in zip(values, found, strict=True):
        if np.isnan(p):
            assert np.isnan(adjusted)
            continue
        steps = [(len(ranked) - i) * q for i, q in enumerate(ranked) if q <= p]
        first = (len(ranked) - ranked.index(p)) * p
        before = [s for s, q in zip(steps, ranked, strict=False) if q < p]
        assert adjusted == pytest.approx(min(1, max([first, *before])))
        assert p - 1e-12 <= adjusted <= 1
    assert holm([0.01, 0.04, 0.03, np.nan]).tolist()[:3] == pytest.approx([0.03, 0.06, 0.06])


def test_chance_is_the_mean_of_random_orders() -> None:
    query, gallery = people([1], [1]), people([1, 1, 2, 3, 1], [2, 2, 2, 2, 1])
    # The last image is the query's own camera's. Two positives in four places, six orders.
    orders = [sorted(places) for places in itertools.combinations(range(1, 5), 2)]
    mean = np.mean([(1 / first + 2 / second) / 2 for first, second in orders])
    found = random_order(query, gallery, PROTOCOLS["market"])
    assert found["ap"].mean() == pytest.approx(mean)


@pytest.mark.parametrize("name", PROTOCOLS)
@given(case=cases())
def test_chance_is_that_of_a_ranking_whose_images_are_all_equally_near(
    name: str, case: Case
) -> None:
    query, gallery, distances = case
    protocol = PROTOCOLS[name]
    ranking = rank_gallery(query, gallery, lambda rows: 0 * distances[rows], protocol)
    found = random_order(query, gallery, protocol)
    order = ranking.queries.sort_values("draw", kind="stable")
    assert found["sample_id"].tolist() == order["sample_id"].tolist()
    np.testing.assert_allclose(found["ap"], order["ap"], rtol=0, atol=1e-12)
    np.testing.assert_array_equal(found["images"], order["tied"])
    assert found["ap"].mean() == pytest.approx(ranking.mAP, abs=1e-12, nan_ok=True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 9))
def test_enrichment_is_that_of_its_words(seed: int, queries: int, gallery: int) -> None:
    """Few distinct distances, so that many are equal; some images have no face."""
    random = np.random.default_rng(seed)
    faces, bodies, among = (
        random.integers(0, 4, size).astype(np.float32)
        for size in ((queries, gallery), (queries, gallery), (queries, queries))
    )
    faces[random.random(queries) < 0.3] = np.inf
    faces[:, random.random(gallery) < 0.3] = np.inf
    pairs = enrolled(lambda rows: faces[rows], queries, gallery, 2)
    matched = [
        (q, g)
        for q in range(queries)
        for g in range(gallery)
        if faces[q, g] == min(faces[q]) and faces[q, g] <= 2
    ]
    assert [*map(tuple, pairs.tolist())] == matched
    half = queries // 2
    new = enriched(lambda rows: bodies[rows], lambda rows: among[rows], pairs)
    found = np.concatenate([new(slice(0, half)), new(slice(half, queries))])
    for q in range(queries):
        for g in range(gallery):
            lent = [among[q, other] for other, image in matched if image == g and other != q]
            assert found[q, g] == min([bodies[q, g], *lent])
