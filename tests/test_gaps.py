"""Times of images, and how well people are found after a gap of time, against counting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskpro.stages.base.names import Name
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS, layout_of
from deskpro.stages.data.listings import OWN_LIST
from deskpro.stages.data.times import is_time, read_time, read_times
from deskpro.stages.evaluation import gaps as module
from deskpro.stages.evaluation import scores
from deskpro.stages.evaluation.gaps import GAPS, gap_numbers
from deskpro.stages.evaluation.measures import Measure
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import rank_gallery
from deskpro.stages.reporting.metrics_file import Metrics
from tests.conftest import Project, Result, slow
from tests.test_metrics import CAMERAS, RULES, Case, cases, expected_numbers

MICROSECONDS = 1_000_000
RULE = r"(?P<pid>\d+)_c(?P<camid>\d+)_(?P<time>[^_]+(?:_\d{6})?)_\d+\.png"
BODY = ("--set", "forward_mode=body", "--set", "kd_loss.enable=false", "--set", "mse.mse_weight=0")


# How times are read.


@given(st.datetimes(), st.datetimes(), st.integers(-14 * 60, 14 * 60))
def test_dates_differ_by_what_they_differ_by(one: datetime, other: datetime, zone: int) -> None:
    micro = timedelta(microseconds=1)
    for write in (datetime.isoformat, lambda time: time.strftime("%Y%m%d_%H%M%S.%f").zfill(22)):
        forms, times = zip(*(read_time(write(time)) for time in (one, other)), strict=True)
        assert times[1] - times[0] == (other - one) // micro
        assert {*forms} == {"dates with a time of day"}
    east, west = timezone(timedelta(minutes=zone)), timezone(timedelta(minutes=-zone))
    aware = one.replace(tzinfo=east), other.replace(tzinfo=west)
    zoned = [read_time(time.isoformat())[1] for time in aware]
    assert zoned[1] - zoned[0] == (aware[1] - aware[0]) // micro
    days = [read_time(time.date().isoformat()) for time in (one, other)]
    assert {form for form, _ in days} == {"dates"}
    assert days[1][1] - days[0][1] == (other.date() - one.date()) // micro


@given(st.decimals(-(10**11) + 1, 10**11 - 1, places=6))
def test_seconds_are_kept_to_the_microsecond(seconds: Decimal) -> None:
    assert read_time(f"{seconds:f}") == ("seconds", int(seconds * MICROSECONDS))


@pytest.mark.slow
@given(st.text(max_size=30) | st.from_regex(r"[\d\-+:.TZ _]{0,25}", fullmatch=True))
def test_no_text_breaks_the_reader(text: str) -> None:
    assert is_time(text) in (True, False)


@pytest.mark.parametrize(
    "text", ["noon", "", "1e9", "2024-02-30", "2024-3-1", "20240301123000", "10:30", "2024-03",
             "2024-03-01T", "2024-03-01T25:00", "2024-03-01T12:30:00 +01:00", "١٢", "nan", "1,5"],
)  # fmt: skip
def test_what_is_no_time_is_refused_by_name(text: str) -> None:
    names = [f"query/{i}.jpg" for i in range(6)]
    times, why = read_times(names, ["1", None, text, text, text, text])
    assert times == [None] * 6
    first = ", ".join(f"{text!r} of {name}" for name in names[2:5])
    assert why.startswith(f"time {first} and 1 more: must be seconds")


@pytest.mark.parametrize(
    ("texts", "odd", "counts"),
    [(["1", "2.5", "2024-03-01"], 2, "dates (1) and seconds (2)"),
     (["2024-03-01T10:00", "2024-03-01", "2024-03-02"], 0, "day (1) and dates (2)"),
     (["2024-03-01T10:00Z", "2024-03-01T10:00", "2024-03-02T10:00+01:00"], 1,
      "dates with a time of day (1) and dates with a time of day and a time zone (2)")],
)  # fmt: skip
def test_times_of_several_forms_are_refused_by_the_rarest(
    texts: list[str], odd: int, counts: str
) -> None:
    times, why = read_times(["a", "b", "c"], texts)
    assert times == [None] * 3
    assert counts in why
    assert why.endswith(f": {texts[odd]!r} of {'abc'[odd]}")


def test_digits_that_look_like_dates_are_no_seconds() -> None:
    assert "look like dates" in read_times(["a", "b"], ["20240301", "20241231"])[1]
    assert "look like dates" in read_times(["a", "b"], ["2024030110", "2024030123"])[1]
    assert read_times(["a", "b"], ["20240301", "20249901"])[1] == ""
    assert read_times(["a", "b"], [None, None]) == ([None, None], "")


def test_deepchange_s_names_have_times() -> None:
    parse = LAYOUTS["deepchange"].parse
    name = parse("test-set-query/P0702_C13_20200813_154757_000038_bbox.jpg")
    assert name == Name("0702", 13, time="20200813_154757")
    taken = datetime(2020, 8, 13, 15, 47, 57, tzinfo=UTC)
    assert read_time("20200813_154757")[1] == MICROSECONDS * taken.timestamp()
    for other in ("P1_C1_20201399_154757_1.jpg", "P1_C1_2_3.jpg", "P1_C1_20200813_7_1.jpg"):
        assert parse(f"train-set/{other}") == Name("1", 1)


# Rankings under a gap.


def between(one: Any, other: Any) -> int:
    """How much time lies between two images, or tracklets, at least."""
    ends = [(who.time, getattr(who, "time_end", who.time)) for who in (one, other)]
    (start, end), (first, last) = ends
    return int(max(first - end, start - last, 0))


@st.composite
def timed_cases(draw: st.DrawFn) -> Case:
    """Those of `cases`, some of which last; few distinct times, so that many are equal."""
    query, gallery, distances = draw(cases())
    lasts = draw(st.booleans())

    def timed(table: pd.DataFrame) -> pd.DataFrame:
        def seconds(most: int) -> np.ndarray:
            count = len(table)
            found = draw(st.lists(st.integers(0, most), min_size=count, max_size=count))
            return np.array(found) * MICROSECONDS

        table = table.assign(time=(1_709_251_200 * MICROSECONDS + seconds(9)).astype(object))
        return table.assign(time_end=table["time"] + seconds(3)) if lasts else table

    if draw(st.booleans()):  # a distance may be infinite
        distances = np.where(distances > distances.mean(), np.float32(np.inf), distances)
    return timed(query), timed(gallery), distances


@pytest.mark.parametrize(
    "name", ["market", "cloth-changing", "prcc-same-clothes", "celeb-official"]
)
@given(case=timed_cases(), block=st.integers(1, 5), gap=st.integers(0, 6), others=st.integers(0, 6))
def test_rankings_under_a_gap_are_those_of_brute_force(
    name: str, case: Case, block: int, gap: int, others: int
) -> None:
    query, gallery, distances = case
    before = distances.copy()
    of_query, of_gallery = CAMERAS.get(name, ({1, 2, 3, 4}, {1, 2, 3, 4}))
    numbers, skipped = [], 0
    for i, who in query[query.camid.isin(of_query)].iterrows():
        hit = {}
        for j, other in gallery[gallery.camid.isin(of_gallery)].iterrows():
            same = other.pid == who.pid
            soon = between(who, other) < MICROSECONDS * (gap if same else others)
            if not soon and not (same and RULES[name](who, other)):
                hit[j] = same
        found = expected_numbers(name, distances[int(str(i))], hit)  # type: ignore[arg-type]
        skipped += found is None
        numbers += [] if found is None else [found]
    rule = replace(PROTOCOLS[name], gap=gap, gap_of_others=others)
    ranking = rank_gallery(query, gallery, lambda rows: distances[rows], rule, block=block)
    assert (len(ranking.queries), ranking.skipped) == (len(numbers), skipped)
    if numbers:
        table = np.asarray(numbers)
        columns = ranking.queries[["ap", "inp", "first", "rank1"]].to_numpy()
        np.testing.assert_allclose(columns, table[:, :4], rtol=0, atol=1e-9)
        np.testing.assert_allclose(ranking.cmc(10), table[:, 3:].mean(0), rtol=0, atol=1e-9)
    np.testing.assert_array_equal(distances, before)  # what a measure gave stays as it was


# The rows of an evaluation.


def by_chance(images: int, positives: int) -> float:
    """AP of a random order: at each place a hit, and how many of the others come before it."""
    others = (positives - 1) / max(images - 1, 1)
    return sum((1 + (place - 1) * others) / place for place in range(1, images + 1)) / images


def world(seed: int, least: int) -> tuple[pd.DataFrame, pd.DataFrame, Measure]:
    """Fourteen people over two months, some of whom come back; distances with ties."""
    random = np.random.default_rng(seed)
    steps = np.array([0, 0, 30, 60, 600, 3_600, 86_400, 700_000, 3_000_000])

    def images(split: str, count: int) -> pd.DataFrame:
        return pd.DataFrame({
            "sample_id": [f"{split}{i}" for i in range(count)],
            "row": range(count),
            "pid": random.integers(0, 14, count).astype(str),
            "camid": random.integers(1, 4, count),
            "clothes": random.integers(0, 2, count).astype(str),
            "time": (random.choice(steps, count) * MICROSECONDS).astype(object),
        })  # fmt: skip

    query, gallery = images("q", 3 * least), images("g", 40)
    distances = random.integers(0, 25, (len(query), 40)).astype(np.float32)

    def measure(asked: pd.DataFrame, shown: pd.DataFrame) -> Callable[[slice], np.ndarray]:
        return lambda rows: distances[asked["row"].to_numpy()[rows]][:, shown["row"].to_numpy()]

    return query, gallery, measure


Pairs = dict[str, list[tuple[int, bool, int]]]
"""Query → the gallery images that a protocol doesn't remove: place, whether of its person, and how
much time lies between."""


def compared(query: pd.DataFrame, gallery: pd.DataFrame, name: str) -> Pairs:
    shown = [*gallery.itertuples(index=False)]
    return {
        who.sample_id: [
            (j, other.pid == who.pid, between(who, other))
            for j, other in enumerate(shown)
            if not (other.pid == who.pid and RULES[name](who, other))
        ]
        for who in query.itertuples(index=False)
    }


def scored(
    drawn: tuple[pd.DataFrame, pd.DataFrame, Measure], pairs: Pairs, gap: int, others: int
) -> pd.DataFrame:
    """ap, rank1, chance and images of each query with a positive, one after the other."""
    query, gallery, measure = drawn
    distances, rows = measure(query, gallery)(slice(None)), []
    for row, who in zip(distances, query.itertuples(index=False), strict=True):
        hit = {
            j: same
            for j, same, apart in pairs[who.sample_id]
            if apart >= MICROSECONDS * (gap if same else others)
        }
        found = expected_numbers("", row, hit)
        if found is not None:
            chance = by_chance(len(hit), sum(hit.values()))
            rows.append((who.sample_id, who.pid, found[0], found[3], chance, len(hit)))
    columns = ["sample_id", "pid", "mAP", "rank1", "chance", "gallery"]
    return pd.DataFrame(rows, columns=columns).set_index("sample_id")


def spread(values: np.ndarray, identities: np.ndarray) -> list[float]:
    """In the place of an interval, which takes longer: says whose values it was given."""
    means = pd.Series(values).groupby(identities).mean()
    return [float(means.min()), float(means.max())]


def require_equal(found: dict[str, Any], expected: pd.DataFrame) -> None:
    assert found["queries"] == len(expected)
    assert found["identities"] == expected["pid"].nunique()
    for key in ("mAP", "rank1", "chance", "gallery"):
        assert found[key] == pytest.approx(expected[key].mean()), key
    for key in ("mAP", "rank1"):
        ends = spread(expected[key].to_numpy(), expected["pid"].to_numpy())
        assert found["interval"][key] == pytest.approx(ends), key


@pytest.mark.parametrize("name", [*slow("market"), "cloth-changing"])
@given(seed=st.integers(0, 10_000), least=st.integers(3, 12))
def test_rows_of_gaps_are_counted_one_by_one(name: str, seed: int, least: int) -> None:
    drawn = world(seed, least)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LEAST", least)
        for place in (module, scores):
            patch.setattr(place, "interval", spread)
        found = gap_numbers(*drawn, PROTOCOLS[name])
    pairs = compared(*drawn[:2], name)
    expected = {gap: scored(drawn, pairs, seconds, seconds) for gap, seconds in GAPS.items()}
    people = {gap: rows["pid"].nunique() for gap, rows in expected.items()}
    enough = [gap for gap in GAPS if people[gap] >= least]
    if not enough:
        why = f"{people['none']} identities have a positive, {least} are needed"
        assert found == {"refused": why}
        return
    assert [row["gap"] for row in found["rows"]] == enough
    assert found["few"] == {
        gap: {"queries": len(expected[gap]), "identities": people[gap]}
        for gap in GAPS if gap not in enough
    }  # fmt: skip
    last, most = expected[enough[-1]].index, GAPS[enough[-1]]
    base = scored(drawn, pairs, 0, most).loc[last]
    for row in found["rows"]:
        require_equal(row, expected[row["gap"]])
        assert row["skipped"] == len(drawn[0]) - row["queries"]
        same = scored(drawn, pairs, row["seconds"], most).loc[last]
        require_equal(row["same"], same)
        change = (same["mAP"] - base["mAP"]).to_numpy()
        assert row["same"]["difference"] == pytest.approx(change.mean(), abs=1e-12)
        ends = spread(change, same["pid"].to_numpy())
        assert row["same"]["interval"]["difference"] == pytest.approx(ends, abs=1e-12)


def test_drawn_galleries_have_no_gaps() -> None:
    drawn = world(0, 10)
    name = "prcc-cloth-changing-single-shot"
    assert gap_numbers(*drawn, PROTOCOLS[name]) == {"refused": "its galleries are drawn"}


# Real files.

OFFSETS = (30, 300, 7_200, 2 * 86_400)
"""Seconds after the query at which a person's gallery images were taken."""


