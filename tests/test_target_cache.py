"""The target cache as a user has it: what is noticed, what is made anew, who may build it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from deskpro.cache.reader import ZarrReader, open_reader
from deskpro.cache.schema import seal
from deskpro.cache.verify import verify
from deskpro.pipeline import config
from deskpro.stages.data import views as view_module
from deskpro.stages.models.weights import load_teacher, save
from deskpro.stages.targets.provenance import option_differences
from deskpro.stages.targets.teachers import CachedTeacher, decode, divergence, encode
from tests.conftest import REPOSITORY, Project, Result, run_process, with_cache
from tests.test_cache import content


@pytest.fixture
def project(project: Project, tiny_run: Path, tiny_benchmark: Path) -> Project:
    """Here teacher and target cache are made already."""
    return with_cache(project, tiny_run, tiny_benchmark)


def store(project: Project) -> Path:
    return project.run / "targets.zarr"


def images(project: Project, kind: str) -> list[Path]:
    return sorted((project.data / kind / "bounding_box_train").glob("*.jpg"))


def change_a_pixel(path: Path) -> None:
    with Image.open(path) as image:
        changed = image.convert("RGB")
    changed.putpixel((0, 0), (255, 0, 255))
    changed.save(path, quality=95)


def sets(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def there(result: Result) -> tuple[int, int]:
    """How many (block, view) a teacher-cache found, and of how many."""
    found = re.search(r"(\d+) of (\d+) \(block, view\) were there", result.err)
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


@pytest.mark.parametrize("change", CHANGES)
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
    for manifest in (project.run / "manifests").iterdir():
        manifest.unlink()
    result = project("train-student", *options)
    assert result.code == 2
    assert all(part in result.err for part in named.split("; ")), result.err
    assert "make teacher-cache FORCE=1" in result.err
    assert not (project.run / "student.safetensors").exists()
    assert content(store(project)) == before


def test_another_code_of_views_is_noticed_and_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.ok("teacher-cache")
    version = view_module.VERSION
    monkeypatch.setattr(view_module, "VERSION", version + 1)
    named = f"views.version was {version}, is {version + 1}"
    found = option_differences(
        open_reader(store(project)),
        config.load(project.config),
        project.run / "teacher.safetensors",
    )
    assert found == [named]
    assert named in project("train-student").err


@pytest.mark.parametrize("change", ["pixel", "sample less", "weights", "views", "precision"])
def test_an_unfinished_cache_is_not_continued_with_something_else(
    change: str, project: Project
) -> None:
    project.ok("train-teacher")
    kill_at_work(project, blocks=2)
    begun = content(partial(project))
    options, named = CHANGES[change](project)
    for manifest in (project.run / "manifests").iterdir():
        manifest.unlink()
    result = project("teacher-cache", *options)
    assert result.code == 2
    assert "was begun otherwise" in result.err
    assert named in result.err
    assert content(partial(project)) == begun
    result = project.ok("teacher-cache", *options, "--force")
    if change == "pixel":
        assert there(result)[0] > 0  # what is the same is kept even so


def partial(project: Project) -> Path:
    return project.run / "targets.zarr.partial"


def remove_cache(project: Project) -> None:
    shutil.rmtree(store(project))
    (project.run / "manifests" / "teacher-cache.json").unlink()


def written(project: Project) -> int:
    """How many lines the ledger of an unfinished store has."""
    return sum(ledger.read_text().count("\n") for ledger in partial(project).glob("ledger.*.jsonl"))


def kill_at_work(project: Project, blocks: int = 1) -> None:
    """A teacher-cache, killed when so many blocks of a store are written."""
    remove_cache(project)
    program = Path(sys.executable).with_name("deskpro")
    where = ["--config", str(project.config), "--run", str(project.run)]
    slow = sets("cache.batch=1", "cache.block=4")  # so that there is a middle to be killed in
    with subprocess.Popen([program, "teacher-cache", *where, *slow]) as process:
        deadline = time.monotonic() + 120
        while written(project) < 3 * blocks:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert partial(project).exists()
    recipe = project.config.read_text().replace("batch: 16", "batch: 1")
    project.config.write_text(recipe.replace("block: 8", "block: 4"))


def test_a_killed_stage_goes_on_where_it_was(project: Project, tmp_path: Path) -> None:
    project.ok("train-teacher")
    kill_at_work(project, blocks=2)
    found, total = there(project.ok("teacher-cache"))
    assert 6 <= found < total
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(project.run / "teacher.safetensors", other)
    project.ok("teacher-cache", "--run", str(other))
    assert content(store(project)) == content(other / "targets.zarr")


@pytest.mark.parametrize("moment", ["sealed", "grown"])
def test_a_kill_between_the_store_and_its_record_changes_nothing(
    moment: str, project: Project
) -> None:
    more = sets("cache.views=4") if moment == "grown" else []
    if moment == "sealed":
        remove_cache(project)
    before = (store(project) / "zarr.json").read_bytes() if moment == "grown" else b""
    program = Path(sys.executable).with_name("deskpro")
    where = ["--config", str(project.config), "--run", str(project.run), "--set", "data.workers=2"]
    with subprocess.Popen([program, "teacher-cache", *where, *more]) as process:
        metadata = store(project) / "zarr.json"
        deadline = time.monotonic() + 120
        while not metadata.exists() or metadata.read_bytes() == before:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    project.ok("train-student", *more)
    project.ok("teacher-cache", *more)
    assert "is fresh" in project.ok("teacher-cache", *more).err
    assert not verify(store(project))


def test_a_changed_picture_costs_its_block_alone(project: Project) -> None:
    _, named = _one_pixel(project)
    result = project("train-student")
    assert result.code == 2
    assert named in result.err
    result = project.ok("teacher-cache", "--force")
    assert there(result) == (6, 9)
    assert not verify(store(project))
    audit = project.command("cache", "audit", str(project.run), "--samples", "60")
    assert audit.code == 0, audit.out


def test_more_views_are_added_without_force_and_fewer_refused(
    project: Project, tmp_path: Path
) -> None:
    project.ok("teacher-cache")
    more = sets("cache.views=5")
    assert there(project.ok("teacher-cache", *more)) == (9, 15)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(project.run / "teacher.safetensors", other)
    project.ok("teacher-cache", "--run", str(other), *more)
    assert content(store(project)) == content(other / "targets.zarr")
    result = project("teacher-cache")
    assert result.code == 2
    assert "cache.views was 5, is 3" in result.err
    project.ok("train-student", *more)


def test_touched_files_with_the_same_content_are_the_same(project: Project) -> None:
    project.ok("teacher-cache")
    for kind in ("hr_face", "mask", "imgs"):
        for path in images(project, kind):
            path.touch()
    assert "is fresh" in project.ok("teacher-cache").err
    project.ok("train-student")


def test_only_a_deep_look_finds_a_change_that_keeps_size_and_time(project: Project) -> None:
    mask = images(project, "mask")[0]
    image = mask.read_bytes()
    mask.write_bytes(image + b"one")
    project.ok("teacher-cache", "--force")
    status = mask.stat()
    mask.write_bytes(image + b"two")
    os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "is fresh" in project.ok("teacher-cache").err
    for stage in ("teacher-cache", "train-student"):
        result = project(stage, "--deep")
        assert result.code == 2
        assert f"mask_sha256 of {sample_id(mask)} changed" in result.err
    audit = project.command("cache", "audit", str(project.run), "--deep")
    assert f"mask_sha256 of {sample_id(mask)} changed" in audit.out


def torchrun(processes: int, project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("torchrun")
    where = ["--config", str(project.config), "--run", str(project.run)]
    launch = [program, "--standalone", "--nproc-per-node", str(processes), "-m", "--"]
    return subprocess.run(
        [*launch, "deskpro", "teacher-cache", *where, *arguments],
        capture_output=True, text=True, cwd=REPOSITORY,
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_make_the_bytes_of_one(project: Project) -> None:
    whole = content(store(project))
    shutil.rmtree(project.run)
    alone = torchrun(2, project)
    assert alone.returncode != 0
    assert "train-teacher runs in one process, 2 were started" in alone.stderr
    project.ok("train-teacher")
    done = torchrun(2, project)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("teacher-cache: done in") == 1
    assert content(store(project)) == whole
    assert "is fresh" in project.ok("teacher-cache").err


@pytest.mark.slow
def test_a_process_that_dies_leaves_a_store_that_resumes(project: Project) -> None:
    remove_cache(project)
    broken = images(project, "mask")[12]  # of the second block, which is the second process's
    whole = broken.read_bytes()
    project.ok("check-data")
    status = broken.stat()
    broken.write_bytes(bytes(len(whole)))  # the file index believes it to be as it was
    os.utime(broken, ns=(status.st_atime_ns, status.st_mtime_ns))
    died = torchrun(2, project)
    assert died.returncode != 0
    assert f"{broken}: unreadable image" in died.stderr
    assert not store(project).exists()
    broken.write_bytes(whole)
    project.ok("teacher-cache")
    assert not verify(store(project))
    audit = project.command("cache", "audit", str(project.run), "--samples", "60", "--deep")
    assert audit.code == 0, audit.out


def test_a_full_disk_is_one_line_and_the_run_goes_on_after_room_is_made(
    project: Project, tmp_path: Path
) -> None:
    """A file system of its own, too small for the cache until some of it is freed."""
    project.ok("train-teacher")
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
    assert "no space left; make room, then run it again" in done.stderr
    assert "Traceback" not in done.stderr
    found, total = there(Result(0, "", done.stderr))
    assert 0 < found < total


def test_targets_held_in_memory_are_those_of_the_files(project: Project) -> None:
    result = project.ok("train-student")
    assert re.search(r"targets +from memory", result.err)
    held = (project.run / "student.safetensors").read_bytes()
    result = project.ok("train-student", "--force", *sets("cache.memory=0"))
    assert re.search(r"targets +from mapped files", result.err)
    assert (project.run / "student.safetensors").read_bytes() == held


@pytest.mark.cuda
@pytest.mark.parametrize("budget", [0.0, 1e9])
def test_targets_reach_a_gpu(budget: float, project: Project) -> None:
    project.ok("teacher-cache")
    reader = open_reader(store(project))
    batch = {"row": torch.tensor([3, 9, 3]), "view": torch.tensor([1, 0, 2])}
    wanted = CachedTeacher(reader, torch.device("cpu"))(batch)
    teacher = CachedTeacher(reader, torch.device("cuda"), budget=budget)
    assert teacher.where == ("GPU memory" if budget else "mapped files")
    for _ in range(5):
        for name, values in teacher(batch).items():
            assert values.device.type == "cuda"
            assert torch.equal(values.cpu(), wanted[name])


def test_int8_logits_halve_the_cache_and_say_what_they_lose(project: Project) -> None:
    project.ok("teacher-cache")
    rows, views = [*range(20)] * 3, [0] * 20 + [1] * 20 + [2] * 20
    exact = torch.from_numpy(open_reader(store(project)).read(rows, views)["logits"])
    result = project.ok("teacher-cache", "--force", *sets("cache.logits_dtype=int8"))
    assert "were there" not in result.err
    whole = open_reader(store(project))
    assert whole.schema.fields["logits"].dtype == "int8"
    kept = {n: torch.from_numpy(v) for n, v in whole.read(rows, views).items() if n != "pixels"}
    close = decode(kept)["logits"]
    step = exact.float().abs().amax(2, keepdim=True) / 127
    assert ((close - exact.float()).abs() <= 0.51 * step + 1e-3).all()
    recorded = [entry.facts for entry in whole.ledger.values()]
    assert {facts["T"] for facts in recorded} == {5.0}
    sizes = {block: len(range(*whole.schema.rows(block).indices(20))) for block in range(3)}
    mean = sum(np.mean(e.facts["kl"]) * sizes[e.block] for e in whole.ledger.values()) / 60
    truth = divergence(exact, close, 5.0).mean() / 60
    assert mean == pytest.approx(float(truth), rel=1e-3)
    info = project.command("cache", "info", str(project.run))
    assert re.search(r"KL at T=5 +\S+ nats from float16", info.err)
    project.ok("train-student", *sets("cache.logits_dtype=int8"))
    audit = project.command("cache", "audit", str(project.run))
    assert audit.code == 0, audit.out


def test_int8_keeps_a_head_that_says_nothing() -> None:
    logits = torch.zeros(2, 7, 5)
    logits[0, 0] = torch.tensor([-1.0, 0, 0.5, 1, 127])
    stored = encode({"logits": logits, "attention": torch.zeros(2, 1, 2, 2)}, "int8")
    back = decode({name: torch.from_numpy(values) for name, values in stored.items()})
    assert torch.equal(back["logits"][1], logits[1])
    assert (back["logits"][0, 0] - logits[0, 0]).abs().max() <= 0.5


def test_info_tells_what_a_cache_holds(project: Project) -> None:
    project.ok("teacher-cache")
    for path in (project.run, store(project)):
        result = project.command("cache", "info", str(path))
        assert result.code == 0
        for text in ("9 of 9 (block, view), sealed", "4, of 4 classes", "[20, 3, 7, 4] float16",
                     "kB per sample and view", "of the attention is head"):  # fmt: skip
            assert text in result.err
    reader = ZarrReader(store(project))
    logits = np.stack([reader.read([i] * 3, [0, 1, 2])["logits"] for i in range(20)])
    right = (logits.argmax(3) == reader.column("label")[:, None, None]).mean((0, 1))
    p = torch.from_numpy(logits).double().softmax(3)
    entropy = -(p * p.log()).sum(3).mean((0, 1))
    for head, (top1, nats) in enumerate(zip(right, entropy, strict=True)):
        line = [line for line in result.out.splitlines() if "│" in line][head]
        cells = [cell.strip() for cell in line.strip("│ ").split("│")]
        assert float(cells[1]) == pytest.approx(100 * top1, abs=0.06)
        assert float(cells[2]) == pytest.approx(float(nats), abs=2e-3)
    assert project.command("cache", "info", str(project.data)).code == 2


def test_info_of_a_store_in_the_making_tells_how_far_it_is(project: Project) -> None:
    project.ok("train-teacher")
    kill_at_work(project)
    result = project.command("cache", "info", str(project.run))
    assert result.code == 0
    assert re.search(r"coverage +\d+ of 15 \(block, view\), unfinished", result.err)
    result = project.command("cache", "verify", str(project.run))
    assert result.code == 2
    assert "not finished" in result.err


def test_verify_names_the_damaged_file_and_force_makes_it_anew(project: Project) -> None:
    project.ok("teacher-cache")
    before = content(store(project))
    assert project.command("cache", "verify", str(project.run)).code == 0
    chunk = open_reader(store(project)).schema.chunk_file(store(project), "logits", 1, 2)
    damaged = bytearray(chunk.read_bytes())
    damaged[100] ^= 16
    chunk.write_bytes(damaged)
    result = project.command("cache", "verify", str(project.run))
    assert result.code == 1
    assert result.out == f"{chunk}: block 1, view 2: its checksum doesn't fit\n"
    result = project("train-student")
    assert result.code == 2
    assert f"{chunk}: damaged" in result.err
    assert there(project.ok("teacher-cache", "--force")) == (8, 9)
    assert content(store(project)) == before


def test_an_audit_finds_a_cache_that_says_something_else(project: Project) -> None:
    project.ok("teacher-cache")
    audit = ("cache", "audit", str(project.run), "--samples", "60", "--set", "cache.batch=7")
    result = project.command(*audit)
    assert result.code == 0, result.out
    assert "60 (sample, view), seed 0" in result.err

    # A whole store, checksums and all, that says something else of one view of one sample.
    import zarr

    from deskpro.cache.ledger import Entry, stored_crc

    reader = open_reader(store(project))
    group = zarr.open_group(store(project), mode="r+")
    logits = group["logits"][5, 1]  # type: ignore[index]
    group["logits"][5, 1] = logits + np.float16(0.5)  # type: ignore[index]
    group["pixels"][5, 1] = 7  # type: ignore[index]
    group["attention"][9, 2] = 77  # type: ignore[index]
    entries = []
    for place in reader.schema.places():
        crc = {
            name: stored_crc(reader.schema.chunk_file(store(project), name, *place),
                             reader.schema.chunk_bytes(name))
            for name in reader.schema.fields
        }  # fmt: skip
        entries.append(Entry(*place, crc).as_json())  # type: ignore[arg-type]
    seal(store(project), entries)
    assert not verify(store(project))
    result = project.command(*audit)
    assert result.code == 1
    samples = reader.column("sample_id")
    lines = result.out.splitlines()
    assert f"{samples[5]}, view 1: its pixels aren't those that the cache speaks of" in lines
    assert any(line.startswith(f"{samples[5]}, view 1: logits of head global") for line in lines)
    assert any(line.startswith(f"{samples[9]}, view 2: attention differs by") for line in lines)
    assert {line.split(":")[0] for line in lines} == {
        f"{samples[5]}, view 1", f"{samples[9]}, view 2"}  # fmt: skip


def test_an_audit_of_another_shape_names_it_and_asks_nothing(project: Project) -> None:
    project.ok("teacher-cache")
    audit = project.command("cache", "audit", str(project.run), *sets("data.body_size=[96, 48]"))
    assert audit.code == 1
    assert "body_size was [64, 32], is [96, 48]" in audit.out
    assert "nothing was asked" in audit.out


def test_diff_tells_how_two_caches_differ(project: Project, tmp_path: Path) -> None:
    project.ok("teacher-cache")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(project.run / "teacher.safetensors", other)
    _, named = _one_pixel(project)
    project.ok("teacher-cache", "--run", str(other), *sets("views.flip=0.1", "cache.views=2"))
    assert project.command("cache", "diff", str(project.run), str(project.run)).code == 0
    result = project.command("cache", "diff", str(project.run), str(other))
    assert result.code == 1
    for text in ("views.flip was 0.5, is 0.1", named, "views was 3, is 2", "logits of ",
                 "attention of "):  # fmt: skip
        assert text in result.out


def test_a_cache_command_on_nothing_is_one_line() -> None:
    for command in (["info"], ["verify"], ["audit"], ["diff", "nowhere"]):
        done = run_process("cache", *command, "nowhere")
        assert done.returncode == 2
        assert "nowhere" in done.stderr
        assert "Traceback" not in done.stderr
