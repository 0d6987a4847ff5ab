"""Several teachers in one cache: a student learns from each, through a projection."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.pipeline import config
from deskpro.stages.base.training_options import require_teacher_name
from deskpro.stages.data.sampler import PKSampler, endless
from deskpro.stages.models.student import Student
from deskpro.stages.models.weights import load_student
from deskpro.stages.targets.kinds import TARGETS
from deskpro.stages.targets.teachers import LiveTeacher
from tests.conftest import Project, slow

pytestmark = pytest.mark.finished("train-student")


def sets(*values: str) -> list[str]:
    return [part for value in values for part in ("--set", value)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def others(project: Project, tmp_path: Path) -> list[str]:
    """Options of two more teachers: one sees LR faces, one body images."""
    networks = {
        "faces": project.run / "teacher.safetensors",
        "bodies": project.run / "student.safetensors",
    }
    for name, path in networks.items():
        shutil.copy(path, tmp_path / f"{name}.safetensors")
    return sets(
        f"teachers.faces.weights={tmp_path}/faces.safetensors",
        "teachers.faces.input=lr_face",
        f"teachers.bodies.weights={tmp_path}/bodies.safetensors",
        "teachers.bodies.input=imgs",
        "teachers.bodies.weight=5",
    )


@pytest.mark.slow
def test_teachers_are_added_to_a_finished_cache_and_leave_its_bytes(
    project: Project, others: list[str]
) -> None:
    root = project.run / "targets.zarr"
    before = content(root)
    project.ok("teacher-cache", *others)
    after = content(root)
    assert {name: after[name] for name in before} == before
    groups = {name.split("/")[1] for name in after.keys() - before.keys()}
    assert groups == {"faces", "bodies"}
    assert "fresh" in project.ok("teacher-cache", *others).err
    assert "fresh" in project.ok("teacher-cache").err  # without them it stays as it is
    audit = project.command("cache", "audit", str(project.run), *others)
    assert audit.code == 0, audit.out
    assert "bodies/embedding" in audit.err
    info = project.command("cache", "info", str(project.run))
    assert "bodies/embedding" in info.out + info.err
    # Their features are those of the networks' heads, one after the other.
    student, _ = load_student(project.run / "student.safetensors")
    reader = MappedReader(root, "teachers/bodies/embedding")
    assert reader.schema.fields["embedding"].shape == (1, 7 * 16)
    assert student.streams["body"].feature_dim == 16


@pytest.mark.slow
def test_a_student_learns_from_every_teacher_and_drops_the_projections(
    project: Project, others: list[str]
) -> None:
    project.ok("teacher-cache", *others)
    project.ok("train-student", "--force", *others)
    history = pd.read_csv(project.run / "student_history.csv")
    assert {"embedding_faces", "embedding_bodies"} <= {*history.columns}
    saved = load_file(project.run / "student.safetensors")
    assert not [name for name in saved if "projection" in name]
    project.ok("eval", *others)
    # One teacher's weight is the student's alone: the cache stays fresh, the student doesn't.
    other = [*others, *sets("teachers.faces.weight=0")]
    assert "fresh" in project.ok("teacher-cache", *other).err
    stale = project("train-student", *other)
    assert stale.code == 2
    assert "teachers.faces.weight" in stale.err
    project.ok("train-student", "--force", *other)
    assert "embedding_faces" not in pd.read_csv(project.run / "student_history.csv").columns


@pytest.mark.slow
def test_a_student_of_the_store_is_that_of_live_teachers(
    project: Project, others: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 steps with every target: bit-equal where live targets are rounded as stored."""
    steps = [*others, *sets("train_student.epochs=20", "train_student.max_steps=20", "batchid=4",
                            "batchimage=4", "embedding.weight=10"), "--force"]  # fmt: skip
    project.ok("teacher-cache", *others)

    def train(*options: str) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
        project.ok("train-student", *steps, *options)
        history = pd.read_csv(project.run / "student_history.csv").drop(columns="images_per_s")
        return load_file(project.run / "student.safetensors"), history

    stored, losses = train()
    exact = LiveTeacher.__call__

    def rounded(self: LiveTeacher, batch: Any) -> dict[str, torch.Tensor]:
        # CPUs round otherwise for other sizes of a batch: the cache's are 8, and 4 at its end.
        found: dict[str, torch.Tensor] = {}
        for size, chosen in ((8, batch["row"] < 16), (4, batch["row"] >= 16)):
            for rows in chosen.nonzero().flatten().split(size):
                padded = rows.repeat(size)[:size]
                values = exact(self, {k: v[padded] for k, v in batch.items()})
                for name, value in values.items():
                    blank = value.new_zeros(16, *value.shape[1:])
                    found.setdefault(name, blank)[rows] = value[: len(rows)]
        return {name: value if name == "parsing" else value.half() for name, value in found.items()}

    monkeypatch.setattr(LiveTeacher, "__call__", rounded)
    live, live_losses = train("--set", "train_student.live_teacher=true")
    pd.testing.assert_frame_equal(losses, live_losses, check_exact=True)
    assert all(torch.equal(stored[name], live[name]) for name in stored)