def place(root: Path, form: Callable[[int], str], by: str = "rule", people: int = 12) -> Path:
    """A dataset in place of some people: a query each, and a gallery image at each of `OFFSETS`.

    form: writes seconds. Returns features by which only images of the same hour are found.
    """
    rows, features = [], {}
    for person in range(people):
        start = 100_000 * person + 5
        for split, camera, seconds in (
            ("train", 1, [0, 1]), ("query", 1, [0]), ("gallery", 2, OFFSETS),
        ):  # fmt: skip
            for number, later in enumerate(seconds):
                who = person + 50 * (split == "train")
                time = form(start + later)
                path = root / split / f"{who}_c{camera}_{time}_{number}.png"
                path = path if by == "rule" else path.with_name(f"{who}-{number}.png")
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 16), (20 * person, 40 * number, 90)).save(path)
                name = path.relative_to(root).as_posix()
                rows.append((name, split, who, camera, time, f"{number // 2}"))
                if split != "train":
                    near_by = later < 3_600
                    features[name] = np.eye(people)[person if near_by else (person + 1) % people]
    if by == "list":
        columns = ["path", "split", "pid", "camid", "time", "tracklet"]
        pd.DataFrame(rows, columns=columns).to_csv(root / OWN_LIST, index=False)
    file = root.with_name("features.npz")
    np.savez(file, paths=[*features], mine=np.stack([*features.values()]))
    return file


