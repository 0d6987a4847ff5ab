"""Ranking and metrics against brute force that sorts and counts one by one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics.protocols import PROTOCOLS
from stages.metrics.ranking import positive_ranks, rank


def people(pids: list[int], camids: list[int]) -> pd.DataFrame:
    names = [f"{i}" for i in range(len(pids))]
    return pd.DataFrame({"sample_id": names, "pid": [str(p) for p in pids], "camid": camids})


def brute_force_removed(name: str, query: pd.Series, other: pd.Series) -> bool:
    """Every protocol's rule for one pair, in the plainest words."""
    rules = {"market": other["pid"] == query["pid"] and other["camid"] == query["camid"]}
    return bool(rules[name])


@st.composite
def cases(draw: st.DrawFn) -> tuple[pd.DataFrame, pd.DataFrame, np.ndarray]:
    """Few people, few cameras, distances with many ties; queries without a positive occur."""
    queries, gallery = draw(st.integers(1, 5)), draw(st.integers(1, 14))

    def rows(count: int, pids: int) -> pd.DataFrame:
        ids = st.lists(st.integers(0, pids), min_size=count, max_size=count)
        cameras = st.lists(st.integers(0, 2), min_size=count, max_size=count)
        return people(draw(ids), draw(cameras))

    steps = st.lists(st.integers(0, 6), min_size=queries * gallery, max_size=queries * gallery)
    distances = np.asarray(draw(steps), np.float32).reshape(queries, gallery) / 6
    return rows(queries, 3), rows(gallery, 4), distances


@pytest.mark.parametrize("name", PROTOCOLS)
@settings(max_examples=200, deadline=None)
@given(case=cases(), block=st.integers(1, 6))
def test_metrics_are_those_of_brute_force(
    name: str, case: tuple[pd.DataFrame, pd.DataFrame, np.ndarray], block: int
) -> None:
    query, gallery, distances = case
    aps, inps, firsts, skipped = [], [], [], 0
    for i, who in query.iterrows():
        kept = [
            (distances[int(str(i)), j], j, other["pid"] == who["pid"])
            for j, (_, other) in enumerate(gallery.iterrows())
            if not brute_force_removed(name, who, other)
        ]
        hits = [place for place, (_, _, hit) in enumerate(sorted(kept), 1) if hit]
        if not hits:
            skipped += 1
            continue
        aps.append(sum((n + 1) / place for n, place in enumerate(hits)) / len(hits))
        inps.append(len(hits) / hits[-1])
        firsts.append(hits[0])

    ranking = rank(query, gallery, lambda rows: distances[rows], PROTOCOLS[name], block)
    assert ranking.skipped == skipped
    assert ranking.queries["first"].tolist() == firsts
    np.testing.assert_allclose(ranking.queries["ap"], aps, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ranking.queries["inp"], inps, rtol=0, atol=1e-12)
    if firsts:
        expected = [sum(f <= k for f in firsts) / len(firsts) for k in range(1, 11)]
        np.testing.assert_allclose(ranking.cmc(10), expected, rtol=0, atol=1e-12)
        assert ranking.mAP == pytest.approx(np.mean(aps), abs=1e-12)


def test_a_case_worked_out_by_hand() -> None:
    query = people([1, 2], [0, 0])
    gallery = people([1, 2, 1, 1, 3], [0, 1, 1, 2, 0])
    distances = np.array([[0.0, 0.1, 0.2, 0.4, 0.3], [0.5, 0.5, 0.5, 0.5, 0.1]], np.float32)
    ranking = rank(query, gallery, lambda rows: distances[rows], PROTOCOLS["market"])
    # Query 1: its own camera's picture is removed; order 2, 1, 3, 1: hits at 2 and 4.
    # Query 2: order 3, 1, 2, …: equal distances by gallery position, the hit at 3.
    assert ranking.queries["first"].tolist() == [2, 3]
    assert ranking.queries["ap"].tolist() == pytest.approx([(1 / 2 + 2 / 4) / 2, 1 / 3])
    assert ranking.queries["inp"].tolist() == pytest.approx([2 / 4, 1 / 3])
    assert ranking.cmc(3).tolist() == [0.0, 0.5, 1.0]


def test_no_positive_no_rank() -> None:
    assert len(positive_ranks(np.zeros(3), np.zeros(3, bool))) == 0


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_states_its_rule(name: str) -> None:
    assert len(PROTOCOLS[name].rule) > 20


def test_the_reference_figures(reference: Path) -> None:
    """Six random cases whose mAP and CMC the published metric was asked for."""
    import json

    rows = json.loads((reference / "expected_losses.json").read_text())["metrics"]
    rng = np.random.default_rng(20261122)
    for expected in rows:
        distances = rng.random((40, 300)).astype(np.float32)
        pids, gallery_pids = rng.integers(0, 25, 40), rng.integers(0, 30, 300)
        camids, gallery_camids = rng.integers(0, 4, 40), rng.integers(0, 4, 300)
        ranking = rank(
            people(pids.tolist(), camids.tolist()),
            people(gallery_pids.tolist(), gallery_camids.tolist()),
            lambda rows, distances=distances: distances[rows],  # type: ignore[misc]
            PROTOCOLS["market"],
        )
        cmc = ranking.cmc(20)
        found = [ranking.mAP, *(cmc[k - 1] for k in (1, 5, 10, 20))]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
