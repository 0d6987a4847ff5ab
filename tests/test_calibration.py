"""What scores mean: fitted on held-out people, kept with the student, used by the encoder."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from deskpro import Encoder, Features
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.data.benchmark import BenchmarkOptions, make_benchmark
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.evaluation.validation import Validation
from deskpro.stages.metrics.calibration import (
    CASES,
    calibration_name,
    face_cases,
    fit_case,
    log_ratios,
)
from deskpro.stages.metrics.fusion import Fusion
from deskpro.stages.metrics.intervals import combined, pair_interval
from deskpro.stages.metrics.verification import Evidence, allowed
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import load_student, read_metadata, save
from tests.conftest import TINY, Result


def some_scores(genuine: int, impostors: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores of equal variance, whose log-likelihood ratio is 8·score − 4."""
    random = np.random.default_rng(seed)
    scores = np.concatenate([random.normal(1, 0.354, genuine), random.normal(0, 0.354, impostors)])
    return scores.astype(np.float32), np.arange(genuine + impostors) < genuine


def two_of_ten(scores: np.ndarray) -> np.ndarray:
    """People of pairs, in turn."""
    return np.stack(np.divmod(np.arange(len(scores)) % 90, 9))


def test_ratios_are_those_of_the_classes_whatever_their_sizes() -> None:
    scores, same = some_scores(3000, 90_000)
    case = fit_case(scores, same, two_of_ten(scores))
    assert case.slope == pytest.approx(8, rel=0.05)
    assert case.bias == pytest.approx(-4, abs=0.2)
    fresh, shown = some_scores(20_000, 20_000, seed=1)
    ratios = log_ratios({"none-none": case}, fresh, 2)
    assert ratios.dtype == np.float32
    found = Evidence()
    found.add(ratios[shown], True)
    found.add(ratios[~shown], False)
    assert found.error() < 0.01
    assert found.cllr() < 0.35


def test_the_fit_is_where_the_weighted_likelihood_is_highest() -> None:
    scores, same = some_scores(40, 300)
    case = fit_case(scores, same, two_of_ten(scores))
    scale = scores.astype(np.float64).std()

    def cost(slope: float, bias: float) -> float:
        """Both classes count as 40 pairs; a normal prior of the slope in units of the spread."""
        odds = slope * scores.astype(np.float64) + bias
        costs = np.logaddexp(0, np.where(same, -odds, odds))
        return float(40 * (costs[same].mean() + costs[~same].mean()) + (slope * scale) ** 2 / 2)

    assert case.slope is not None
    assert case.bias is not None
    best = cost(case.slope, case.bias)
    for slope, bias in ((0.01, 0), (-0.01, 0), (0, 0.01), (0, -0.01)):
        assert cost(case.slope + slope, case.bias + bias) > best


def test_what_says_nothing_or_the_opposite_is_not_calibrated() -> None:
    scores, same = some_scores(200, 200)
    for spoiled, flags, why in (
        (-scores, same, "don't speak for one person"),
        (np.zeros(400), same, "don't speak for one person"),
        (scores[181:], same[181:], "19 pairs of one held-out person and 200 of two"),
        (scores[:210], same[:210], "200 pairs of one held-out person and 10 of two"),
        (scores[:0], same[:0], "0 pairs of one held-out person"),
    ):
        case = fit_case(spoiled, flags, two_of_ten(spoiled))
        assert (case.slope, case.bias) == (None, None)
        assert why in case.reason
        assert np.isnan(log_ratios({"face-face": case}, np.zeros(2), 0)).all()


def test_pairs_that_a_line_separates_have_finite_ratios() -> None:
    same = np.arange(100) < 50
    case = fit_case(same * 1.0, same, two_of_ten(same))
    assert case.slope is not None
    assert 0 < case.slope < 100


@given(st.integers(10, 3000), st.integers(1, 40), st.integers(0, 99), st.floats(1e-4, 0.5))
def test_thresholds_accept_at_most_what_they_promise(
    impostors: int, values: int, seed: int, far: float
) -> None:
    random = np.random.default_rng(seed)
    scores = np.float32(random.integers(0, values, impostors) / 7)
    case = fit_case(scores, np.zeros(impostors, bool), two_of_ten(scores))
    assert all(b >= a for a, b in pairwise(case.thresholds))
    limit = case.threshold(far)
    lower = 10 ** (-math.ceil(-math.log10(far) * 10 - 1e-6) / 10)  # the next that is kept
    if limit is None:
        assert impostors * lower < 10
        assert far < case.lowest_far
        return
    steps = -10 * math.log10(far)
    assert (scores >= limit).mean() <= 10 ** (-math.floor(steps) / 10)  # between two, the looser
    if abs(steps - round(steps)) < 1e-9:
        assert (scores >= limit).sum() <= allowed(far, impostors)
        lower_scores = scores[scores < limit]
        if len(lower_scores):  # one step lower and it accepts too many
            assert (scores >= lower_scores.max()).sum() > allowed(far, impostors)


