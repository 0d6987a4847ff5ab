"""Held-out identities: who they are, what they measure, and the weights that they fit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from deskpro.pipeline import config
from deskpro.pipeline.runner import run_stage
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.identities import Identities
from deskpro.stages.metrics.fusion import Fusion, fit_fusion
from deskpro.stages.models.weights import load_student, read_metadata
from tests.conftest import Project
from tests.test_join_streams import joined
from tests.test_stages import weights

HELD_OUT = "data.validation=0.5"
"""Of the tiny benchmark's four training identities, by their names, 0001 and 0007."""


def table(pids: list[str]) -> pd.DataFrame:
    """Two training images and a query of each identity."""
    rows = [(pid, split) for pid in pids for split in ("train", "train", "query")]
    return pd.DataFrame(rows, columns=["pid", "split"])


def roles(pids: list[str], chosen: Identities) -> dict[str, str]:
    """Identity → the split of its training images; absent where they are not used."""
    found = chosen.choose(table(pids))
    assert (found["split"] == "query").sum() == len(pids)
    return dict(zip(*found.loc[found["split"] != "query", ["pid", "split"]].T.values, strict=True))


PIDS = st.lists(st.integers(0, 9999).map(str), min_size=2, max_size=30, unique=True)


@given(PIDS, st.floats(0, 0.5), st.integers(2, 40))
def test_who_is_held_out_depends_on_the_name_alone(pids: list[str], share: float, n: int) -> None:
    together = roles(pids, Identities(share))
    assert {*together} == {*pids}
    assert together == {k: v for pid in pids for k, v in roles([pid], Identities(share)).items()}
    few = roles(pids, Identities(share, n))
    held_out = {pid for pid, role in together.items() if role == "validation"}
    assert {pid for pid, role in few.items() if role == "validation"} == held_out
    trained = {*few} - held_out
    assert len(trained) == min(n, len(pids) - len(held_out))
    assert trained <= {*roles(pids, Identities(share, n + 1))}  # one more joins them


def test_the_share_that_is_held_out_is_about_what_was_asked_for() -> None:
    found = roles([f"{i:04}" for i in range(4000)], Identities(0.1))
    assert 0.08 < sum(role == "validation" for role in found.values()) / 4000 < 0.12


