"""Asymmetric search: the student's queries, the gallery as its teacher sees it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from deskpro.cache.reader import ZarrReader
from deskpro.pipeline.config import load
from deskpro.pipeline.stages import needed
from deskpro.stages.base.names import FACE_HR
from deskpro.stages.data.index import read_index
from deskpro.stages.data.layouts import LAYOUTS
from deskpro.stages.metrics.protocols import PROTOCOLS
from deskpro.stages.metrics.ranking import Ranking, rank_gallery
from deskpro.stages.models.lmbn import LMBN
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import ModelInfo, save
from tests.conftest import Project, Result

pytestmark = pytest.mark.finished("eval")
TEACHER = ("--gallery-network", "teacher")
STORE = "gallery_features.zarr"


def metrics(project: Project) -> dict[str, Any]:
    return dict(json.loads((project.run / "metrics.json").read_text()))


def streams(project: Project) -> dict[str, Any]:
    return dict(metrics(project)["protocols"]["market"]["streams"])


def evaluated(project: Project, *options: str) -> Result:
    return project.ok("eval", *TEACHER, "--force", *options)


def expected(project: Project) -> tuple[Ranking, int]:
    """The ranking by dot products in numpy, and how many queries have no LR face."""
    index, _ = read_index(project.data, LAYOUTS["benchmark"], ("query", "gallery"))
    query, gallery = (
        index[index["split"] == split].reset_index(drop=True) for split in ("query", "gallery")
    )
    query, without = query[query["lr_face"].notna()], query["lr_face"].isna().sum()
    vectors = {}
    for name in ("features.zarr", STORE):
        reader = ZarrReader(project.run / name, "features")
        rows = reader.chunk("features", 0, 0)
        vectors[name] = dict(zip(reader.column("sample_id").tolist(), rows, strict=True))
    distances = np.ones((len(query), len(gallery)))
    for q, asked in enumerate(query["sample_id"]):
        for g, (shown, face) in enumerate(gallery[["sample_id", "hr_face"]].to_numpy()):
            if face is not None:  # seven heads of the face come first in the student
                own, theirs = vectors["features.zarr"][asked][:7], vectors[STORE][shown]
                distances[q, g] = 1 - np.mean([a @ b for a, b in zip(own, theirs, strict=True)])
    ranking = rank_gallery(query, gallery, distances.__getitem__, PROTOCOLS["market"])
    return ranking, int(without)


def remove(project: Project, kind: str, split: str, count: int | None) -> int:
    paths = sorted((project.data / kind / split).iterdir())[:count]
    for path in paths:
        path.unlink()
    return len(paths)


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_it_is_the_ranking_by_dot_products_of_both_networks(
    missing: bool, project: Project
) -> None:
    """Queries without an LR face are not counted; gallery images without HR face are at cosine 0,
    whether or not they have an LR face; queries' HR faces are not used."""
    if missing:
        remove(project, "lr_face", "query", 2)
        remove(project, "hr_face", "bounding_box_test", 2)
        shutil.rmtree(project.data / "hr_face" / "query")
        sorted((project.data / "lr_face" / "bounding_box_test").iterdir())[-1].unlink()
    result = evaluated(project)
    ranking, without = expected(project)
    found = streams(project)
    assert [*found] == ["face", "body", FACE_HR, "all"]
    assert found[FACE_HR]["mAP"] == pytest.approx(ranking.mAP, abs=1e-6)
    assert found[FACE_HR]["queries"] == len(ranking.queries)
    assert found[FACE_HR]["mAP"] != pytest.approx(found["face"]["mAP"], abs=1e-3)
    queries = pd.read_csv(project.run / "queries.csv").query("protocol == 'market'")
    mine = queries[queries["stream"] == FACE_HR].set_index("sample_id")["ap"].sort_index()
    theirs = ranking.queries.set_index("sample_id")["ap"].sort_index()
    np.testing.assert_allclose(mine, theirs, atol=1e-6)
    counted = f"eval: {FACE_HR}: {without} of {len(ranking.queries) + without} queries have no"
    assert (counted in result.err) == bool(without)
    images = [*(project.data / "imgs" / "bounding_box_test").iterdir()]
    faces = [*(project.data / "hr_face" / "bounding_box_test").iterdir()]
    assert metrics(project)["data"]["without HR face"] == len(images) - len(faces)
    assert (len(images) > len(faces)) >= missing