def test_thresholds_at_powers_of_ten_are_exact() -> None:
    scores = np.arange(10_000, dtype=np.float32)
    case = fit_case(scores, np.zeros(10_000, bool), two_of_ten(scores))
    for far in (1e-1, 1e-2, 1e-3):
        limit = case.threshold(far)
        assert limit is not None
        assert (scores >= limit).sum() == 10_000 * far
    assert case.threshold(9e-4) is None
    assert case.interval(9e-4) is None
    assert len(case.intervals) == len(case.thresholds)
    assert case.interval(2.2e-2) == case.interval(2e-2) == case.intervals[14]
    for far in (1e-1, 1e-2, 1e-3):
        low, high = case.interval(far) or (1, 0)
        assert 0 <= low < far < high <= 1
    assert case.lowest_far == pytest.approx(1e-3)


def scores_of_people(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of 20 pairs of each two of some people, of whom some resemble all others more."""
    random = np.random.default_rng(seed)
    alike = random.normal(0, 0.3, count)
    people = np.stack(np.triu_indices(count, 1)).repeat(20, axis=1)
    return random.normal(alike[people].sum(0), 1).astype(np.float32), people


def test_the_interval_at_a_threshold_covers_what_was_stated() -> None:
    """The threshold of one sample of people on another: about 95 % of 200 intervals have the stated
    rate; of those of the tested people alone, which take it for exact, fewer."""
    alone = both = 0
    for seed in range(200):
        scores, people = scores_of_people(2 * seed, 25)
        case = fit_case(scores, np.zeros(len(scores), bool), people)
        limit, stated = case.threshold(0.01), case.interval(0.01)
        assert limit is not None
        assert stated is not None
        others, shown = scores_of_people(2 * seed + 1, 60)
        accepted = np.stack([np.bincount(p[others >= limit], minlength=60) for p in shown])
        own = pair_interval(accepted, np.stack([np.bincount(p, minlength=60) for p in shown]))
        low, high = combined(float((others >= limit).mean()), own, stated)
        alone += own[0] <= 0.01 <= own[1]
        both += low <= 0.01 <= high
    assert 0.91 <= both / 200 <= 0.99
    assert alone / 200 < 0.85


def test_intervals_that_reach_0_or_1_are_joined() -> None:
    assert combined(0.1, [0.05, 0.2], [0.0, 0.5]) == [0, 0.5]
    assert combined(0.0, [0.0, 0.3], [0.1, 0.2]) == [0, 0.3]
    assert combined(0.1, [0.05, 0.2]) == pytest.approx([0.05, 0.2])


def test_names_tell_how_streams_are_weighed() -> None:
    assert calibration_name("face") == "face"
    assert calibration_name("all", Fusion.fixed(0.5)) == "all, 0.5"
    assert calibration_name("all", Fusion(3.0, 1.5, -2.0, 2.5, -1.0)) == "all, fitted"
    cases = face_cases(np.array([True, False]), np.array([True, False, True]))
    assert cases.tolist() == [[0, 1, 0], [1, 2, 1]]


# Of a student


@pytest.fixture(scope="module")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images of a few people, of which some have no face."""
    folder = tmp_path_factory.mktemp("people") / "data"
    more = {"train_identities": 8, "train_images": 12, "train_back_views": 0.4}
    make_benchmark(folder, TINY.model_copy(update=more), workers=1)
    return folder


def a_student(
    folder: Path, people: Path, run: Path, mode: str = "all"
) -> tuple[Path, pd.DataFrame]:
    """Streams of a run's student, with what the people tell of it; and their images."""
    trained, info = load_student(run / "student.safetensors")
    arguments = {**info.network, "forward_mode": mode}
    options = Options.model_validate(
        {
            "forward_mode": mode,
            "data": {"root": str(people), "face_size": info.face_size, "body_size": info.body_size},
        }
    )
    # All pairs count, so that a network of a few steps knows people by their clothes.
    table = read_index(people, LAYOUTS["benchmark"], ("train",))[0]
    table = table.assign(clothes=None, camid=range(len(table)))
    student = Student(info.num_classes, **arguments).eval()
    for stream, network in student.streams.items():
        network.load_state_dict(trained.streams[stream].state_dict())
    facts = Validation.of(student, table, options, torch.device("cpu")).facts()
    save(folder / f"{mode}.safetensors", student, replace(info, network=arguments, **facts))
    return folder / f"{mode}.safetensors", table


@pytest.fixture(scope="module")
def run(finished_run: Callable[[str], Path]) -> Path:
    return finished_run("train-student")


@pytest.fixture(scope="module")
def student(
    people: Path, run: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, pd.DataFrame]:
    return a_student(tmp_path_factory.mktemp("student"), people, run)


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["fitted", 0.5])
def test_the_encoder_decides_as_held_out_people_told(
    weight: Any, student: tuple[Path, pd.DataFrame]
) -> None:
    path, table = student
    encoder = Encoder.load(path, "cpu", face_weight=weight)
    faces = [None if pd.isna(face) else face for face in table["lr_face"]]
    features = encoder(table["imgs"].tolist(), faces)
    scores, odds = encoder.similarity(features, features), encoder.odds(features, features)
    pids = table["pid"].to_numpy()
    first, second = np.triu_indices(len(table), 1)
    cases = face_cases(features.has_face, features.has_face)[first, second]
    pairs, two = scores[first, second], pids[first] != pids[second]
    found = encoder.calibration()
    assert [*found] == [*CASES]
    limits = encoder.threshold(0.1)
    for place, name in enumerate(CASES):
        impostors = pairs[two & (cases == place)]
        assert len(impostors) == found[name].impostors
        # The encoder resizes and sums in another order: a few pairs may be on the other side.
        accepted, most = (impostors >= limits[name]).sum(), allowed(0.1, len(impostors))
        assert accepted <= most + 3
        if len(np.unique(impostors)) > 1:  # else the body counts nothing: all or none
            assert accepted >= most - 3
        rows = cases == place
        order = np.argsort(pairs[rows])
        ratios = odds[first, second][rows][order]
        if found[name].slope is None:
            assert found[name].reason
            assert np.isnan(ratios).all()
        else:
            assert (np.diff(ratios) >= 0).all()
    assert any(case.slope is not None for case in found.values())
    with pytest.raises(InputError, match=r"far is 1e-05; .* 1,000,000 are needed"):
        encoder.threshold(1e-5)
    for far in (0, 1, -1, 0.6, float("nan"), "1e-3", True):
        with pytest.raises(InputError, match="must be above 0"):
            encoder.threshold(far)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_gallery_decides_by_them(
    student: tuple[Path, pd.DataFrame], command: Callable[..., Result], tmp_path: Path
) -> None:
    path, table = student
    folder, gallery = tmp_path / "photos", tmp_path / "gallery"
    for kind in ("imgs", "faces"):
        (folder / kind).mkdir(parents=True)
    for row in table.itertuples():
        shutil.copy(row.imgs, folder / "imgs")
        if not pd.isna(row.lr_face):
            shutil.copy(row.lr_face, folder / "faces" / Path(row.imgs).name)
    words = ("--student", str(path), "--faces", str(folder / "faces"))
    assert command("gallery", "add", str(gallery), str(folder / "imgs"), *words).code == 0
    pictures = [str(each) for each in sorted((folder / "imgs").iterdir())]
    how = ("--faces", str(folder / "faces"), "--top", "1000", "--format", "json", "--far")
    result = command("gallery", "search", str(gallery), pictures[0], pictures[-1], *how, "0.1")
    hits = json.loads(result.out)
    encoder = Encoder.load(path, "cpu")
    limits, calibration = encoder.threshold(0.1), encoder.calibration()
    assert result.code == 0, result.err
    assert all(f"{limit:.3f} {case}" in result.err for case, limit in limits.items())
    assert 2 <= len(hits) < 2 * len(pictures)
    for hit in hits:
        assert hit["score"] >= limits[hit["case"]]
        case = calibration[hit["case"]]
        if case.slope is None or case.bias is None:
            assert hit["odds"] is None
        else:
            assert hit["odds"] == pytest.approx(case.slope * hit["score"] + case.bias, abs=1e-4)
    # A rate at which some case has too few pairs: its pairs are left out, and counted.
    lowest = {name: case.lowest_far for name, case in calibration.items()}
    far = min(lowest.values())
    missing = [name for name, rate in lowest.items() if rate > far * (1 + 1e-6)]
    assert missing
    result = command("gallery", "search", str(gallery), *pictures, *how, str(far))
    assert {hit["case"] for hit in json.loads(result.out)}.isdisjoint(missing)
    assert all(f"pairs {name} are left out" in result.err for name in missing)


