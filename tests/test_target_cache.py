"""The target cache as a user has it: what is noticed, what is computed again, what is kept."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from deskpro.cache.reader import MappedReader, ZarrReader
from deskpro.cache.schema import Field
from deskpro.cache.store import TargetStore
from deskpro.cache.verify import verify
from deskpro.pipeline import config
from deskpro.stages.base.options import Options
from deskpro.stages.cache_plan import rate
from deskpro.stages.data import views as view_module
from deskpro.stages.losses.terms import TERMS, Term
from deskpro.stages.models.lmbn import Output
from deskpro.stages.models.weights import load_teacher, save
from deskpro.stages.targets import class_share, kinds
from deskpro.stages.targets.kinds import TARGETS, Settings, divergence, stored_fields, tensors
from deskpro.stages.targets.plan import field_bytes, settings_for
from deskpro.stages.targets.provenance import option_differences
from deskpro.stages.targets.teachers import CachedTeacher, ClassTeacher, mean_output, open_teacher
from deskpro.stages.targets.worker import Item, ItemTarget
from tests.conftest import REPOSITORY, Project, Result, run_process, slow, with_cache

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def project(project: Project, tiny_run: Path, tiny_benchmark: Path) -> Project:
    """Here teacher and target cache are made already."""
    return with_cache(project, tiny_run, tiny_benchmark)


def store(project: Project) -> Path:
    return project.run / "targets.zarr"


def reader(project: Project, name: str = "logits") -> MappedReader:
    return MappedReader(store(project), TARGETS[name].group)


def content(root: Path) -> dict[str, bytes]:
    """Every file of a store."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


def images(project: Project, kind: str) -> list[Path]:
    return sorted((project.data / kind / "bounding_box_train").glob("*.jpg"))


def change_a_pixel(path: Path) -> None:
    with Image.open(path) as image:
        changed = image.convert("RGB")
    changed.putpixel((0, 0), (255, 0, 255))
    changed.save(path, quality=95)


