"""Pairs of query and gallery against brute force: rules, face cases, ties, blocks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deskpro.stages.base.calibrated import Case
from deskpro.stages.evaluation.pairs import Pairs, pair_numbers
from deskpro.stages.metrics import ranking, verification
from deskpro.stages.metrics.calibration import CASES, fit_case, log_ratios
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.verification import Evidence
from deskpro.stages.reporting import results
from deskpro.stages.reporting.metrics_file import Metrics
from tests.conftest import Project
from tests.test_verification import roc_of

ASKED, SHOWN = 90, 100


def images(count: int, random: np.random.Generator, prefix: str) -> pd.DataFrame:
    return pd.DataFrame({
        "sample_id": [f"{prefix}{i}" for i in range(count)],
        "pid": random.integers(0, 12, count).astype(str),
        "camid": random.integers(0, 3, count),
        "clothes": random.integers(0, 2, count).astype(str),
        "scene": None,
        "tracklet": None,
    })  # fmt: skip


def some_pairs(seed: int, protocol: str, levels: int = 40) -> tuple[Pairs, np.ndarray]:
    """Images of twelve people, some without a face, and scores of which many are equal."""
    random = np.random.default_rng(seed)
    query, gallery = images(ASKED, random, "q"), images(SHOWN, random, "g")
    if protocol == "market":
        query.loc[::3, "clothes"] = None
    same = query["pid"].to_numpy()[:, None] == gallery["pid"].to_numpy()
    scores = np.float32(np.round(levels * random.normal(0.6 * same, 0.4)) / levels)
    asked, shown = random.random(ASKED) < 0.7, random.random(SHOWN) < 0.6
    pairs = Pairs(query, gallery, scores.__getitem__, asked, shown, PROTOCOLS[protocol])
    return pairs, scores


def listed(pairs: Pairs, scores: np.ndarray) -> pd.DataFrame:
    """Every pair that is compared, one after the other, by the rules in plain words."""
    rows = []
    for q, asked in pairs.query.iterrows():
        mine = []
        for g, shown in pairs.gallery.iterrows():
            person = asked["pid"] == shown["pid"]
            removed = asked["camid"] == shown["camid"]
            if pairs.protocol.name == "cloth-changing":
                removed |= asked["clothes"] == shown["clothes"]
            if person and removed:
                continue
            faces = int(pairs.query_face[q]) + int(pairs.gallery_face[g])  # type: ignore[index, call-overload]
            worn = None if pd.isna(asked["clothes"]) else asked["clothes"] == shown["clothes"]
            mine.append((q, g, asked["pid"], shown["pid"], person, CASES[2 - faces], worn))
        if any(row[4] for row in mine):  # a query without a positive left is not counted
            rows += mine
    table = pd.DataFrame(rows, columns=["q", "g", "pid", "other", "same", "case", "worn"])
    return table.assign(score=scores[table["q"], table["g"]])


def calibration(table: pd.DataFrame) -> dict[str, Case]:
    return {
        name: fit_case(
            part["score"].to_numpy() + 0.05,
            part["same"].to_numpy(),
            part[["pid", "other"]].to_numpy().T,
        )
        for name, part in table.groupby("case")
    }


@pytest.mark.parametrize("protocol", ["market", "cloth-changing"])
@pytest.mark.parametrize("block", [2**28, 4 * SHOWN * 7])
def test_numbers_are_those_of_all_pairs_in_one_list(
    protocol: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "BLOCK", block)
    pairs, scores = some_pairs(0, protocol)
    table = listed(pairs, scores)
    learned = calibration(table)
    found = pair_numbers(pairs, learned)
    assert [*found] == ["all", *CASES]
    json.dumps(found, allow_nan=False)
    for name, numbers in found.items():
        part = table if name == "all" else table[table["case"] == name]
        check_case(part, numbers, learned)
        if name != "all":
            check_thresholds(part, numbers["held_out"], learned[name])


def check_case(part: pd.DataFrame, numbers: Mapping[str, Any], learned: dict[str, Case]) -> None:
    own, others = part[part["same"]], part[~part["same"]]
    assert (numbers["genuine"], numbers["impostors"]) == (len(own), len(others))
    assert numbers["identities"] == own["pid"].nunique()
    roc = roc_of(own["score"].to_numpy(), [others["score"].to_numpy()])
    assert numbers["EER"] == roc.eer()
    if len(others) < 1000:
        assert "1,000" in numbers["TAR"]["0.01"]["refused"]
    else:
        rate, said = roc.at(0.01), numbers["TAR"]["0.01"]
        assert rate is not None
        assert (said["threshold"], said["FAR"], said["rate"]) == rate
        assert said["interval"][0] <= said["rate"] <= said["interval"][1]
        for worn, name in ((True, "same"), (False, "changed")):
            mine = own[own["worn"] == worn]
            if not len(mine):
                assert name not in numbers["clothes"]
                continue
            of_clothes = numbers["clothes"][name]
            assert of_clothes["genuine"] == len(mine)
            accepted = float((mine["score"] >= rate.threshold).mean())
            assert of_clothes["TAR"]["0.01"] == pytest.approx(accepted)
    assert "100,000" in numbers["TAR"]["0.0001"]["refused"]
    curve = numbers["ROC"]
    assert curve["FAR"] == [far for far in curve["FAR"] if far * len(others) >= 10 - 1e-9]
    assert curve["FAR"][-1] / 10**0.25 * len(others) < 10
    for far, tar, low, high in zip(*curve.values(), strict=True):
        assert (best := roc.at(far)) is not None
        assert low <= tar == best.tar <= high
    evidence = Evidence()
    for name, rows in part.groupby("case"):
        ratios = log_ratios(learned, rows["score"].to_numpy(), CASES.index(str(name)))
        for same in (True, False):
            evidence.add(ratios[rows["same"] == same], same)
    assert numbers["calibration"]["Cllr"] == pytest.approx(evidence.cllr())
    assert numbers["calibration"]["ECE"] == pytest.approx(evidence.error())
    assert sum(row[0] for row in numbers["calibration"]["bins"]) == pytest.approx(1)


def check_thresholds(part: pd.DataFrame, said: Mapping[str, Any], case: Case) -> None:
    others, decided = part[~part["same"]], said["0.01"]
    limit = case.threshold(0.01)
    if limit is None:
        assert "pairs of two held-out people" in decided["refused"]
        return
    assert decided["FAR"] == pytest.approx((others["score"] >= np.float32(limit)).mean())
    own = part[part["same"]]
    assert decided["rate"] == pytest.approx((own["score"] >= np.float32(limit)).mean())
    low, high = decided["far_interval"]
    assert 0 <= low <= decided["FAR"] <= high <= 1


@pytest.mark.parametrize("levels", [4, 40])
def test_searches_are_those_of_each_query(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "ENOUGH", 1)
    pairs, scores = some_pairs(1, "market", levels)
    table = listed(pairs, scores)
    found = pair_numbers(pairs, {})
    for name, numbers in found.items():
        part = table if name == "all" else table[table["case"] == name]
        searches = []
        for _, mine in part.groupby("q"):
            own, others = (mine.loc[mine["same"] == same, "score"] for same in (True, False))
            if len(own):
                searches.append((own.to_numpy(), others.to_numpy()))
        best = 0.0
        for threshold in (*np.unique(scores), np.inf):
            alarms = np.mean([(others >= threshold).any() for _, others in searches])
            if alarms <= 0.1:
                best = max(best, np.mean([detected(*each, threshold) for each in searches]))
        assert numbers["DIR"]["0.1"]["rate"] == pytest.approx(best)
        assert "no calibration" in numbers["calibration"]["refused"]


def detected(own: np.ndarray, others: np.ndarray, threshold: float) -> float:
    highest = max(own.max(), others.max(initial=-np.inf))
    first = (own == highest).sum(), (others == highest).sum()
    return float(first[0] / sum(first)) if highest >= threshold else 0.0


def test_one_case_is_not_repeated_and_no_positive_is_nothing() -> None:
    pairs, scores = some_pairs(2, "market")
    alone = pairs._replace(query_face=np.ones(ASKED, bool), gallery_face=np.ones(SHOWN, bool))
    assert [*pair_numbers(alone, {})] == ["face-face"]
    strangers = pairs.gallery.assign(pid="nobody")
    assert pair_numbers(pairs._replace(gallery=strangers), {}) == {}
    wrong = np.full_like(scores, np.nan)
    with pytest.raises(ValueError, match="not a number"):
        pair_numbers(pairs._replace(scores=wrong.__getitem__), {})


@pytest.mark.finished("eval")
def test_an_evaluation_says_what_there_is_too_little_of(project: Project) -> None:
    metrics = json.loads((project.run / "metrics.json").read_text())
    assert Metrics.model_validate(metrics)
    streams = metrics["protocols"]["market"]["streams"]
    assert [*streams["face"]["verification"]] == ["face-face"]
    assert [*streams["body"]["verification"]] == ["none-none"]
    numbers = streams["all"]["verification"]["all"]
    assert 0 <= numbers["EER"] <= 1
    assert "1,000" in numbers["TAR"]["0.01"]["refused"]
    assert not results.pair_rows(metrics["protocols"])