def since_2024(zone: str = "") -> Callable[[int], str]:
    start = datetime(2024, 2, 28, 22, 30)
    return lambda seconds: (start + timedelta(seconds=seconds)).isoformat() + zone


def evaluated(command: Callable[..., Result], root: Path, file: Path, *more: str) -> dict[str, Any]:
    run = root.with_name("run")
    words = ("eval", "--features", str(file), "--data", str(root), "--run", str(run), "--force")
    result = command(*words, *more)
    assert result.code == 0, result.err
    report = json.loads((run / "metrics.json").read_text())
    Metrics.model_validate(report)
    return report  # type: ignore[no-any-return]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by", "form"),
    [("rule", str), ("rule", lambda t: since_2024()(t).replace("-", "").replace(":", "")),
     ("list", lambda t: f"{t}.25"), ("list", since_2024("+01:00"))],
    ids=["seconds", "compact", "list", "zones"],
)  # fmt: skip
def test_gaps_of_a_dataset_in_place(
    by: str, form: Callable[[int], str], command: Callable[..., Result], tmp_path: Path
) -> None:
    root = tmp_path / "mine"
    file = place(root, form, by)
    rule = ("--set", f"data.name={RULE}") * (by == "rule")
    given_by = RULE if by == "rule" else "csv"
    index, problems = read_index(root, layout_of(root, given_by))
    assert not problems
    first = index[index["pid"] == "0"].set_index("split")["time"]
    later = sorted(first["gallery"] - first["query"])
    assert later == [MICROSECONDS * seconds for seconds in OFFSETS]

    words = ("check-data", "--config", "demo", "--run", str(tmp_path / "run"), *BODY, "--explain")
    explained = command(*words, "--set", f"data.root={root}", *rule).out
    assert form(5)[-8:] in explained

    report = evaluated(command, root, file, *rule)
    gaps = report["protocols"]["market"]["streams"]["mine"]["gaps"]
    assert [row["gap"] for row in gaps["rows"]] == ["none", "1 min", "10 min", "1 h", "1 day"]
    assert gaps["few"] == {gap: {"queries": 0, "identities": 0} for gap in ("1 week", "30 days")}
    plain = report["protocols"]["market"]["streams"]["mine"]
    assert {key: gaps["rows"][0][key] for key in ("mAP", "rank1", "queries")} == {
        key: plain[key] for key in ("mAP", "rank1", "queries")
    }
    # The images of the same hour are as near as later ones of the person before.
    assert gaps["rows"][0]["rank1"] >= 0.5
    assert [row["same"]["queries"] for row in gaps["rows"]] == [12] * 5
    assert gaps["rows"][-1]["rank1"] < 0.2
    assert gaps["rows"][-1]["same"]["interval"]["difference"][1] < 0

    page = tmp_path / "run" / "report.html"
    assert command("report", str(tmp_path / "run")).code == 0
    assert "By gap of time" in page.read_text()
    assert page.read_text().count('from none">–</td></tr>') >= 1