def some_pairs(count: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Similarities of pairs of which the body says less than the face, and a fifth has no face."""
    random = np.random.default_rng(seed)
    same, seen = random.random(count) < 0.2, random.random(count) < 0.8
    face = 0.3 * random.standard_normal(count) + 0.5 * same
    body = 0.3 * random.standard_normal(count) + 0.2 * same
    return face, body, seen, same


def test_the_fitted_weights_are_where_the_likelihood_is_highest() -> None:
    face, body, seen, same = some_pairs(20_000)
    found = fit_fusion(face, body, seen, same)
    # Of normal similarities with equal variance the log-odds are linear: difference / variance.
    assert found.face == pytest.approx(0.5 / 0.09, rel=0.05)
    assert found.body == pytest.approx(0.2 / 0.09, rel=0.1)
    assert found.body_alone == pytest.approx(0.2 / 0.09, rel=0.15)
    odds = found.bias + found.face * 0.25 + found.body * 0.1  # half-way between the classes
    assert odds == pytest.approx(np.log(0.2 / 0.8), abs=0.1)


def test_a_stream_that_says_the_opposite_has_no_weight() -> None:
    face, body, seen, same = some_pairs(2000)
    found = fit_fusion(face, -body, seen, same)
    assert (found.body, found.body_alone) == (0, 0)
    assert found.face > 0


def test_pairs_that_a_line_separates_have_finite_weights() -> None:
    same = np.arange(40) < 20
    found = fit_fusion(same * 1.0, same * 1.0, np.ones(40, bool), same)
    assert all(np.isfinite(value) and abs(value) < 100 for value in found.facts().values())


def test_without_pairs_of_one_person_nothing_is_fitted() -> None:
    face, body, seen, _ = some_pairs(50)
    with pytest.raises(ValueError, match="needed"):
        fit_fusion(face, body, seen, np.zeros(50, bool))


@given(st.integers(0, 999))
def test_fused_distances_order_as_the_log_odds_do(seed: int) -> None:
    random = np.random.default_rng(seed)
    fusion = Fusion(*random.random(2) * 5, -2.0, random.random() * 5, -1.0)
    faces, bodies = random.uniform(-1, 1, (2, 4, 7))
    asked, shown = random.random(4) < 0.7, random.random(7) < 0.7
    block = fusion.distances(
        lambda rows: 1 - faces[rows], lambda rows: 1 - bodies[rows], asked, shown
    )
    found = np.concatenate([block(slice(0, 2)), block(np.array([2, 3]))])
    assert found.dtype == np.float32
    assert (found >= 0).all()
    odds = np.empty((4, 7))
    for q in range(4):
        for g in range(7):
            full = fusion.bias + fusion.face * faces[q, g] + fusion.body * bodies[q, g]
            alone = fusion.bias_alone + fusion.body_alone * bodies[q, g]
            odds[q, g] = full if asked[q] and shown[g] else alone
    highest = max(fusion.bias + fusion.face + fusion.body, fusion.bias_alone + fusion.body_alone)
    np.testing.assert_allclose(found, highest - odds, rtol=1e-5, atol=1e-6)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_the_test_set_is_looked_at_for_no_choice(project: Project, tmp_path: Path) -> None:
    """The weights of networks and streams are those of a run whose test images are noise."""
    more = ("--set", HELD_OUT, "--set", "eval.face_weight=fitted")
    project.ok("all", *more)
    first = {name: digest(project.run / f"{name}.safetensors") for name in ("teacher", "student")}
    history = pd.read_csv(project.run / "student_history.csv")
    assert history[["mAP_face", "mAP_body"]].iloc[-1].between(0, 1).all()
    assert history["mAP_face"].iloc[:-1].isna().all()  # every 5 epochs, and in the end
    info = read_metadata(project.run / "student.safetensors")
    assert info.classes == ["0005", "0008"]
    assert info.fusion is not None

    report = project.command("report", str(project.run))
    assert report.code == 0, report.err
    page = (project.run / "report.html").read_text()
    assert "fitted on held-out identities" in page
    assert "mAP on held-out identities" in page

    # Streams that were trained apart have the same weights, and joined the same fusion.
    apart = joined(project, tmp_path, HELD_OUT)
    assert load_student(apart.student)[1] == info

    random = np.random.default_rng(0)
    for kind in ("imgs", "lr_face", "hr_face"):
        for split in ("query", "bounding_box_test"):
            for path in (project.data / kind / split).iterdir():
                size = Image.open(path).size[::-1]
                noise = random.integers(0, 256, (*size, 3), dtype=np.uint8)
                Image.fromarray(noise).save(path)
    poisoned = RunFolder(tmp_path / "poisoned")
    options = config.load(project.config, (HELD_OUT, "eval.face_weight=fitted"))
    run_stage("train-student", options, poisoned)
    assert digest(poisoned.path / "teacher.safetensors") == first["teacher"]
    assert digest(poisoned.student) == first["student"]


@pytest.mark.finished("train-student")
def test_weights_that_were_not_fitted_are_not_used(project: Project) -> None:
    result = project("eval", "--set", "eval.face_weight=fitted")
    assert result.code == 2
    assert "data.validation=0.1" in result.err
    assert not (project.run / "metrics.json").exists()


def test_one_held_out_identity_is_too_few(project: Project) -> None:
    result = project("train-teacher", "--set", "data.validation=0.3")
    assert result.code == 2
    assert "holds 1 of its training identities out" in result.err
    assert not project.run.exists()


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_the_average_of_the_weights_is_what_is_saved(project: Project, tmp_path: Path) -> None:
    decay = 0.6
    steps = ("--set", "checkpoints.every=1", "--set", "checkpoints.keep=99")
    project.ok("train-student", *steps, "--set", "train_student.max_steps=1")
    average = weights(project.run / "student.safetensors")
    for step in (2, 3):
        plain = ("--set", f"train_student.max_steps={step}")
        project.ok("train-student", *steps, *plain, "--force")
        last = weights(project.run / "student.safetensors")
        average = {
            name: decay * value + (1 - decay) * last[name] if value.is_floating_point() else value
            for name, value in average.items()
        }
    averaged = ("--set", "train_student.max_steps=3", "--set", f"train_student.ema={decay}")
    project.ok("train-student", *steps, *averaged, "--force")
    for name, value in weights(project.run / "student.safetensors").items():
        if value.is_floating_point():
            torch.testing.assert_close(value, average[name])