@pytest.mark.slow
def test_targets_of_the_mirror_image_and_of_checkpoints_are_averaged(
    project: Project, tmp_path: Path
) -> None:
    root, group = project.run / "targets.zarr", "teachers/default/logits"
    plain = read(root, group)
    project.ok("teacher-cache", "--force", *sets("cache.mirror=true"))
    mirrored = read(root, group)
    stale = project("train-student")
    assert stale.code == 2
    assert not np.array_equal(plain, mirrored)
    more = sets("pre_train=none", "train_teacher.seed=9")
    project.ok("train-teacher", "--run", str(tmp_path / "b"), *more)
    second = tmp_path / "b" / "teacher.safetensors"
    project.ok("teacher-cache", "--force", *sets(f"cache.checkpoints=[{second}]"))
    both = read(root, group)
    project.ok("teacher-cache", "--force", *sets(f"pre_train={second}"))
    alone = read(root, group)
    np.testing.assert_allclose(both, (plain + alone) / 2, atol=2e-3 * np.abs(both).max())
    project.ok("teacher-cache", "--force")
    np.testing.assert_array_equal(read(root, group), plain)


def read(root: Path, group: str) -> np.ndarray:
    reader = MappedReader(root, group)
    rows = [*range(reader.schema.samples)]
    found: np.ndarray = reader.read(rows, [0] * len(rows))["logits"].astype(np.float32)
    return found


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["teachers.default.weights=a.safetensors"], "is no name of another teacher"),
        (["teachers.a/b.weight=1"], "is no name of another teacher"),
        (["teachers.clip.wait=1"], "teachers.clip.wait: unknown option"),
        (["teachers.clip.weights=nowhere.safetensors"], "nowhere.safetensors: no such file"),
        (["cache.checkpoints=[nowhere.pth]"], "nowhere.pth: no such file"),
        (
            ["teachers.clip.weights=a.safetensors", "teachers.clip.kd=1"],
            "only imported logits can be distilled",
        ),
    ],
)
def test_teachers_that_cannot_be_are_refused(
    options: list[str], says: str, project: Project
) -> None:
    result = project("teacher-cache", *sets(*options))
    assert result.code == 2
    assert says in result.err


def test_a_teacher_whose_targets_are_not_there_is_named_with_the_command(project: Project) -> None:
    result = project("train-student", "--force", *sets("teachers.clip.weight=5"))
    assert result.code == 2
    assert "the student needs clip/embedding, too" in result.err
    assert "cache import" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("views", [*slow(1), 3])
def test_a_student_learns_from_imported_targets(
    views: int, project: Project, tmp_path: Path
) -> None:
    root = project.run / "targets.zarr"
    names = TargetStore(root).column("sample_id").tolist()
    rng = np.random.default_rng(0)
    rows = [(name, view) for name in names for view in range(views)]
    np.savez(
        tmp_path / "clip.npz",
        path=np.array([name for name, _ in rows]),
        view=np.array([view for _, view in rows]),
        embedding=rng.normal(size=(len(rows), 24)).astype(np.float32),
    )
    given = [str(tmp_path / "clip.npz"), "--teacher", "clip", "--run", str(project.run)]
    assert project.command("cache", "import", *given).code == 0
    result = project.ok("train-student", "--force", *sets("teachers.clip.weight=5"))
    assert ("imported for 1 of 3 views" in result.err) == (views == 1)
    history = pd.read_csv(project.run / "student_history.csv")
    assert (history["embedding_clip"] > 0).all()
    assert "fresh" in project.ok("teacher-cache", *sets("teachers.clip.weight=5")).err
    audit = project.command("cache", "audit", str(project.run), *sets("teachers.clip.weight=5"))
    assert audit.code == 0, audit.out
    group = "teachers/clip/embedding"
    chunk = MappedReader(root, group).schema.chunk_file(root / group, "embedding", 0, 0)
    content = chunk.read_bytes()
    chunk.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    refused = project("train-student", "--force", *sets("teachers.clip.weight=5"))
    assert "Import them again: deskpro cache import FILE --teacher clip --force" in refused.err