def test_a_face_weight_without_calibration_is_refused(student: tuple[Path, pd.DataFrame]) -> None:
    encoder = Encoder.load(student[0], "cpu", face_weight=0.3)
    nobody = Features(np.zeros((0, encoder.dim), np.float32), np.zeros(0, bool))
    with pytest.raises(InputError, match=r"no calibration for 0.3; .* for fitted and 0.5"):
        encoder.odds(nobody, nobody)


@pytest.mark.slow
def test_features_without_mirror_images_have_no_calibration(
    student: tuple[Path, pd.DataFrame],
    people: Path,
    run: Path,
    tmp_path: Path,
    command: Callable[..., Result],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """It was fitted on features with them; so were the weights of the streams, which are kept."""
    copied = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.copy(student[0], copied / "student.safetensors")
    assert Encoder.load(copied, "cpu").calibration()
    recipe = yaml.safe_load((copied / "config.yaml").read_text())
    recipe["eval"] = {"flip": False, "face_weight": "fitted"}
    (copied / "config.yaml").write_text(yaml.safe_dump(recipe))
    capfd.readouterr()
    encoder = Encoder.load(copied, "cpu")
    assert (
        "eval.flip is false, calibration and thresholds of held-out people"
        in capfd.readouterr().err
    )
    assert encoder.source.fusion is not None
    assert not encoder.calibration_if_any()
    with pytest.raises(InputError, match=r"eval\.flip is off"):
        encoder.threshold(0.1)

    alone = ("eval", "--checkpoint", str(student[0]), "--data", str(people), "--dataset",
             "benchmark", "--run", str(tmp_path / "out"), "--set", "device=cpu")  # fmt: skip
    result = command(*alone, "--set", "eval.flip=false", "--set", "eval.enrich.enable=true")
    assert "enrich.far 0.001: needs a threshold of face scores from held-out people" in result.err
    result = command(*alone, "--set", "eval.flip=false", "--set", "eval.enrich.enable=false")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    pairs = report["protocols"]["market"]["streams"]["face"]["verification"]["face-face"]
    assert "no calibration" in pairs["held_out"]["0.01"]["refused"]


@pytest.mark.slow
def test_students_of_one_stream_have_one_case(people: Path, run: Path, tmp_path: Path) -> None:
    for mode, case in (("face", "face-face"), ("body", "none-none")):
        path, _ = a_student(tmp_path, people, run, mode)
        info = read_metadata(path)
        assert info.fusion is None
        assert info.calibration is not None
        assert [*info.calibration] == [mode]
        assert [*info.calibration[mode]] == [case]
        assert [*Encoder.load(path, "cpu").threshold(0.1)] == [case]


@pytest.mark.slow
def test_an_older_student_loads_and_says_what_it_lacks(
    student: tuple[Path, pd.DataFrame], tmp_path: Path
) -> None:
    network, info = load_student(student[0])
    save(tmp_path / "student.safetensors", network, replace(info, calibration=None))
    with safe_open(tmp_path / "student.safetensors", framework="pt") as file:
        fields = json.loads(file.metadata()["deskpro"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    del fields["calibration"]
    old = tmp_path / "old.safetensors"
    save_file(tensors, old, {"deskpro": json.dumps(fields)})
    encoder = Encoder.load(old, "cpu")
    nobody = Features(np.zeros((0, encoder.dim), np.float32), np.zeros(0, bool))
    for ask in (lambda: encoder.odds(nobody, nobody), encoder.threshold):
        with pytest.raises(InputError, match=r"data\.validation=0.1"):
            ask()

    fields["calibration"] = asdict(read_metadata(student[0]))["calibration"]
    for spoil, said in SPOILED.items():
        spoiled = json.loads(json.dumps(fields))
        said(spoiled["calibration"]["face"]["face-face"])
        save_file(tensors, old, {"deskpro": json.dumps(spoiled)})
        with pytest.raises(InputError, match=spoil):
            read_metadata(old)


SPOILED: dict[str, Callable[[dict[str, Any]], Any]] = {
    "slope must be above 0": lambda case: case.update(slope=-1.0, bias=0.0),
    "go together": lambda case: case.update(slope=1.0, bias=None),
    "1 intervals of": lambda case: case.update(intervals=[[0, 1]]),
    r"intervals\.0\.1 is 2": lambda case: case.update(intervals=[[0, 2]]),
    "must not fall": lambda case: case.update(thresholds=[1.0, 0.5]),
    r"thresholds\.0 is nan": lambda case: case.update(thresholds=[math.nan]),
    r"genuine is -1": lambda case: case.update(genuine=-1),
    r"more": lambda case: case.update(more=1),
    r"reason": lambda case: case.pop("reason"),
}
"""What the error says → what was done to a case."""


def test_the_benchmark_of_these_tests_has_pairs_of_every_case(people: Path) -> None:
    assert isinstance(TINY, BenchmarkOptions)
    faces = read_index(people, LAYOUTS["benchmark"], ("train",))[0]["lr_face"].notna()
    assert 0.3 < faces.mean() < 0.9
