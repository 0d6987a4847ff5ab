"""The stages as a user runs them, on real files: what they make, refuse, repeat and announce."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file

from deskpro.cache.reader import MappedReader
from deskpro.cache.store import TargetStore
from deskpro.pipeline import config
from deskpro.pipeline.studies import STUDIES
from deskpro.pipeline.tables import REFERENCES
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.index import class_order
from deskpro.stages.data.loader import ImageDataset, images_of
from deskpro.stages.data.views import DrawnViews, parsing_target
from deskpro.stages.models.weights import load_student, load_teacher
from deskpro.stages.targets.kinds import TARGETS, tensors
from deskpro.stages.targets.teachers import LiveTeacher
from tests.conftest import REPOSITORY, Project, run_process


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_file(path)


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def market(run: Path) -> dict[str, Any]:
    """What an evaluation says by the Market rule, by stream."""
    streams: dict[str, Any] = json.loads((run / "metrics.json").read_text())["protocols"]["market"]
    return dict(streams["streams"])


@pytest.mark.slow
def test_eval_makes_everything_before_it_and_announces_that(project: Project) -> None:
    result = project.ok("eval")
    run = project.run
    for output in ("train-student", "teacher-cache", "train-teacher"):
        assert f"running {output} first" in result.err
        assert f"{output}: done in" in result.err
    for name in ("teacher.json", "student.json", "teacher_history.csv", "student_history.csv",
                 "config.yaml", "metrics.csv", "queries.csv", "breakdown.csv", "ranked.csv",
                 "cmc.png", "cmc.svg", "left_out.csv"):  # fmt: skip
        assert (run / name).is_file(), name
    assert not list(run.rglob("*partial*"))

    report = json.loads((run / "metrics.json").read_text())
    assert "same camera are removed" in report["protocols"]["market"]["rule"]
    assert set(report["protocols"]["market"]["streams"]) == {"face", "body", "all"}
    for numbers in report["protocols"]["market"]["streams"].values():
        assert 0 < numbers["mAP"] <= 1
        assert numbers["cmc"] == sorted(numbers["cmc"])
        assert numbers["rank1"] == numbers["cmc"][0]
    queries = pd.read_csv(run / "queries.csv")
    means = queries[queries["protocol"] == "market"].groupby("stream")["ap"].mean()
    for stream, numbers in report["protocols"]["market"]["streams"].items():
        assert means[stream] == pytest.approx(numbers["mAP"])
    assert "mAP" in result.out
    assert "body" in result.out


@pytest.mark.finished("teacher-cache")
def test_the_store_holds_what_the_teacher_says_of_each_view(project: Project) -> None:
    project.ok("teacher-cache")
    root = project.run / "targets.zarr"
    stored = TargetStore(root)
    readers = {name: MappedReader(root, target.group) for name, target in TARGETS.items()}
    options = config.load(project.config)
    index = stored.column("sample_id").tolist()
    table = pd.DataFrame(
        {kind: [str(project.data / kind / sample) for sample in index]
         for kind in ("hr_face", "mask")}
    )  # fmt: skip
    views = DrawnViews(options.views, index, plain_view=True)
    np.testing.assert_array_equal(stored.column("views"), views.table(3))
    images = ImageDataset(table, {"hr_face": (32, 32), "mask": (64, 32)}, views)
    teacher, described = load_teacher(project.run / "teacher.safetensors")
    pids = [Path(sample).name.split("_")[0] for sample in index]
    assert described.classes == class_order(pids) == readers["logits"].fingerprint["classes"]
    labels = [described.classes.index(pid) for pid in pids]
    assert stored.column("label").tolist() == labels

    for row, view in ((0, 0), (7, 1), (19, 2)):
        batch = torch.utils.data.default_collate([images[row, view]])
        logits = teacher(images_of(batch, "hr_face", torch.device("cpu"))).logits
        parsing = parsing_target(batch["mask"], (8, 4))
        rows = {name: tensors(reader.read([row], [view])) for name, reader in readers.items()}
        cached = {name: TARGETS[name].decode(rows[name]) for name in readers}
        np.testing.assert_allclose(cached["logits"], logits, rtol=2e-3, atol=1e-3)
        assert torch.equal(cached["parsing"], parsing)


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_the_student_trains_without_teacher_hr_faces_and_masks(project: Project) -> None:
    project.ok("teacher-cache")
    for name in ("teacher.safetensors", "teacher.json"):
        (project.run / name).unlink()
    shutil.rmtree(project.data / "hr_face")
    shutil.rmtree(project.data / "mask")
    project.ok("train-student")
    assert "kd" in (project.run / "student_history.csv").read_text().splitlines()[0]
    project.ok("eval")


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_another_teacher_makes_the_cache_stale(project: Project, tmp_path: Path) -> None:
    project.ok("teacher-cache")
    other = tmp_path / "other"
    project.ok("train-teacher", "--run", str(other), "--set", "train_teacher.seed=5")
    teacher = other / "teacher.safetensors"
    for stage in ("teacher-cache", "train-student"):
        result = project(stage, "--set", f"pre_train={teacher}")
        assert result.code == 2
        assert "the teacher has changed since" in result.err


@pytest.mark.finished("eval")
def test_a_set_that_is_not_there_is_no_fresh_evaluation(project: Project) -> None:
    project.ok("eval")
    result = project("eval", "--set", "data.test_root=nowhere")
    assert result.code == 2
    assert "nowhere: no such folder" in result.err


def test_the_attention_of_masks_needs_no_teacher_and_no_face(project: Project) -> None:
    for kind in ("lr_face", "hr_face"):
        shutil.rmtree(project.data / kind)
    words = ("forward_mode=body", "cache.targets=[parsing]", "data.incomplete=keep",
             "train_student.max_steps=2")  # fmt: skip
    project.ok("all", *(part for text in words for part in ("--set", text)))
    assert not (project.run / "teacher.safetensors").exists()
    assert TargetStore(project.run / "targets.zarr").groups() == ["masks/parsing"]
    history = pd.read_csv(project.run / "student_history.csv")
    assert (history["attention"] > 0).all()
    audited = project.command("cache", "audit", str(project.run), "--samples", "3")
    assert audited.code == 0, audited.err


@pytest.mark.parametrize("split", ["query", "bounding_box_test"])
def test_a_split_that_is_not_there_is_refused_before_any_training(
    split: str, project: Project
) -> None:
    missing = project.data / "imgs" / split
    missing.rename(project.data / "elsewhere")
    result = project("eval")
    assert result.code == 2
    assert f"{missing}: no such folder" in result.err
    assert not project.run.exists()


@pytest.mark.finished("train-teacher")
def test_an_output_that_its_record_does_not_speak_of_is_stale(project: Project) -> None:
    project.ok("train-teacher")
    teacher = project.run / "teacher.safetensors"
    teacher.write_bytes(teacher.read_bytes()[:-4] + b"\0\0\0\1")
    result = project("train-teacher")
    assert result.code == 2
    assert "differs from its recorded digest" in result.err


@pytest.mark.finished("train-teacher")
def test_a_refused_run_leaves_the_resolved_options_alone(project: Project) -> None:
    project.ok("train-teacher")
    before = (project.run / "config.yaml").read_text()
    assert project("train-teacher", "--set", "data.root=nowhere", "--force").code == 2
    assert (project.run / "config.yaml").read_text() == before


@pytest.mark.slow
@pytest.mark.parametrize("size", [(61, 31), (38, 45)])
def test_images_of_any_size_go_through_every_stage(size: tuple[int, int], project: Project) -> None:
    sets = (f"data.body_size={list(size)}", "train_student.max_steps=1",
            "train_teacher.max_steps=1", "data.face_size=[33, 47]")  # fmt: skip
    project.ok("eval", *(part for text in sets for part in ("--set", text)))


def test_an_ablation_of_a_recipe_without_a_part_is_refused(project: Project) -> None:
    result = project("ablation", "--set", "kd_loss.enable=false")
    assert result.code == 2
    assert "kd_loss.enable must be on" in result.err


def test_a_missing_set_of_ones_own_is_not_drawn(project: Project) -> None:
    result = project("demo", "--set", "data.root=nowhere", "--set", "data_train=celeb")
    assert result.code == 2
    assert "nowhere: no such folder" in result.err


def test_an_interrupt_is_one_line(project: Project) -> None:
    import signal
    import subprocess
    import sys

    program = Path(sys.executable).with_name("deskpro")
    arguments = ["train-teacher", "--config", str(project.config), "--run", str(project.run)]
    endless = ["--set", "train_teacher.epochs=100000"]
    with subprocess.Popen(
        [program, *arguments, *endless], stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 60
        started = project.run / ".state" / "manifests" / "train-teacher.started"
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert re.match(r"deskpro: stopped by SIGINT(;| after step)", err.splitlines()[-1])
    assert "Traceback" not in err
    assert not (project.run / "teacher.safetensors").exists()


@pytest.mark.slow
@pytest.mark.finished("train-student")
def test_a_student_is_the_same_bit_for_bit_with_0_and_2_workers(
    project: Project, tmp_path: Path
) -> None:
    project.ok("train-student")
    first = project.run / "student.safetensors"
    kept = tmp_path / "first.safetensors"
    shutil.copy(first, kept)
    project.ok("train-student", "--force", "--set", "data.workers=2")
    assert same(first, kept)
    project.ok("train-student", "--force", "--set", "train_student.seed=1")
    assert not same(first, kept)


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_a_teacher_and_its_cache_do_not_depend_on_workers(project: Project, tmp_path: Path) -> None:
    project.ok("teacher-cache")
    other = tmp_path / "other"
    project.ok("teacher-cache", "--run", str(other), "--set", "data.workers=2")
    assert same(project.run / "teacher.safetensors", other / "teacher.safetensors")
    for chunk in (project.run / "targets.zarr").rglob("c/**/*"):
        if chunk.is_file():
            twin = other / "targets.zarr" / chunk.relative_to(project.run / "targets.zarr")
            assert chunk.read_bytes() == twin.read_bytes(), chunk


@pytest.mark.slow
@pytest.mark.finished("train-teacher")
def test_a_fresh_output_is_left_alone_unless_forced(project: Project) -> None:
    project.ok("train-teacher")
    teacher = project.run / "teacher.safetensors"
    before = teacher.stat().st_mtime_ns
    assert "is fresh (--force" in project.ok("train-teacher").err
    assert teacher.stat().st_mtime_ns == before
    forced = project.ok("train-teacher", "--force").err
    assert teacher.stat().st_mtime_ns > before
    facts = "device cpu, samples 20, steps 8 of 2×2 images"
    assert f"train-teacher starts: {facts}, output {teacher}\n" in forced


@pytest.mark.finished("train-student")
def test_a_stale_output_is_never_replaced_silently(project: Project) -> None:
    project.ok("train-student")
    student = (project.run / "student.safetensors").read_bytes()
    result = project("train-student", "--set", "kd_loss.T=2", "--set", "batchimage=3")
    assert result.code == 2
    assert "kd_loss.T was 5.0, is 2.0" in result.err
    assert "batchimage was 2, is 3" in result.err
    assert "Type: deskpro train-student --config" in result.err
    assert (project.run / "student.safetensors").read_bytes() == student
    project.ok("train-student", "--force", "--set", "kd_loss.T=2")
    assert (project.run / "student.safetensors").read_bytes() != student


@pytest.mark.finished("teacher-cache")
def test_a_stale_cache_stops_the_student_and_says_why(project: Project) -> None:
    project.ok("teacher-cache")
    result = project("train-student", "--set", "views.flip=0.1")
    assert result.code == 2
    assert "views.flip was 0.5, is 0.1" in result.err
    assert "Type: deskpro teacher-cache --config" in result.err
    assert "Traceback" not in result.err
    assert not (project.run / "student.safetensors").exists()


@pytest.mark.finished("teacher-cache")
def test_what_does_not_matter_makes_nothing_stale(project: Project) -> None:
    project.ok("teacher-cache")
    moved = project.data.rename(project.data.with_name("moved"))
    changes = (f"data.root={moved}", "cache.batch=3", "data.workers=1", "eval.batch=7")
    sets = [part for change in changes for part in ("--set", change)]
    assert "is fresh" in project.ok("teacher-cache", *sets).err


@pytest.mark.finished("train-teacher")
def test_a_teacher_without_some_identity_is_refused(project: Project, tmp_path: Path) -> None:
    project.ok("train-teacher")
    for kind in ("imgs", "lr_face", "hr_face", "mask"):
        folder = project.data / kind / "bounding_box_train"
        pid = sorted(folder.iterdir())[0].name.split("_")[0]
        for image in folder.glob(f"{pid}_*"):
            image.rename(image.with_name("9" + image.name))
    teacher = project.run / "teacher.safetensors"
    elsewhere = str(tmp_path / "elsewhere")
    result = project("teacher-cache", "--run", elsewhere, "--set", f"pre_train={teacher}")
    assert result.code == 2
    assert f"doesn't know 1 of the 4 training identities: 9{pid}" in result.err


@pytest.mark.slow
@pytest.mark.finished("train-teacher")
def test_a_teacher_from_elsewhere_needs_no_training(project: Project, tmp_path: Path) -> None:
    project.ok("train-teacher")
    teacher = shutil.copy(project.run / "teacher.safetensors", tmp_path / "bought.safetensors")
    shutil.rmtree(project.run)
    result = project.ok("train-student", "--set", f"pre_train={teacher}")
    assert "train-teacher" not in result.err
    assert not (project.run / "teacher.safetensors").exists()
    result = project("teacher-cache", "--force", "--set", "pre_train=nowhere.safetensors")
    assert result.code == 2
    assert "nowhere.safetensors: no such weights file" in result.err


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["face", "body"])
@pytest.mark.finished("teacher-cache")
def test_one_stream_alone(mode: str, project: Project) -> None:
    project.ok("eval", "--set", f"forward_mode={mode}")
    assert set(market(project.run)) == {mode}
    columns = set(pd.read_csv(project.run / "student_history.csv").columns)
    assert {f"ce_{mode}", f"triplet_{mode}", "total"} < columns
    assert ("kd" in columns) == (mode == "face")
    assert ("attention" in columns) == (mode == "body")


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_distillation_takes_its_share_of_the_face_heads_alone(project: Project) -> None:
    steps = ("--set", "train_student.max_steps=1", "--force")
    project.ok("train-student", *steps)
    both = pd.read_csv(project.run / "student_history.csv").iloc[0]
    project.ok("train-student", *steps, "--set", "kd_loss.enable=false", "--set",
               "mse.mse_weight=0.0")  # fmt: skip
    plain = pd.read_csv(project.run / "student_history.csv").iloc[0]
    assert both["ce_face"] == pytest.approx(0.3 * plain["ce_face"], rel=1e-5)
    assert both["ce_body"] == pytest.approx(plain["ce_body"], rel=1e-5)
    more = set(both.index) - set(plain.index)
    metrics = {name for name in more if name.startswith(("agree_", "divergence_"))}
    assert more - metrics == {"kd", "attention"}
    terms = both.drop(["epoch", "lr", "total", "images_per_s", *metrics])
    assert both["total"] == pytest.approx(terms.sum(), rel=1e-5)


@pytest.mark.finished("eval")
def test_an_absent_face_does_not_count_and_nothing_is_nan(project: Project) -> None:
    project.ok("eval")
    report = json.loads((project.run / "metrics.json").read_text())
    assert report["data"]["without face"]["query"] + report["data"]["without face"]["gallery"] > 0
    for split in ("query", "bounding_box_test"):
        shutil.rmtree(project.data / "lr_face" / split)
    project.ok("eval", "--force")
    streams = market(project.run)
    assert streams["all"]["mAP"] == pytest.approx(streams["body"]["mAP"])
    assert "face" not in streams


@pytest.mark.slow
@pytest.mark.finished("eval")
def test_the_mirrored_image_counts_as_much_as_the_image(project: Project) -> None:
    """With flip, a mirrored query gallery gives the same features, so the same numbers."""
    from PIL import Image

    project.ok("eval")
    before = market(project.run)
    for kind in ("imgs", "lr_face"):
        for path in (project.data / kind / "query").glob("*.jpg"):
            with Image.open(path) as image:
                mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            mirrored.save(path, format="PNG")  # lossless; the extension may say what it likes
    for path in (project.data / "imgs" / "bounding_box_test").glob("*.jpg"):
        path.touch()
    project.ok("eval", "--force")
    after = market(project.run)
    for stream in before:
        assert after[stream]["mAP"] == pytest.approx(before[stream]["mAP"], abs=0.02)


def test_too_few_identities_for_a_batch_is_an_error_before_training(project: Project) -> None:
    result = project("train-teacher", "--set", "train_teacher.batchid=5")
    assert result.code == 2
    assert "4 training identities make no batch of batchid 5" in result.err
    assert "--set train_teacher.batchid=4" in result.err


def test_diverged_training_saves_nothing(project: Project) -> None:
    result = project("train-teacher", "--set", "train_teacher.lr=1e30")
    assert result.code == 2
    assert "training diverged" in result.err
    assert not (project.run / "teacher.safetensors").exists()


def test_a_gpu_that_is_not_there_is_an_error(project: Project) -> None:
    result = project("train-teacher", "--set", "device=cuda:99")
    assert result.code == 2
    assert "device cuda:99: this machine has" in result.err


def test_training_stages_and_terms_are_imported_without_torch() -> None:
    modules = "stages.train_student", "stages.train_teacher", "stages.losses.terms"
    code = f"import sys, {', '.join(f'deskpro.{m}' for m in modules)}\n" + (
        "sys.exit(bool({'torch', 'pandas', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_process_exits_with_2_and_one_message(project: Project) -> None:
    arguments = ("--config", str(project.config), "--run", str(project.run))
    done = run_process("train-teacher", *arguments, "--set", "data.root=nowhere", "--set", "x=1")
    assert done.returncode == 2
    assert "x: unknown option" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_demo_runs_everything_and_compares(project: Project) -> None:
    recipe = yaml.safe_load(project.config.read_text())
    recipe["train_student"]["max_steps"] = recipe["train_teacher"]["max_steps"] = 2
    project.config.write_text(yaml.safe_dump(recipe))
    result = project.ok("demo")
    assert "without and with the teacher's cached targets" in result.out
    assert "teacher, HR face" in result.out
    gain, page, command = result.out.splitlines()[-3:]
    assert re.match(r"gain: [+-]\d.* by chance$", gain)
    assert page == f"report: {project.run / 'report.html'}"
    assert (project.run / "report.html").exists()
    assert command.startswith(f"next: deskpro ablation --config {project.config}")
    assert project.ok("demo").out.splitlines()[-3:] == [gain, page, command]
    again = project.ok("demo", "--force", "--set", "train_teacher.seed=1")
    results = [line for line in again.err.splitlines() if ": mAP face " in line]
    assert len(results) == 2  # each in a process of its own
    assert "train-student: done" not in again.err
    for folder in (".", "ablation/face-plain", "ablation/body-plain"):
        assert "train-student: done" in (project.run / folder / "deskpro.log").read_text()
    student, _ = load_student(project.run / "student.safetensors")
    assert list(student.heads) == ["face", "body"]
    # The student without targets is that of a recipe without, which needs no cache.
    alone = project.run.with_name("alone")
    plain = ("--set", "kd_loss.enable=false", "--set", "mse.mse_weight=0.0", "--run", str(alone))
    assert "teacher-cache" not in project.ok("train-student", *plain).err
    joined = project.run / "ablation" / "plain" / "student.safetensors"
    assert same(alone / "student.safetensors", joined)


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_a_study_of_views_compares_matched_unmatched_and_live(project: Project) -> None:
    result = project("ablation", "--study", "views", "--replicates", "1")
    assert result.code == 2
    assert "--set cache.views=16" in result.err
    short = ("--set", "cache.views=16", "--set", "train_student.max_steps=1")
    project.ok("ablation", "--study", "views", "--replicates", "1", *short)
    variants = {*pd.read_csv(project.run / "results.csv")["variant"]}
    assert variants == {*STUDIES["views"].variants(Options()), *REFERENCES}
    assert "paired difference from unmatched" in (project.run / "ablation-views.md").read_text()


@pytest.mark.finished("teacher-cache")
def test_a_student_of_the_store_is_that_of_a_live_teacher(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 steps from one start, on the same views: rounding the targets is all that differs.

    20 steps with every target, and several teachers: `test_teachers.py`.
    """
    steps = ("--set", "train_student.epochs=2", "--set", "train_student.max_steps=2",
             "--set", "batchid=4", "--set", "batchimage=4", "--set", "embedding.weight=10",
             "--force")  # fmt: skip
    live = (*steps, "--set", "train_student.live_teacher=true")

    def train(*options: str) -> tuple[dict[str, torch.Tensor], pd.DataFrame]:
        project.ok("train-student", *options)
        history = pd.read_csv(project.run / "student_history.csv").drop(columns="images_per_s")
        return weights(project.run / "student.safetensors"), history

    stored, stored_losses = train(*steps)
    assert len(stored_losses) == 2  # a step an epoch

    live_weights, live_losses = train(*live)
    # The first step sees the rounding alone; Adam, which divides by the gradient's size, then
    # takes tiny gradients apart. Parsing is the same bytes.
    first = (stored_losses.iloc[0] - live_losses.iloc[0]).abs()
    assert first.drop(["embedding", "total"]).max() < 1e-5
    assert first["embedding"] < 1e-5 * live_losses["embedding"].iloc[0]
    assert first["attention"] == 0
    assert any(not torch.equal(stored[name], live_weights[name]) for name in stored)

    exact = LiveTeacher.__call__

    def rounded(self: LiveTeacher, batch: Any) -> dict[str, torch.Tensor]:
        # For 16 faces at once some CPUs round otherwise than for the batches of the cache.
        eights = [{k: v[part] for k, v in batch.items()} for part in (slice(8), slice(8, 16))]
        parts = [exact(self, eight) for eight in eights]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {n: v if n == "parsing" else v.half() for n, v in found.items()}

    monkeypatch.setattr(LiveTeacher, "__call__", rounded)
    live_weights, live_losses = train(*live)
    pd.testing.assert_frame_equal(stored_losses, live_losses, check_exact=True)
    for name in stored:
        assert torch.equal(stored[name], live_weights[name]), name


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_a_sweep_trains_every_combination_once_and_goes_on_where_it_stopped(
    project: Project,
) -> None:
    short = ("--set", "train_student.max_steps=1", "--seeds", "2", "--grid", "kd_loss.T=5")
    part = project.ok("sweep", *short, "--grid", "student.width=0.25")
    assert part.err.count(": mAP face ") == 2
    assert logs(project.run).count("train-student: done") == 2
    every = ("--grid", "student.width=0.25,0.5")
    result = project.ok("sweep", *short, *every)
    assert result.err.count(": mAP face ") == 4
    assert logs(project.run).count("train-student: done") == 4  # the others were there
    project.ok("sweep", *short, *every)
    assert logs(project.run).count("train-student: done") == 4
    table = pd.read_csv(project.run / "sweep.csv")
    assert len(table) == 2 * 3
    assert {*zip(table["kd_loss.T"], table["student.width"], strict=True)} == {(5, 0.25), (5, 0.5)}
    for suffix in ("png", "svg"):
        assert (project.run / f"sweep.{suffix}").exists()
    assert (table["seeds"] == 2).all()
    macs = dict(zip(table["student.width"], table["macs"], strict=True))
    assert macs[0.5] > 2 * macs[0.25]
    streams = market(project.run / "sweep" / "kd_loss.T=5,student.width=0.5-1")
    row = table[(table["student.width"] == 0.5) & (table["stream"] == "all")].iloc[0]
    assert abs(100 * streams["all"]["mAP"] - row["mAP"]) <= row["mAP_sd"] + 1e-9