@pytest.mark.slow
def test_imported_logits_are_distilled_until_the_cache_has_other_samples(
    project: Project, unlabelled: list[str], tmp_path: Path
) -> None:
    root = project.run / "targets.zarr"
    store = TargetStore(root)
    names, labels = store.column("sample_id").tolist(), store.column("label")
    classes = MappedReader(root, TARGETS["logits"].group).fingerprint["classes"]
    np.savez(
        tmp_path / "sure.npz",
        path=np.array(names),
        classes=np.array(classes[::-1]),
        logits=9.0 * np.eye(len(classes), dtype=np.float32)[:, ::-1][labels],
    )
    given = [str(tmp_path / "sure.npz"), "--teacher", "sure", "--run", str(project.run)]
    assert project.command("cache", "import", *given).code == 0
    options = sets("teachers.sure.weight=0", "teachers.sure.kd=2", "kd_loss.enable=false")
    project.ok("train-student", "--force", *options)
    history = pd.read_csv(project.run / "student_history.csv")
    assert (history["kd_sure"] > 0).all()
    assert "embedding_sure" not in history.columns
    assert "kd" not in history.columns
    # The cache gets other samples: what was imported for the earlier ones is of no use.
    project.ok("teacher-cache", "--force", *unlabelled)
    refused = project("train-student", "--force", *options, *unlabelled)
    assert refused.code == 2
    assert "Import them again: deskpro cache import FILE --teacher sure --force" in refused.err
    assert project.command("cache", "import", *given, "--force").code == 0
    project.ok("train-student", "--force", *options, *unlabelled)


def test_a_teacher_that_has_no_such_stream_is_refused(project: Project) -> None:
    teacher = project.run / "teacher.safetensors"
    options = sets(f"teachers.body.weights={teacher}", "teachers.body.input=imgs")
    result = project("teacher-cache", *options)
    assert result.code == 2
    assert "a student is needed" in result.err


def test_a_teacher_may_have_the_name_of_an_attribute_of_modules() -> None:
    names = ["half", "type", "training"]
    student = Student(3, forward_mode="face", width=0.25, feature_dim=16)
    for name in names:
        student.project("face", name, (1, 5))
    assert [*student.train()(torch.zeros(2, 3, 32, 32), None).projected] == names


def test_a_projection_depends_on_its_stream_and_name_alone() -> None:
    def made(mode: str, *teachers: str) -> torch.Tensor:
        torch.manual_seed(3)
        student = Student(4, forward_mode=mode, width=0.25, feature_dim=8)
        for teacher in teachers:
            student.project("face", teacher, (2, 5))
        weight = student.projections["clip-"].weight
        assert isinstance(weight, torch.Tensor)
        assert student.training
        outputs = student(*(torch.zeros(2, 3, *size) for size in ((32, 32), (64, 32))))
        assert outputs.projected["clip"].shape == (2, 2, 5)
        assert not student.eval()(*(torch.zeros(2, 3, *s) for s in ((32, 32), (64, 32)))).projected
        return weight

    assert torch.equal(made("all", "clip"), made("all", "arc", "clip"))


def test_names_of_teachers() -> None:
    assert require_teacher_name("clip-B_16") == "clip-B_16"
    for name in ("default", "", "a b", "../x", "-x"):
        with pytest.raises(ValueError, match="is no name"):
            require_teacher_name(name)
    options = config.load({}, ["teachers.clip.weight=3"])
    assert config.load(json.loads(options.model_dump_json())).teachers["clip"].weight == 3


@pytest.fixture
def unlabelled(project: Project, tmp_path: Path) -> list[str]:
    """Options of 12 images without labels, one without a mask and one without faces."""
    root = tmp_path / "crowd"
    for i, path in enumerate(sorted((project.data / "imgs" / "query").iterdir())[:12]):
        for kind in ("imgs", "lr_face", "hr_face", "mask"):
            source = project.data / kind / "query" / path.name
            if source.exists() and (i, kind) not in {(3, "mask"), (5, "lr_face"), (5, "hr_face")}:
                place = root / kind / f"day{i % 2}" / f"{i:02d}.jpg"
                place.parent.mkdir(parents=True, exist_ok=True)
                Image.open(source).save(place, quality=95)
    return sets(f"data.unlabelled={root}", "train_student.unlabelled=6")