@pytest.mark.slow
def test_the_students_own_streams_stay_and_so_do_its_features(project: Project) -> None:
    project.ok("eval")
    before, ranked = metrics(project), (project.run / "ranked.csv").read_bytes()
    before["data"]["root"] = str(project.data)  # it was evaluated where the copy is from
    assert FACE_HR not in streams(project)
    assert before["gallery_network"] is None
    refused = project("eval", *TEACHER)
    assert refused.code == 2
    assert "eval.gallery_network was student, is teacher" in refused.err
    assert re.search("Type: deskpro eval .*--set eval.gallery_network=teacher --force", refused.err)
    result = evaluated(project)
    assert re.search("features +1 of 1 blocks were there", result.err)
    assert re.search("teacher +0 of 1 blocks were there", result.err)
    after = metrics(project)
    teacher = (project.run / "teacher.json").read_text()
    assert after["gallery_network"]["sha256"] == json.loads(teacher)["sha256"]
    own = {name: part for name, part in streams(project).items() if name != FACE_HR}
    assert own == before["protocols"]["market"]["streams"]
    assert (project.run / "ranked.csv").read_bytes() == ranked
    assert "fresh" in project.ok("eval", *TEACHER).err
    again = project("eval", "--gallery-network", "student")
    assert again.code == 2
    assert "eval.gallery_network was teacher, is student" in again.err
    result = project.ok("eval", "--gallery-network", "student", "--force")
    assert re.search("features +1 of 1 blocks were there", result.err)
    assert metrics(project) == before


@pytest.mark.slow
def test_what_it_is_made_of_makes_it_stale(project: Project, tmp_path: Path) -> None:
    evaluated(project)
    first = metrics(project)["data"]["digests"]
    kept = Path(shutil.copytree(project.run, tmp_path / "kept"))
    faces = sorted((project.data / "hr_face" / "bounding_box_test").iterdir())
    shutil.copy(faces[0], faces[1])
    refused = project("eval", *TEACHER)
    assert refused.code == 2
    assert "hr_face of gallery" in refused.err
    evaluated(project)
    digests = metrics(project)["data"]["digests"]
    assert {name for name in digests if digests[name] != first[name]} == {"hr_face of gallery"}
    compared = project.command("compare", str(project.run), str(kept), "--out", str(tmp_path))
    assert compared.code == 2
    assert "hr_face of gallery differ" in compared.err
    (project.run / "teacher.safetensors").unlink()
    assert "fresh" in project.ok("eval", *TEACHER).err
    gone = project("eval", *TEACHER, "--force")
    assert gone.code == 2
    assert "teacher.safetensors: no such file" in gone.err
    assert "Type: deskpro train-teacher --config" in gone.err


@pytest.mark.slow
def test_report_and_tables_have_it(project: Project, tmp_path: Path) -> None:
    evaluated(project)
    page = tmp_path / "report.html"
    assert project.command("report", str(project.run), "--out", str(page)).code == 0
    text = page.read_text()
    assert "var(--face_hr)" in text
    assert "“face_hr” compares the student's features" in text
    assert "gallery images have no HR face" in text
    for name in ("metrics.csv", "queries.csv", "breakdown.csv"):
        assert FACE_HR in set(pd.read_csv(project.run / name)["stream"])
    assert FACE_HR in (project.run / "cmc.svg").read_text()
    one = Path(shutil.copytree(project.run, tmp_path / "one"))
    project.ok("eval", "--gallery-network", "student", "--force")
    out = tmp_path / "out"
    result = project.command("compare", str(one), str(project.run), "--out", str(out))
    assert result.code == 0, result.err
    assert re.search("gallery_network is teacher [0-9a-f]{12} in one, student in run", result.err)
    assert FACE_HR not in set(pd.read_csv(out / "compare.csv")["stream"])
    result = project.command("compare", str(one), str(one), "--out", str(out))
    assert FACE_HR in set(pd.read_csv(out / "compare.csv")["stream"])