def test_a_tracklet_lasts_from_its_first_to_its_last_image(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    root = tmp_path / "mine"
    file = place(root, str, "list")
    report = evaluated(command, root, file, "--set", "eval.unit=tracklet")
    gaps = report["protocols"]["market"]["streams"]["mine"]["gaps"]
    # The first tracklet begins 30 s after the query, the second 2 h; it ends after two days.
    assert [row["gap"] for row in gaps["rows"]] == ["none", "1 min", "10 min", "1 h"]
    assert gaps["rows"][0]["gallery"] == 24
    # Each but the first query falls into the second tracklet of the one before, 100,000 s earlier.
    assert gaps["rows"][1]["gallery"] == pytest.approx((23 + 11 * 22) / 12)


def test_times_of_some_images_alone_give_no_gaps(
    command: Callable[..., Result], tmp_path: Path
) -> None:
    root = tmp_path / "mine"
    file = place(root, str, "list")
    table = pd.read_csv(root / OWN_LIST, dtype=str)
    table.loc[table["path"] == "gallery/0-1.png", "time"] = ""
    table.to_csv(root / OWN_LIST, index=False)
    report = evaluated(command, root, file)
    why = report["protocols"]["market"]["streams"]["mine"]["gaps"]["refused"]
    assert why == "times are not known of 1 of 60 images, gallery/0-1.png for one"


def test_too_few_people_give_no_gaps(command: Callable[..., Result], tmp_path: Path) -> None:
    file = place(tmp_path / "mine", str, "list", people=9)
    report = evaluated(command, tmp_path / "mine", file)
    found = report["protocols"]["market"]["streams"]["mine"]["gaps"]
    assert found == {"refused": "9 identities have a positive, 10 are needed"}
    assert command("report", str(tmp_path / "run")).code == 0


BAD: dict[str, tuple[Callable[[int], str], Sequence[str]]] = {
    "unreadable": (lambda t: f"{t}s", ("must be seconds", "'5s' of query/0_c1_5s_0.png")),
    "mixed": (
        lambda t: since_2024()(t).replace(":", "") if t == 5 else f"{t}",
        ("must have one form in a dataset, here are dates with a time of day (1) and seconds (59)",
         ": '2024-02-28T223005' of query/0_c1_2024-02-28T223005_0.png"),
    ),
    "zones of some": (
        lambda t: since_2024("Z" * (t == 5))(t).replace(":", ""),
        ("and a time zone (1) and dates",),
    ),
    "dates as numbers": (lambda t: f"202403{t % 28 + 1:02}", ("look like dates",)),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_times_are_refused_in_one_line(
    what: str, command: Callable[..., Result], tmp_path: Path
) -> None:
    form, expected = BAD[what]
    root, run = tmp_path / "mine", tmp_path / "run"
    file = place(root, form)
    words = ("eval", "--features", str(file), "--data", str(root), "--run", str(run))
    result = command(*words, "--set", f"data.name={RULE}")
    assert result.code == 2
    lines = [line for line in result.err.splitlines() if "time" in line]
    assert len(lines) == 1
    for part in expected:
        assert part in lines[0]
    assert not run.exists()


@pytest.mark.finished("eval")
def test_without_times_an_evaluation_is_as_before(project: Project) -> None:
    text = (project.run / "metrics.json").read_text()
    report = json.loads(text)
    assert "gaps" not in text
    root = project.data
    images = read_index(root, layout_of(root, "benchmark"), ("query", "gallery"))[0]
    facts = ["sample_id", "pid", "camid", "clothes", "scene", "tracklet"]
    labels = images.sort_values("sample_id")[facts].to_csv(index=False)
    digest = hashlib.sha256(labels.encode()).hexdigest()
    assert report["data"]["digests"]["labels"] == digest