@pytest.mark.slow
def test_images_without_labels_are_cached_and_learned_from(
    project: Project, unlabelled: list[str], tmp_path: Path
) -> None:
    refused = project("teacher-cache", *unlabelled)
    assert refused.code == 2
    assert "unlabelled/day0/00.jpg" in refused.err
    project.ok("teacher-cache", "--force", *unlabelled)
    root = project.run / "targets.zarr"
    labels = TargetStore(root).column("label")
    assert (labels < 0).sum() == 12
    assert (labels[:20] >= 0).all()
    valid = {name: MappedReader(root, TARGETS[name].group).valid[20:] for name in TARGETS}
    names = TargetStore(root).column("sample_id").tolist()[20:]
    lacking = {
        name: [n for n, has in zip(names, rows, strict=True) if not has]
        for name, rows in valid.items()
    }
    assert "unlabelled/day1/03.jpg" in lacking["parsing"]
    assert "unlabelled/day1/05.jpg" in lacking["logits"]
    assert "12 of the samples" in project.command("cache", "info", str(project.run)).err
    audit = project.command("cache", "audit", str(project.run), *unlabelled)
    assert audit.code == 0, audit.out
    rendered = tmp_path / "rendered"
    words = ("cache", "render", str(project.run), str(rendered), "--kinds", "mask", "--views", "0")
    assert project.command(*words).code == 0
    assert (rendered / "mask/0/unlabelled/day0/00.png").is_file()
    assert not (rendered / "mask/0/unlabelled/day1/03.png").exists()

    without = ["--force", *unlabelled[:2], "--set", "train_student.unlabelled=0"]
    project.ok("train-student", *without)
    alone = load_file(project.run / "student.safetensors")
    project.ok("train-student", "--force", *unlabelled)
    both = load_file(project.run / "student.safetensors")
    assert any(not torch.equal(alone[name], both[name]) for name in alone)
    project.ok("train-student", "--force", *unlabelled)
    again = load_file(project.run / "student.safetensors")
    assert all(torch.equal(again[name], both[name]) for name in both)
    # Their images may be gone for a student that doesn't use them.
    shutil.rmtree(Path(unlabelled[1].partition("=")[2]) / "imgs")
    project.ok("train-student", *without)
    assert all(
        torch.equal(alone[n], v) for n, v in load_file(project.run / "student.safetensors").items()
    )


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["train_student.unlabelled=4"], "set data.unlabelled"),
        (["train_student.unlabelled=4", "data.unlabelled=DATA", "kd_loss.enable=false",
          "mse.mse_weight=0"], "only a teacher's targets can be learned"),
        (["train_student.unlabelled=4", "data.unlabelled=DATA", "kd_loss.class_means=true"],
         "kd_loss.class_means has no class"),
        (["train_student.unlabelled=4", "data.unlabelled=nowhere"], "no images without labels"),
    ],
)  # fmt: skip
def test_images_without_labels_that_cannot_be_used_are_refused(
    options: list[str], says: str, project: Project
) -> None:
    options = [option.replace("DATA", str(project.data)) for option in options]
    stage = "teacher-cache" if "nowhere" in options[-1] else "train-student"
    result = project(stage, "--force", *sets(*options))
    assert result.code == 2
    assert says in result.err


@given(st.integers(1, 9), st.integers(1, 7), st.integers(0, 5), st.integers(0, 30))
def test_images_without_labels_come_equally_often(
    rows: int, count: int, seed: int, start: int
) -> None:
    chosen = np.arange(rows) + 100
    series = np.concatenate([endless(chosen, step * count, count, seed) for step in range(rows)])
    assert np.bincount(series - 100).tolist() == [count] * rows
    part = endless(chosen, start, count, seed)
    whole = endless(chosen, 0, start + count, seed)
    assert np.array_equal(part, whole[start:])


def test_ranks_share_the_images_without_labels() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 3, 3, -1, -1, -1, -1, -1])

    def batches(rank: int, ranks: int, start: int = 0) -> list[list[tuple[int, int]]]:
        sampler = PKSampler(labels, 2, 2, 3, 0, rank, ranks, extra=4)
        sampler.set_epoch(2, start)
        return [*sampler]

    whole = batches(0, 1)
    shares = zip(batches(0, 2), batches(1, 2), strict=True)
    assert [sorted(a + b) for a, b in shares] == [sorted(batch) for batch in whole]
    assert all(
        (labels[[row for row, _ in batch]] < 0).tolist() == [False] * 4 + [True] * 4
        for batch in whole
    )
    assert batches(0, 1, start=1) == whole[1:]