@pytest.mark.slow
def test_from_disk_as_from_memory(project: Project) -> None:
    evaluated(project)
    before = metrics(project)
    evaluated(project, "--set", "cache.memory=0")
    assert metrics(project) == before


def refusal(project: Project, *options: str) -> str:
    """The one line of a refusal that changes nothing."""
    before = (project.run / "metrics.json").read_bytes()
    result = project("eval", "--force", *TEACHER, *options)
    assert result.code == 2
    assert (project.run / "metrics.json").read_bytes() == before
    assert not (project.run / STORE).exists()
    (line,) = [line for line in result.err.splitlines() if line.startswith("deskpro: ")]
    return line


def test_a_gallery_without_hr_faces_is_refused(project: Project) -> None:
    remove(project, "hr_face", "bounding_box_test", None)
    line = refusal(project)
    assert "no image of the gallery has an HR face" in line
    assert line.endswith("--gallery-network student")


def test_a_teacher_of_other_features_is_refused(project: Project, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    network = {"width": 0.25, "feature_dim": 8}
    save(other, LMBN(4, **network), ModelInfo("teacher", network, 4, None, (32, 32), None))
    forget(project, "train-student")
    shutil.rmtree(project.run / "targets.zarr")  # they are of another teacher
    line = refusal(project, "--set", f"pre_train={other}")
    assert "7 heads of length 8, the student's face stream 7 of length 16" in line
    assert line.endswith("--gallery-network student")


def forget(project: Project, stage: str) -> None:
    """The stage's output is then as if it had been brought from elsewhere."""
    (project.run / ".state" / "manifests" / f"{stage}.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["face", "body"])
def test_a_student_of_one_stream(stream: str, project: Project, tmp_path: Path) -> None:
    """One of faces is ranked as ever beside the teacher's gallery; one of bodies is refused."""
    network = {"width": 0.25, "feature_dim": 16, "forward_mode": stream}
    sizes = ((32, 32), None) if stream == "face" else (None, (64, 32))
    info = ModelInfo("student", network, 4, None, *sizes)
    save(project.run / "student.safetensors", Student(4, **network), info)
    forget(project, "train-student")
    if stream == "body":
        assert "needs a student with a face stream, this one has body alone" in refusal(project)
        return
    evaluated(project)
    assert [*streams(project)] == ["face", FACE_HR]
    ranked, queries = (pd.read_csv(project.run / f"{name}.csv") for name in ("ranked", "queries"))
    assert {*ranked["query"]} == {*queries[queries["stream"] == "face"]["sample_id"]}
    page = tmp_path / "report.html"
    assert project.command("report", str(project.run), "--out", str(page)).code == 0
    assert "Stream face, protocol market" in page.read_text()


@pytest.mark.slow
def test_a_student_that_has_not_learned_the_embeddings_is_warned_of(project: Project) -> None:
    assert (
        "warning: eval.gallery_network: teacher, but embedding.weight is 0"
        in evaluated(project).err
    )
    forget(project, "train-student")
    learned = evaluated(project, "--set", "embedding.weight=1")
    assert "embedding.weight" not in learned.err


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ([], ["train-teacher"]),
        (["kd_loss.enable=false", "mse.mse_weight=0"], []),
        (["kd_loss.enable=false", "mse.mse_weight=0", "eval.gallery_network=teacher"],
         ["train-teacher"]),
    ],
)  # fmt: skip
def test_the_teacher_is_trained_where_the_gallery_needs_it(
    options: list[str], needs: list[str], project: Project
) -> None:
    found = needed(load(project.config, options))
    assert [name for name in found if name == "train-teacher"] == needs