def sets(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def there(result: Result, name: str = "logits") -> tuple[int, int]:
    """How many (block, view) of a target a teacher-cache found, and of how many."""
    found = re.search(rf"{name} +(\d+) of (\d+) \(block, view\) were there", result.err)
    assert found is not None, result.err
    return int(found[1]), int(found[2])


def sample_id(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


# What each change does to files or options, and how it must be named.


def _one_pixel(project: Project) -> tuple[list[str], str]:
    face = images(project, "hr_face")[3]
    change_a_pixel(face)
    return [], f"hr_face_sha256 of {sample_id(face)} changed"


def _a_mask(project: Project) -> tuple[list[str], str]:
    mask = images(project, "mask")[9]
    mask.write_bytes(mask.read_bytes() + b"\0")
    return [], f"mask_sha256 of {sample_id(mask)} changed"


def _every(project: Project, name: str) -> list[Path]:
    kinds = ("imgs", "lr_face", "hr_face", "mask")
    return [project.data / kind / "bounding_box_train" / name for kind in kinds]


def _a_sample_more(project: Project) -> tuple[list[str], str]:
    name = images(project, "hr_face")[0].name
    new = name.replace(".jpg", "9.jpg")
    for path in _every(project, name):
        shutil.copy(path, path.with_name(new))
    return [], f"bounding_box_train/{new} new"


def _a_sample_less(project: Project) -> tuple[list[str], str]:
    name = images(project, "hr_face")[0].name
    for path in _every(project, name):
        path.unlink()
    return [], f"bounding_box_train/{name} gone"


def _a_sample_renamed(project: Project) -> tuple[list[str], str]:
    name = images(project, "hr_face")[0].name
    new = name.replace(".jpg", "9.jpg")
    for path in _every(project, name):
        path.rename(path.with_name(new))
    return [], f"bounding_box_train/{name} gone; bounding_box_train/{new} new"


def _other_weights(project: Project) -> tuple[list[str], str]:
    teacher, described = load_teacher(project.run / "teacher.safetensors")
    with torch.no_grad():
        next(teacher.face_net.parameters()).add_(1e-3)
    save(project.run / "teacher.safetensors", teacher.face_net, described)
    return [], "teacher.weights was "


def _other_classes(project: Project) -> tuple[list[str], str]:
    from dataclasses import replace

    teacher, described = load_teacher(project.run / "teacher.safetensors")
    assert described.classes is not None
    turned = replace(described, classes=described.classes[::-1])
    save(project.run / "teacher.safetensors", teacher.face_net, turned)
    return [], "classes was ['0001', '0005'"


def _other_network(project: Project) -> tuple[list[str], str]:
    from dataclasses import replace

    teacher, described = load_teacher(project.run / "teacher.safetensors")
    turned = replace(described, network=described.network | {"block": "published"})
    save(project.run / "teacher.safetensors", teacher.face_net, turned)
    return [], "teacher.network.block was osnet, is published"


CHANGES: dict[str, Callable[[Project], tuple[list[str], str]]] = {
    "pixel": _one_pixel,
    "mask": _a_mask,
    "sample more": _a_sample_more,
    "sample less": _a_sample_less,
    "sample renamed": _a_sample_renamed,
    "weights": _other_weights,
    "class order": _other_classes,
    "network": _other_network,
    "views": lambda project: (sets("views.flip=0.1"), "views.flip was 0.5, is 0.1"),
    "precision": lambda project: (
        sets("cache.precision=bfloat16"), "precision was float32, is bfloat16"),
    "storage": lambda project: (
        sets("cache.logits_dtype=int8"), "logits_dtype was float16, is int8"),
    "size": lambda project: (
        sets("data.face_size=[40, 32]"), "face_size was [32, 32], is [40, 32]"),
}  # fmt: skip
QUICK = ("pixel", "sample more", "weights", "views")


@pytest.mark.parametrize(
    "change",
    [
        *QUICK,
        *slow(*(name for name in CHANGES if name not in QUICK)),
    ],
)
def test_every_change_is_noticed_and_named_by_the_student_and_by_an_audit(
    change: str, project: Project
) -> None:
    """As if the cache was brought from elsewhere: the stages know it by its fingerprint alone."""
    project.ok("teacher-cache")
    before = content(store(project))
    options, named = CHANGES[change](project)
    audited = project.command("cache", "audit", str(project.run), "--samples", "1", *options)
    assert audited.code == 1
    assert all(part in audited.out for part in named.split("; ")), audited.out
    for manifest in (project.run / ".state" / "manifests").iterdir():
        manifest.unlink()
    result = project("train-student", *options)
    assert result.code == 2
    assert all(part in result.err for part in named.split("; ")), result.err
    assert "Type: deskpro teacher-cache --config" in result.err
    assert not (project.run / "student.safetensors").exists()
    assert content(store(project)) == before


def test_another_code_of_views_is_noticed_and_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.ok("teacher-cache")
    version = view_module.VERSION
    monkeypatch.setattr(view_module, "VERSION", version + 1)
    named = f"views.version was {version}, is {version + 1}"
    teacher = project.run / "teacher.safetensors"
    options = config.load(project.config)
    assert option_differences(store(project), options, teacher, TARGETS.values()) == [named]
    assert named in project("train-student").err


@pytest.mark.slow
@pytest.mark.parametrize("change", ["pixel", "views", "sample less", "weights", "precision"])
def test_an_unfinished_cache_is_not_resumed_with_something_else(
    change: str, project: Project
) -> None:
    kill_at_work(project, blocks=2)
    begun = content(store(project))
    options, named = CHANGES[change](project)
    for manifest in (project.run / ".state" / "manifests").iterdir():
        manifest.unlink()
    result = project("teacher-cache", *options)
    assert result.code == 2
    assert all(part in result.err for part in named.split("; ")), result.err
    assert content(store(project)) == begun
    result = project.ok("teacher-cache", *options, "--force")
    if change == "pixel":
        assert there(result)[0] > 0  # what is the same is kept even so


@pytest.mark.slow
def test_an_unfinished_cache_of_other_samples_is_refused_in_one_line(project: Project) -> None:
    kill_at_work(project, blocks=2)
    begun = content(store(project))
    for kind in ("imgs", "lr_face", "hr_face", "mask"):
        for path in sorted((project.data / kind / "bounding_box_train").iterdir()):
            path.rename(path.with_stem(path.stem.replace("_0", "_9")))
    result = project("teacher-cache")
    assert result.code == 2
    assert "Traceback" not in result.err
    assert sum(line.startswith("deskpro: ") for line in result.err.splitlines()) == 1
    assert content(store(project)) == begun


def remove_cache(project: Project) -> None:
    shutil.rmtree(store(project))
    (project.run / ".state" / "manifests" / "teacher-cache.json").unlink()


def written(project: Project) -> int:
    """How many (block, view) of logits an unfinished store has."""
    journal = store(project) / TARGETS["logits"].group / "index" / "journal.jsonl"
    return journal.read_text().count("\n") if journal.exists() else 0


def kill_at_work(project: Project, blocks: int = 1) -> None:
    """A teacher-cache, killed when so many blocks of a store are written."""
    remove_cache(project)
    program = Path(sys.executable).with_name("deskpro")
    where = ["--config", str(project.config), "--run", str(project.run)]
    slow = sets("cache.batch=1", "cache.block=4")  # so that there is a middle to be killed in
    with subprocess.Popen([program, "teacher-cache", *where, *slow], env=ONE_THREAD) as process:
        deadline = time.monotonic() + 120
        while written(project) < 3 * blocks:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    recipe = project.config.read_text().replace("batch: 16", "batch: 1")
    project.config.write_text(recipe.replace("block: 8", "block: 4"))


def rebuilt(project: Project, folder: Path, *options: str) -> dict[str, bytes]:
    """The store of the project's teacher and images, built without interruption."""
    folder.mkdir()
    shutil.copy(project.run / "teacher.safetensors", folder)
    project.ok("teacher-cache", "--run", str(folder), *options)
    return content(folder / "targets.zarr")


@pytest.mark.slow
def test_a_killed_stage_resumes(project: Project, tmp_path: Path) -> None:
    kill_at_work(project, blocks=2)
    found, total = there(project.ok("teacher-cache"))
    assert 6 <= found < total
    assert content(store(project)) == rebuilt(project, tmp_path / "other")


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["sealed", "grown"])
def test_a_kill_between_the_store_and_its_manifest_changes_nothing(
    moment: str, project: Project
) -> None:
    more = sets("cache.views=4") if moment == "grown" else []
    if moment == "sealed":
        remove_cache(project)
    seals = [store(project) / target.group / "index" / "zarr.json" for target in TARGETS.values()]
    before = [seal.read_bytes() for seal in seals] if moment == "grown" else []
    program = Path(sys.executable).with_name("deskpro")
    where = ["--config", str(project.config), "--run", str(project.run), "--set", "data.workers=2"]
    with subprocess.Popen([program, "teacher-cache", *where, *more], env=ONE_THREAD) as process:
        deadline = time.monotonic() + 120
        while not all(seal.exists() for seal in seals) or any(
            seal.read_bytes() == old for seal, old in zip(seals, before, strict=False)
        ):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    project.ok("train-student", *more)
    project.ok("teacher-cache", *more)
    assert "is fresh" in project.ok("teacher-cache", *more).err
    assert not verify(store(project))


def test_a_changed_image_costs_its_block_of_the_target_that_sees_it(project: Project) -> None:
    before = content(store(project))
    mask = images(project, "mask")[9]
    change_a_pixel(mask)
    result = project("train-student")
    assert result.code == 2
    assert f"mask_sha256 of {sample_id(mask)} changed" in result.err
    result = project.ok("teacher-cache", "--force")
    assert there(result, "parsing") == (6, 9)
    assert there(result, "logits") == (9, 9)
    group = TARGETS["logits"].group
    assert {n: b for n, b in content(store(project)).items() if n.startswith(group)} == {
        name: before[name] for name in before if name.startswith(group)
    }
    assert not verify(store(project))
    audit = project.command("cache", "audit", str(project.run), "--samples", "60")
    assert audit.code == 0, audit.out


@pytest.mark.slow
def test_more_views_are_added_without_force_and_fewer_refused(
    project: Project, tmp_path: Path
) -> None:
    more = sets("cache.views=5")
    assert there(project.ok("teacher-cache", *more)) == (9, 15)
    assert content(store(project)) == rebuilt(project, tmp_path / "other", *more)
    result = project("teacher-cache")
    assert result.code == 2
    assert "cache.views was 5, is 3" in result.err
    project.ok("train-student", *more)


@pytest.mark.slow
def test_fewer_views_train_a_student_as_if_there_had_never_been_more(project: Project) -> None:
    """Another target keeps its three views, and the store the views that they are about."""
    options = sets("cache.views=2", "cache.targets=[logits,parsing]")
    weights = []
    for alone in (False, True):
        if alone:
            shutil.rmtree(store(project))
        project.ok("teacher-cache", "--force", *options)
        width = TargetStore(store(project)).column("views").shape[1]
        assert (reader(project).schema.views, width) == (2, 2 if alone else 3)
        project.ok("train-student", "--force", *options)
        weights.append(load_file(project.run / "student.safetensors"))
    beside, alone_ = weights
    assert all(torch.equal(value, alone_[name]) for name, value in beside.items())


@pytest.mark.slow
def test_an_outdated_target_stops_only_the_student_that_needs_it(project: Project) -> None:
    change_a_pixel(images(project, "hr_face")[0])
    few = sets("cache.targets=[logits,parsing]")
    project.ok("teacher-cache", "--force", *few)
    for without in (few, [*few, *sets("kd_loss.enable=false", "mse.mse_weight=0")]):
        project.ok("train-student", "--force", *without)
    refused = project("train-student", "--force", *few, *sets("embedding.weight=5"))
    assert refused.code == 2
    words = shlex.split(refused.err.split("Type: ")[1])
    assert words[-3:] == ["--add", "embedding", "--force"]
    assert project.command(*words[1:]).code == 0
    reader(project, "embedding")


@pytest.mark.slow
def test_touched_files_with_the_same_content_are_the_same(project: Project) -> None:
    project.ok("teacher-cache")
    for kind in ("hr_face", "mask", "imgs"):
        for path in images(project, kind):
            path.touch()
    assert "is fresh" in project.ok("teacher-cache").err
    project.ok("train-student")


def test_a_change_that_keeps_size_and_time_is_found(project: Project) -> None:
    mask = images(project, "mask")[0]
    status, image = mask.stat(), bytearray(mask.read_bytes())
    image[-40] ^= 1
    mask.write_bytes(image)
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
    for stage in ("teacher-cache", "train-student"):
        result = project(stage, "--deep")
        assert result.code == 2
        assert f"mask_sha256 of {sample_id(mask)} changed" in result.err
    audit = project.command("cache", "audit", str(project.run), "--deep", "--samples", "1")
    assert f"mask_sha256 of {sample_id(mask)} changed" in audit.out


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_run_goes_on_after_room_is_made(
    project: Project, tmp_path: Path
) -> None:
    """A file system of its own, too small for the cache until some of it is freed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    program = Path(sys.executable).with_name("deskpro")
    command = f"{program} teacher-cache --config {project.config} --run {disk}/run"
    script = f"""
        mount -t tmpfs -o size=400k tmpfs {disk} || exit 77
        mkdir {disk}/run && cp {project.run}/teacher.safetensors {disk}/run
        cat {disk}/run/teacher.safetensors > /dev/null || exit 77
        {command} {" ".join(sets("cache.views=12"))}; echo "code $?"
        mount -o remount,size=40m {disk} || exit 77
        {command} {" ".join(sets("cache.views=12"))}; echo "code $?"
        {program} cache verify {disk}/run; echo "code $?"
    """
    size = (project.run / "teacher.safetensors").stat().st_size
    script = script.replace("size=400k", f"size={(size + 330_000) // 1024}k")
    done = subprocess.run(
        ["unshare", "-rm", "bash", "-c", script], capture_output=True, text=True, cwd=REPOSITORY
    )
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"may not mount a file system here: {done.stderr.strip()[:80]}")
    assert done.stdout.split("\n")[:3] == ["code 2", "code 0", "code 0"], done.stderr
    assert "no space left on device. Free some space and type the same command" in done.stderr
    assert "Traceback" not in done.stderr
    found, total = there(Result(0, "", done.stderr))
    assert 0 < found < total


@pytest.mark.slow
def test_targets_in_memory_are_those_of_the_files(project: Project) -> None:
    result = project.ok("train-student")
    assert re.search(r"targets +from memory", result.err)
    resident = (project.run / "student.safetensors").read_bytes()
    result = project.ok("train-student", "--force", *sets("cache.memory=0"))
    assert re.search(r"targets +from mapped files", result.err)
    assert (project.run / "student.safetensors").read_bytes() == resident


@pytest.mark.cuda
@pytest.mark.parametrize("budget", [0.0, 1e9])
def test_targets_reach_a_gpu(budget: float, project: Project) -> None:
    batch = {"row": torch.tensor([3, 9, 3]), "view": torch.tensor([1, 0, 2])}
    wanted = CachedTeacher(store(project), TARGETS, torch.device("cpu"))(batch)
    teacher = CachedTeacher(store(project), TARGETS, torch.device("cuda"), budget=budget)
    assert teacher.location == ("GPU memory" if budget else "mapped files")
    for _ in range(5):
        for name, values in teacher(batch).items():
            assert values.device.type == "cuda"
            assert torch.equal(values.cpu(), wanted[name])


def test_class_means_are_the_means_of_every_view_of_an_identity(project: Project) -> None:
    every, cached = [*TARGETS], CachedTeacher(store(project), TARGETS, torch.device("cpu"))
    labels = torch.from_numpy(TargetStore(store(project)).column("label").astype(np.int64))
    views, valid = cached.readers["logits"].schema.views, cached.valid.get("logits")
    rows = torch.arange(len(labels)).repeat_interleave(views)
    batch = {"row": rows, "view": torch.arange(views).repeat(len(labels))}
    of_each, found = cached(batch), ClassTeacher(cached, store(project))(batch)
    assert [*found] == every
    assert torch.equal(found["parsing"], of_each["parsing"])
    for row, means in zip(rows, found["logits"], strict=True):
        alike = labels[rows] == labels[row]
        if valid is not None:
            alike &= valid[rows]
        torch.testing.assert_close(means, of_each["logits"][alike].double().mean(0).float())


def test_embeddings_of_another_length_or_that_are_not_there_are_refused(project: Project) -> None:
    longer = project("train-student", *sets("embedding.weight=10", "student.feature_dim=24"))
    assert longer.code == 2
    assert "have 16 numbers a head, student.feature_dim is 24" in longer.err
    shutil.rmtree(store(project) / TARGETS["embedding"].group)
    few = sets("embedding.weight=10", "cache.targets=[logits,parsing]")
    absent = project("train-student", *few)
    assert absent.code == 2
    assert "holds logits, parsing; the student needs embedding, too" in absent.err
    assert "Type: deskpro teacher-cache --config" in absent.err
    assert "--add embedding" in absent.err
    assert not (project.run / "student.safetensors").exists()


def test_a_target_is_added_to_a_finished_cache(project: Project) -> None:
    before, group = content(store(project)), TARGETS["embedding"].group
    shutil.rmtree(store(project) / group)
    few = sets("cache.targets=[logits,parsing]")
    result = project.ok("teacher-cache", *few, "--add", "embedding")
    assert there(result, "logits") == there(result, "parsing") == (9, 9)
    after = content(store(project))
    journals = {name for name in before if name.endswith("journal.jsonl")}
    assert {n: v for n, v in after.items() if n not in journals} == {
        n: v for n, v in before.items() if n not in journals
    }
    assert "fresh" in project.ok("teacher-cache", *few).err  # with fewer it stays as it is
    assert "fresh" in project.ok("teacher-cache", *few, "--add", "embedding").err


def test_a_cached_teacher_reads_only_the_groups_it_is_opened_for(project: Project) -> None:
    batch = {"row": torch.tensor([3, 9, 3]), "view": torch.tensor([1, 0, 2])}
    both = CachedTeacher(store(project), TARGETS, torch.device("cpu"))(batch)
    for name, other in (("logits", "parsing"), ("parsing", "logits")):
        hidden = store(project) / TARGETS[other].group
        hidden.rename(hidden.with_name("hidden"))
        alone = CachedTeacher(
            store(project), {name: TARGETS[name]}, torch.device("cpu"), budget=1e9
        )(batch)
        hidden.with_name("hidden").rename(hidden)
        assert alone.keys() == {name}
        assert torch.equal(alone[name], both[name])


@pytest.mark.parametrize("name", TARGETS)
def test_a_live_teacher_needs_images_and_a_cached_one_none(name: str, project: Project) -> None:
    weights = project.run / "teacher.safetensors"
    live, cached = (
        open_teacher(
            config.load(project.config, [f"train_student.live_teacher={live}"]),
            weights, store(project), [name], torch.device("cpu"),
        )
        for live in ("true", "false")
    )  # fmt: skip
    assert live.sees == TARGETS[name].sees
    assert cached.sees == ()


def assert_planned(project: Project) -> None:
    """A plan of as many samples has the size and the number of files of the store."""
    words = ("cache", "plan", "--samples", "20", "--run", str(project.run))
    result = project.command(*words)
    assert result.code == 0, result.err
    found = [path.stat().st_size for path in store(project).rglob("*") if path.is_file()]
    [planned] = re.findall(r"([\d,]+) bytes$", result.err, re.MULTILINE)
    assert int(planned.replace(",", "")) == pytest.approx(sum(found), rel=0.01)
    assert re.search(rf"files +{len(found)}$", result.err, re.MULTILINE)


def test_a_plan_predicts_the_store(project: Project) -> None:
    before = content(project.run)
    assert_planned(project)
    assert content(project.run) == before
    words = ("cache", "plan", "--samples", "4e6", "--views", "16", "--identities", "100000")
    result = project.command(*words, "--run", str(project.run))
    assert "4,000,000 of 100,000 identities, 16 views of each" in result.err
    assert re.search(r"time +\S+ hours at \S+ views a second", result.err)
    logits = next(line for line in result.out.splitlines() if "logits" in line)
    assert [cell.strip() for cell in logits.split("│")][2:4] == ["1,400,008", "16,000,006"]
    other = project.command(*words, "--config", str(project.config))
    assert "time     not known" in other.err


def test_a_rate_is_of_what_was_computed() -> None:
    result = {"kept": {"logits": 3, "parsing": 9}, "chunks": 9, "views": 3}
    record = {"seconds": 5.0, "result": result | {"data": {"samples": 20}}}
    assert rate(record) == pytest.approx(20 * 3 * 6 / 9 / 5)
    data = {"samples": 20, "unlabelled": 10}
    assert rate({**record, "result": {**result, "data": data}}) == pytest.approx(30 * 3 * 6 / 9 / 5)
    for other in ({"kept": {"logits": 9}}, {"kept": {}}, {"data": None}):
        assert rate(record | {"result": record["result"] | other}) is None  # type: ignore[operator]


def test_the_table_of_bytes_is_that_of_the_code() -> None:
    text = (REPOSITORY / "cache" / "README.md").read_text()
    lines = text.partition("<!-- bytes by target -->")[2].partition("<!-- end -->")[0].split("\n")
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    expected = {}
    for dtype in ("float16", "int8"):
        options = Options(cache={"logits_dtype": dtype, "embedding_dtype": dtype})  # type: ignore[arg-type]
        settings = settings_for(options, classes=632)
        for name in TARGETS:
            fields = stored_fields(TARGETS[name], settings)
            expected[name, fields[name].dtype] = f"{sum(map(field_bytes, fields.values())):,}"
    assert {(name, dtype): count for name, dtype, count, _ in rows[2:]} == expected


@pytest.mark.slow
def test_int8_logits_halve_the_cache_and_their_loss_is_recorded(project: Project) -> None:
    rows, views = [*range(20)] * 3, [0] * 20 + [1] * 20 + [2] * 20
    exact = torch.from_numpy(reader(project).read(rows, views)["logits"])
    result = project.ok("teacher-cache", "--force", *sets("cache.logits_dtype=int8"))
    assert there(result, "parsing") == (9, 9)
    assert not re.search(r"logits .* were there", result.err)
    whole = reader(project)
    assert whole.schema.fields["logits"].dtype == "int8"
    close = TARGETS["logits"].decode(tensors(whole.read(rows, views)))
    step = exact.float().abs().amax(2, keepdim=True) / 127
    assert ((close - exact.float()).abs() <= 0.51 * step + 1e-3).all()
    sizes = {block: len(range(*whole.schema.rows(block).indices(20))) for block in range(3)}
    facts = {key: record.facts["KL of int8, nats"] for key, record in whole.records.items()}
    mean = sum(np.mean(kl) * sizes[key.block] for key, kl in facts.items()) / 60
    truth = divergence(exact, close).mean() / 60
    assert mean == pytest.approx(float(truth), rel=1e-3)
    assert "KL of int8" in project.command("cache", "info", str(project.run)).out
    assert_planned(project)
    project.ok("train-student", *sets("cache.logits_dtype=int8"))
    audit = project.command("cache", "audit", str(project.run))
    assert audit.code == 0, audit.out


SETTINGS = Settings(5, (32, 32), (64, 32), (8, 4), "float32", "int8", "int8", 16, ())


def test_int8_keeps_a_head_without_logits() -> None:
    logits = torch.zeros(2, 7, 5)
    logits[0, 0] = torch.tensor([-1.0, 0, 0.5, 1, 127])
    stored = TARGETS["logits"].encode(logits, SETTINGS)
    back = TARGETS["logits"].decode(tensors(stored))
    assert torch.equal(back[1], logits[1])
    assert (back[0, 0] - logits[0, 0]).abs().max() <= 0.5


def explained(p: torch.Tensor, labels: np.ndarray) -> float:
    """The share of the classes in mean KL(p_i ‖ p̄), written out; p [..., C] and labels [...]."""
    p, labels = p.reshape(-1, p.shape[-1]), labels.reshape(-1)
    known = p[torch.from_numpy(labels >= 0)]
    mean = known.mean(0)
    means = {int(c): p[torch.from_numpy(labels == c)].mean(0) for c in labels if c >= 0}
    of_class = torch.stack([means[int(c)] for c in labels if c >= 0])

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a * (a / b).log()).sum(1).mean())

    assert apart(of_class, mean) + apart(known, of_class) == pytest.approx(apart(known, mean))
    return apart(of_class, mean) / apart(known, mean)


def test_the_share_of_the_class_leaves_out_samples_without_label_or_target(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(class_share, "_NUMBERS", 100)  # a few pairs at a time
    whole, labels = reader(project), TargetStore(store(project)).column("label").copy()
    labels[[0, 3, 11]] = -1
    whole.valid = whole.valid & (np.arange(20) != 7)
    whole.records = {key: record for key, record in whole.records.items() if key != (1, 2)}
    pairs = [(i, v) for i in range(20) for v in range(3) if (i // 8, v) != (1, 2) and i != 7]
    rows, views = [i for i, _ in pairs], [v for _, v in pairs]
    p = torch.from_numpy(whole.read(rows, views)["logits"]).double().softmax(2)
    found = class_share.class_share(kinds.LogitsTarget(), whole, labels)
    for head, share in enumerate(found):
        assert share == pytest.approx(explained(p[:, head], labels[rows]), rel=1e-6)
    assert np.isnan(class_share.class_share(kinds.LogitsTarget(), whole, labels * 0 - 1)).all()


def test_the_share_of_the_class_is_of_the_variance_for_embeddings(project: Project) -> None:
    whole, labels = reader(project, "embedding"), TargetStore(store(project)).column("label")
    x = np.stack([whole.read([i] * 3, [0, 1, 2])["embedding"] for i in range(20)]).astype(float)
    means = np.stack([x[labels == label].mean((0, 1)) for label in labels])
    between = ((means - x.mean((0, 1))) ** 2).mean(0).sum(1)
    share = between / ((x - x.mean((0, 1))) ** 2).mean((0, 1)).sum(1)
    found = class_share.class_share(kinds.EmbeddingTarget(), whole, labels)
    np.testing.assert_allclose(found, share, rtol=1e-9)
    everybody = class_share.class_share(kinds.EmbeddingTarget(), whole, np.arange(20))
    assert (found < everybody).all()


def test_top1_counts_samples_with_a_label() -> None:
    logits = torch.zeros(3, 7, 5)
    logits[:, :, 2] = 1
    stored = {"logits": logits.half().numpy()}
    found = TARGETS["logits"].describe(stored, np.array([2, -1, 1]))
    np.testing.assert_array_equal(found["top-1, %"][:, 0], [100, np.nan, 0])
    assert np.isfinite(found["entropy, nats"]).all()


def test_info_tells_what_a_cache_holds(project: Project) -> None:
    for path in (project.run, store(project)):
        result = project.command("cache", "info", str(path))
        assert result.code == 0
        for text in ("9 of 9 (block, view), sealed", "4 classes", "[20, 3, 7, 4] float16",
                     "kB per sample and view", "other skin, %"):  # fmt: skip
            assert text in result.err
    whole = ZarrReader(store(project), TARGETS["logits"].group)
    logits = np.stack([whole.read([i] * 3, [0, 1, 2])["logits"] for i in range(20)])
    right = (logits.argmax(3) == whole.column("label")[:, None, None]).mean((0, 1))
    p = torch.from_numpy(logits).double().softmax(3)
    entropy = -(p * p.log()).sum(3).mean((0, 1))
    labels = np.repeat(whole.column("label"), 3).reshape(20, 3)
    for head, (top1, nats) in enumerate(zip(right, entropy, strict=True)):
        line = [line for line in result.out.splitlines() if "│" in line][head]
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        assert float(cells[1]) == pytest.approx(100 * top1, abs=0.06)
        assert float(cells[2]) == pytest.approx(float(nats), abs=2e-3)
        assert float(cells[3]) == pytest.approx(100 * explained(p[:, :, head], labels), rel=1e-3)
    assert project.command("cache", "info", str(project.data)).code == 2
    group = store(project) / TARGETS["logits"].group  # as a kill before its metadata leaves it
    for name in ("zarr.json", "index/zarr.json"):
        (group / name).unlink()
    (group / "index" / "journal.jsonl").touch()
    result = project.command("cache", "info", str(project.run))
    assert result.code == 0, result.err
    assert "logits" not in result.err


@pytest.mark.slow
def test_info_of_an_unfinished_store_tells_how_far_it_is(project: Project) -> None:
    kill_at_work(project)
    result = project.command("cache", "info", str(project.run))
    assert result.code == 0, result.err
    assert re.search(r"logits +\d+ of 15 \(block, view\), unfinished", result.err)
    result = project.command("cache", "verify", str(project.run))
    assert result.code == 1
    assert "not finished" in result.out


def test_verify_names_the_damaged_file_and_force_computes_it_again(project: Project) -> None:
    before = content(store(project))
    assert project.command("cache", "verify", str(project.run)).code == 0
    folder = store(project) / TARGETS["logits"].group
    chunk = reader(project).schema.chunk_file(folder, "logits", 1, 2)
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 16
    chunk.write_bytes(damaged)
    result = project.command("cache", "verify", str(project.run))
    assert result.code == 1
    assert result.out == f"{chunk}: block 1, view 2: its checksum differs\n"
    result = project("train-student")
    assert result.code == 2
    assert f"{chunk}: damaged" in result.err
    assert there(project.ok("teacher-cache", "--force")) == (8, 9)
    assert content(store(project)) == before


@pytest.mark.slow
def test_an_audit_finds_targets_that_the_teacher_would_not_give(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    audit = ("cache", "audit", str(project.run), "--samples", "60", "--set", "cache.batch=7")
    result = project.command(*audit)
    assert result.code == 0, result.out
    assert "60 (sample, view), seed 0" in result.err

    # A whole store, checksums and all, that has other targets of two views.
    right = ItemTarget.add

    def wrong(self: Any, rows: Any, view: int, value: torch.Tensor, pixels: np.ndarray) -> None:
        value, pixels = value.clone(), pixels.copy()
        if self.target is TARGETS["logits"] and view == 1 and 5 in rows:
            value[rows.index(5)] += 0.5
            pixels[rows.index(5)] = 7
        if self.target is TARGETS["parsing"] and view == 2 and 9 in rows:
            value[rows.index(9)] = 0.3
        right(self, rows, view, value, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(ItemTarget, "add", wrong)
        project.ok("teacher-cache", "--force", *sets("cache.reuse=false"))
    assert not verify(store(project))
    result = project.command(*audit)
    assert result.code == 1
    samples = TargetStore(store(project)).column("sample_id")
    lines = result.out.splitlines()
    pixels = "the pixels of hr_face differ from those that logits was computed from"
    assert f"{samples[5]}, view 1: {pixels}" in lines
    assert any(line.startswith(f"{samples[5]}, view 1: logits of global differs") for line in lines)
    assert any(line.startswith(f"{samples[9]}, view 2: parsing differs by") for line in lines)
    assert {line.split(":")[0] for line in lines} == {
        f"{samples[5]}, view 1", f"{samples[9]}, view 2"}  # fmt: skip


def test_an_audit_of_another_shape_names_it_and_computes_nothing(project: Project) -> None:
    audit = project.command("cache", "audit", str(project.run), *sets("data.body_size=[96, 48]"))
    assert audit.code == 1
    assert "body_size was [64, 32], is [96, 48]" in audit.out
    assert "nothing was compared" in audit.out


class Brightness(kinds.Target):
    """The mean of the LR face, [B]: a target that no teacher computes."""

    group, sees, depends = "brightness", ("lr_face",), ("face_size",)

    def fields(self, settings: Settings) -> dict[str, Field]:
        return {"brightness": Field((), "float32", (), "1/255", "mean of the LR face")}

    def compute(self, batch: Any, output: Any, settings: Settings) -> torch.Tensor:
        value: torch.Tensor = batch["lr_face"].float().mean((1, 2, 3))
        return value

    def encode(self, value: torch.Tensor, settings: Settings) -> kinds.Arrays:
        return {"brightness": value.cpu().numpy()}

    def decode(self, rows: kinds.Tensors) -> torch.Tensor:
        return rows["brightness"]

    def differs(self, live: kinds.Arrays, stored: kinds.Arrays) -> np.ndarray:
        return np.abs(live["brightness"] - stored["brightness"])[:, None]

    def tolerance(self, settings: Settings) -> float:
        return 1e-3


def test_a_target_is_added_by_its_class_and_a_row(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its group is added to a finished store; the teacher's network isn't run for it."""

    before = content(store(project))
    monkeypatch.setitem(TARGETS, "brightness", Brightness())
    monkeypatch.setitem(config.REGISTRIES, "cache.targets", tuple(TARGETS))
    added = sets("cache.targets=[logits,parsing,embedding,brightness]")
    with monkeypatch.context() as patch:
        patch.setattr("deskpro.stages.targets.provenance.load_teacher", None)
        result = project.ok("teacher-cache", *added)
    assert there(result, "logits") == there(result, "parsing") == (9, 9)
    groups = tuple(target.group for name, target in TARGETS.items() if name != "brightness")
    after = content(store(project))
    assert {name for name in before if before[name] != after[name]} <= {
        "index/zarr.json",
        "zarr.json",
    }
    assert {name for name in after if name.startswith(groups)} == {
        name for name in before if name.startswith(groups)
    }
    cached = CachedTeacher(store(project), {"brightness": Brightness()}, torch.device("cpu"))
    values = cached({"row": torch.arange(20), "view": torch.zeros(20, dtype=torch.int64)})
    for path, value in zip(images(project, "lr_face"), values["brightness"].tolist(), strict=True):
        with Image.open(path) as image:
            assert value == pytest.approx(np.asarray(image.convert("RGB")).mean(), abs=1)
    audit = project.command("cache", "audit", str(project.run))
    assert "brightness" in audit.err
    assert audit.code == 0, audit.out


class GlobalFeature(kinds.OfHeads):
    """The teacher's feature before the BNNeck of one head, [B, 1, D]: one row, of no head."""

    parts = ""
    name, length, dim = "first", "embedding_dim", "feature"
    output, text = "before_neck", "the teacher's feature of its head global before the BNNeck"

    def compute(self, batch: Any, output: Any, settings: Settings) -> torch.Tensor:
        return super().compute(batch, output, settings)[:, :1]


def test_a_target_of_the_teacher_is_added_and_learned_from(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss alone says how one row is learned: it needn't be of the student's heads."""

    def squared(embeddings: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return (embeddings[:, :1].float() - teacher.float()).square().mean()

    monkeypatch.setitem(TARGETS, "first", GlobalFeature())
    monkeypatch.setitem(config.REGISTRIES, "cache.targets", tuple(TARGETS))
    term = Term(squared, "face", "before_neck", "first", "embedding.weight")
    monkeypatch.setitem(TERMS, "first", term)
    added = sets("cache.targets=[logits,parsing,embedding,first]", "embedding.weight=1")
    project.ok("teacher-cache", *added)
    stored = MappedReader(store(project), GlobalFeature().group).schema.fields["first"]
    assert (stored.shape, stored.dtype) == ((1, 16), "float16")
    steps = sets("train_student.max_steps=1", "forward_mode=face")
    assert re.search(r"\bfirst +\d", project.ok("train-student", *added, *steps).err)


def test_every_output_of_the_heads_is_averaged_over_networks() -> None:
    outputs = [Output(*(torch.full((2, 1, 3), v) for _ in range(3)), None) for v in (1.0, 2.0)]
    assert all((values == 1.5).all() for values in mean_output(outputs)[:3])


def test_a_worker_gives_the_same_bytes_in_any_order_and_process(project: Project) -> None:
    from deskpro.stages.targets.worker import Item, Worker

    target_store = TargetStore(store(project))
    names = target_store.column("sample_id").tolist()
    table = pd.DataFrame({"sample_id": names} | {
        kind: [str(project.data / kind / name) for name in names] for kind in ("hr_face", "mask")
    })  # fmt: skip
    make = partial(
        Worker, config.load(project.config), project.run / "teacher.safetensors", table,
        target_store.column("views"),
    )  # fmt: skip
    worker = pickle.loads(pickle.dumps(make))()
    items = [Item(2, range(16, 20), (0, 1, 2), ("logits",)),
             Item(0, range(8), (2, 0), ("logits", "parsing"))]  # fmt: skip
    for item, results in zip(items, worker.run(items), strict=True):
        assert results.keys() == {*item.names}
        alone = pickle.loads(pickle.dumps(worker(item)))
        for name, result in results.items():
            for field, values in result.arrays.items():
                np.testing.assert_array_equal(values, alone[name].arrays[field])
                stored = [reader(project, name).chunk(field, item.block, v) for v in item.views]
                np.testing.assert_array_equal(values, np.stack(stored, axis=1))


@pytest.mark.slow
def test_a_cache_command_on_nothing_is_one_line() -> None:
    for command in (["info"], ["verify"], ["audit"]):
        done = run_process("cache", *command, "nowhere")
        assert done.returncode == 2
        assert "nowhere" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_sample_without_a_face_has_the_targets_that_it_can_have(
    project: Project, command: Callable[..., Result]
) -> None:
    faceless, other = (path.name for path in images(project, "imgs")[1:3])
    for kind in ("lr_face", "hr_face"):
        (project.data / kind / "bounding_box_train" / faceless).unlink()
    result = project.ok("teacher-cache", "--force")
    assert "1 samples of the face stream (no face)" in result.err
    names = TargetStore(store(project)).column("sample_id").tolist()
    without = [names[row] for row in np.flatnonzero(~reader(project).valid)]
    assert without == [f"bounding_box_train/{faceless}"]
    assert reader(project, "parsing").valid.all()
    for tool in ("audit", "info"):
        looked = command("cache", tool, str(project.run))
        assert looked.code == 0, looked.err + looked.out
    project.ok("train-student")
    # Another face that is gone by now was there when the targets were made.
    (project.data / "lr_face" / "bounding_box_train" / other).unlink()
    refused = project("train-student", "--force")
    assert refused.code == 2
    assert f"1 images of its {len(names)} samples are missing" in refused.err
    assert f"lr_face/bounding_box_train/{other}" in refused.err


def test_what_int8_loses_is_the_mean_over_samples_that_have_logits() -> None:
    settings = Settings(5, (32, 32), (64, 32), (8, 4), "float32", "int8", "int8", 6, ("a", "b"))
    valid = np.array([True, False, True, True])
    item = Item(0, range(4), (0,), ("logits",))
    value = torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(0)) * 9
    found = ItemTarget(TARGETS["logits"], item, settings, valid)
    for rows in ([0, 1], [2, 3]):
        found.add(rows, 0, value[rows], np.zeros(2, np.uint64))
    target = TARGETS["logits"]
    few = value[torch.from_numpy(valid)]
    stored = target.decode(tensors(target.encode(few, settings)))
    expected = divergence(few.half(), stored) / 3
    assert found.facts[0]["KL of int8, nats"] == pytest.approx(expected.numpy(), rel=1e-9)