@pytest.mark.slow
def test_students_without_targets_are_swept_without_a_teacher(project: Project) -> None:
    body = ("forward_mode=body", "kd_loss.enable=false", "mse.mse_weight=0",
            "train_student.max_steps=1")  # fmt: skip
    asked = ["sweep", *(word for each in body for word in ("--set", each)), "--seeds", "1",
             "--grid", "loss.triplet_body=0,0.1"]  # fmt: skip
    for line in project.ok(*asked, "--print-commands").out.splitlines():
        words = shlex.split(line)
        assert project.command(*words[words.index("eval") :]).code == 0
    project.ok(*asked)
    assert len(pd.read_csv(project.run / "sweep.csv")) == 2
    assert not (project.run / "teacher.safetensors").exists()
    assert logs(project.run).count("train-student: done") == 2
    stale = project(*asked, "--set", "train_student.lr=1e-3")
    assert stale.code == 2
    assert stale.err.strip().endswith("The same command with --force makes it again")


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_a_sweep_without_targets_leaves_the_cache_of_the_run_alone(project: Project) -> None:
    asked = ["--set", "kd_loss.enable=false", "--set", "mse.mse_weight=0",
             "--set", "train_student.max_steps=1", "--seeds", "1",
             "--grid", "data.identities=2,4"]  # fmt: skip
    project.ok("sweep", *asked)
    students = [path.parent for path in (project.run / "sweep").glob("*/student.safetensors")]
    assert len(students) == 2
    for student in students:
        assert RunFolder.open(student).source is None
    assert not [*(project.run / "sweep").rglob("teacher.safetensors")]


