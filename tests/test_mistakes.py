"""What goes wrong, against counting one by one."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskpro.stages.evaluation.mistakes import FACTS, changed_clothes, mistake_numbers
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import rank_gallery
from tests.conftest import Project

World = tuple[pd.DataFrame, pd.DataFrame, np.ndarray]


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Queries, gallery and distances of few values, so that many images are equally near."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))

    def images(split: str, count: int) -> pd.DataFrame:
        return pd.DataFrame(
            {
                "sample_id": [f"{split}{i}" for i in range(count)],
                "pid": [str(pid) for pid in random.integers(0, 4, count)],
                "camid": random.integers(1, 4, count),
                "clothes": [f"outfit {kind}" for kind in random.integers(0, 3, count)],
                "scene": ["0"] * count,
            }
        )

    query, gallery = images("q", 12), images("g", 30)
    levels = draw(st.sampled_from([2, 5, 1000]))
    return query, gallery, random.integers(0, levels, (12, 30)).astype(np.float32)


def firsts(world: World, name: str) -> pd.DataFrame:
    """A row for each wrong image that is nearest to a query that counts, with its share; and one
    for each image of another person, with the probability that it would be first by chance."""
    query, gallery, distances = world
    rows = []
    for i, who in query.iterrows():
        kept = [
            j for j, shown in gallery.iterrows()
            if not (shown.pid == who.pid and (shown.camid == who.camid or
                    (name == "cloth-changing" and shown.clothes == who.clothes)))
        ]  # fmt: skip
        if not any(gallery.pid[j] == who.pid for j in kept):
            continue
        row = distances[int(str(i))]
        near = [j for j in kept if row[j] == min(row[k] for k in kept)]
        others = [j for j in kept if gallery.pid[j] != who.pid]
        wrong = sum(gallery.pid[j] != who.pid for j in near) / len(near)
        for j in others:
            share = 1 / len(near) if j in near else 0
            rows.append((i, who.camid, gallery.camid[j], who.clothes == gallery.clothes[j], share,
                         wrong / len(others), wrong))  # fmt: skip
    names = ["query", "asked", "camera", "outfit", "share", "chance", "wrong"]
    return pd.DataFrame(rows, columns=names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["market", "cloth-changing"])
@given(world=worlds())
def test_wrong_first_images_are_counted_one_by_one(name: str, world: World) -> None:
    query, gallery, distances = world
    ranking = rank_gallery(query, gallery, distances.__getitem__, PROTOCOLS[name], facts=FACTS)
    expected = firsts(world, name)
    if not len(ranking.queries):
        assert not len(expected)
        return
    found = mistake_numbers(ranking, query, gallery, shared_clothes=True)
    wrong = expected.groupby("query")["wrong"].first()
    assert found["wrong"] == pytest.approx(wrong.mean())
    misled = expected[expected["outfit"]]
    if not wrong.sum():
        assert found["outfit"] == {"refused": "no first image is wrong"}
    elif not misled["chance"].sum():
        assert found["outfit"] == {"refused": "nobody else wears a query's outfit"}
    else:
        outfit = found["outfit"]
        assert outfit["share"] == pytest.approx(misled["share"].sum() / wrong.sum())
        assert outfit["expected"] == pytest.approx(misled["chance"].sum() / wrong.sum())
        assert outfit["lift"] == pytest.approx(misled["share"].sum() / misled["chance"].sum())
        assert 0 <= outfit["interval"][0] <= outfit["interval"][1]
    cameras = found["cameras"]
    for r, asked in enumerate(cameras["query"]):
        for c, shown in enumerate(cameras["gallery"]):
            rows = expected[(expected["asked"] == asked) & (expected["camera"] == shown)]
            assert cameras["wrong"][r][c] == pytest.approx(rows["share"].sum())
            assert cameras["expected"][r][c] == pytest.approx(rows["chance"].sum())


@pytest.mark.slow
@given(world=worlds())
def test_changed_clothes_are_those_of_queries_with_both(world: World) -> None:
    query, gallery, distances = world
    found = changed_clothes(query, gallery, distances.__getitem__, PROTOCOLS["market"])
    ap: dict[str, list[float]] = {"same": [], "changed": []}
    for i, who in query.iterrows():
        mine = gallery[(gallery["pid"] == who.pid) & (gallery["camid"] != who.camid)]
        if mine["clothes"].eq(who.clothes).nunique() < 2:
            continue
        for name, wanted in (("same", True), ("changed", False)):
            kept = gallery[
                (gallery["pid"] != who.pid)
                | ((gallery["camid"] != who.camid) & (gallery["clothes"].eq(who.clothes) == wanted))
            ]
            alone = rank_gallery(
                query.loc[[i]],
                kept,
                lambda _, i=i, kept=kept: distances[[int(str(i))]][:, kept.index],  # type: ignore[misc]
                PROTOCOLS["market"],
            )
            ap[name].append(alone.mAP)
    if not ap["same"]:
        assert "no query has images of its person in the same clothes" in found["refused"]
        return
    assert found["queries"] == len(ap["same"])
    assert found["same"] == pytest.approx(np.mean(ap["same"]))
    assert found["changed"] == pytest.approx(np.mean(ap["changed"]))
    assert found["difference"] == pytest.approx(found["same"] - found["changed"])
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]


def test_clothes_by_person_or_unknown_say_nothing() -> None:
    random = np.random.default_rng(0)
    images = pd.DataFrame(
        {"sample_id": [*"abcdef"], "pid": [*"112233"], "camid": [1, 2] * 3, "clothes": [*"xxyyzz"]}
    )
    distances = random.random((6, 6))
    ranking = rank_gallery(images, images, distances.__getitem__, PROTOCOLS["market"], facts=FACTS)
    found = mistake_numbers(ranking, images, images, shared_clothes=False)
    assert "by person" in found["outfit"]["refused"]
    unknown = images.assign(clothes=[*"xxyyz", None])
    found = mistake_numbers(ranking, images, unknown, shared_clothes=True)
    assert "not known" in found["outfit"]["refused"]
    assert (
        "not known"
        in changed_clothes(images, unknown, distances.__getitem__, PROTOCOLS["market"])["refused"]
    )
    drawn = changed_clothes(
        images, images, distances.__getitem__, PROTOCOLS["prcc-cloth-changing-single-shot"]
    )
    assert "drawn" in drawn["refused"]
    some = mistake_numbers(ranking, images, images, shared_clothes=True, drawn=True)
    assert some["outfit"]["refused"] == "its galleries are drawn"
    assert "cameras" not in some
    many = images.assign(camid=range(6))
    wide = pd.concat([many.assign(camid=many["camid"] + 6 * i) for i in range(9)])
    assert "cameras" not in mistake_numbers(ranking, many, wide, shared_clothes=True)


@pytest.mark.finished("eval")
def test_an_evaluation_says_it(project: Project) -> None:
    streams = json.loads((project.run / "metrics.json").read_text())["protocols"]["market"][
        "streams"
    ]
    for numbers in streams.values():
        found = numbers["mistakes"]
        assert found["wrong"] == pytest.approx(1 - numbers["rank1"])
        assert np.sum(found["cameras"]["wrong"]) == pytest.approx(
            found["wrong"] * numbers["queries"]
        )
        assert "share" in found["outfit"] or "refused" in found["outfit"]