@pytest.mark.slow
@pytest.mark.finished("teacher-cache")
def test_printed_commands_train_the_students_of_a_sweep(project: Project) -> None:
    asked = ["sweep", "--set", "train_student.max_steps=1", "--seeds", "1",
             "--grid", "kd_loss.T=2,5"]  # fmt: skip
    lines = project.ok(*asked, "--print-commands").out.splitlines()
    assert len(lines) == 2
    assert not (project.run / "student.safetensors").exists()
    lock = project.run.with_name(f".{project.run.name}.lock")
    for line in reversed(lines):
        lock.unlink(missing_ok=True)
        words = shlex.split(line)
        program, words = words[: words.index("eval")], words[words.index("eval") :]
        done = subprocess.run([*program, "--version"], capture_output=True, text=True)
        assert done.stdout.startswith("deskpro"), done.stderr
        assert project.command(*words).code == 0
        # They run at once, so that only the run's own student may lock the run.
        assert lock.exists() == (Path(words[-1]) == project.run)
    assert project.ok(*asked, "--print-commands").out.splitlines() == lines
    recipes = [Path(shlex.split(line)[-1], "config.yaml").read_text() for line in lines]
    other = project(*asked, "--set", "train_student.lr=0.5", "--print-commands")
    assert other.code == 2
    assert "train_student.lr" in other.err
    assert recipes == [Path(shlex.split(line)[-1], "config.yaml").read_text() for line in lines]
    done = logs(project.run).count("train-student: done")
    project.ok(*asked)
    assert logs(project.run).count("train-student: done") == done
    assert len(pd.read_csv(project.run / "sweep.csv")) == 2 * 3
    assert project(*asked, "--print-commands", "--force").code == 2


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.finished("teacher-cache")
def test_an_interrupted_sweep_leaves_nobody_behind_and_trains_nobody_twice(
    by: signal.Signals, project: Project
) -> None:
    program = Path(sys.executable).with_name("deskpro")
    sweep = ["sweep", "--config", project.config, "--run", project.run, "--jobs", "2", "--seeds",
             "1", "--grid", "kd_loss.T=1,2,5", "--set", "train_student.epochs=4"]  # fmt: skip
    said = project.run / "sweep.log"
    with said.open("w") as log:
        first = subprocess.Popen([program, *sweep], stderr=log, cwd=REPOSITORY)
    deadline = time.monotonic() + 120
    while "train-student: done" not in logs(project.run):
        assert time.monotonic() < deadline, said.read_text()
        time.sleep(0.05)
    first.send_signal(by)
    assert first.wait(60) == {signal.SIGKILL: -9}.get(by, 128 + by)
    while children := _busy_with(project.run):
        assert time.monotonic() < deadline, children
        time.sleep(0.05)
    done = logs(project.run).count("train-student: done")
    assert 1 <= done < 3
    again = run_process(*map(str, sweep))
    assert again.returncode == 0, again.stderr
    assert logs(project.run).count("train-student: done") == 3
    assert len(pd.read_csv(project.run / "sweep.csv")) == 3 * 3


def logs(run: Path) -> str:
    """The logs of a run and of its students."""
    return "".join(log.read_text() for log in run.rglob("deskpro.log"))


def _busy_with(folder: Path) -> list[str]:
    """The processes that have a file of a folder open."""
    found = []
    for feature in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if feature.parts[2] != str(os.getpid()) and folder in feature.readlink().parents:
                found.append(feature.parts[2])
    return found


@pytest.mark.parametrize(
    ("grid", "said"),
    [
        ("kd_loss.X=1", "must be OPTION=VALUE"),
        ("kd_loss.T", "must be OPTION=VALUE"),
        ("student.width=0.3", "must be one of 0.25"),
    ],
)
def test_an_impossible_sweep_is_refused_before_any_work(
    grid: str, said: str, project: Project
) -> None:
    result = project("sweep", "--grid", grid)
    assert result.code == 2
    assert said in result.err
    assert not project.run.exists()
