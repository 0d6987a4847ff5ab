"""Training as it is lived: killed, stopped, resumed, watched, diverging, shared by processes."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from deskpro.cache.file_index import FileIndex
from deskpro.pipeline import cli, config
from deskpro.pipeline import runner as running
from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.options import Options
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.base.stage import Job
from deskpro.stages.base.training_options import TensorBoard
from deskpro.stages.data.overlay import overlay, side_by_side
from deskpro.stages.data.sampler import PKSampler
from deskpro.stages.losses.agreement import agreement
from deskpro.stages.losses.terms import TERMS
from deskpro.stages.models.lmbn import head_names
from deskpro.stages.train_student import TrainStudent, TrainStudentResult
from deskpro.stages.training import monitor, recipe
from deskpro.stages.training.loop import _Epoch
from tests.conftest import REPOSITORY, Project, with_cache
from tests.test_stages import same, weights


@pytest.fixture
def project(project: Project, tiny_run: Path, tiny_benchmark: Path) -> Project:
    """Here teacher and target cache are made already."""
    return with_cache(project, tiny_run, tiny_benchmark)


SHORT = ("train_student.epochs=5", "checkpoints.every=2", "train_student.ema=0.9")


@pytest.fixture(scope="module")
def finished(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Weights and history of a short training that nobody interrupted."""
    run = RunFolder(tmp_path_factory.mktemp("finished") / "run")
    shutil.copytree(tiny_run, run.path)
    running.run_stage("train-student", config.load(tiny_run.parent / "tiny.yaml", SHORT), run)
    rows = pd.read_csv(run.history("student")).drop(columns="images_per_s")
    return run.student, rows


def sets(*pairs: str) -> list[str]:
    return [part for pair in pairs for part in ("--set", pair)]


def history(project: Project) -> pd.DataFrame:
    return pd.read_csv(project.run / "student_history.csv").drop(columns="images_per_s")


def keep(project: Project, folder: Path) -> tuple[Path, pd.DataFrame]:
    """Put a finished student aside."""
    kept = shutil.copy(project.run / "student.safetensors", folder / "kept.safetensors")
    return Path(kept), history(project)


SERVER = multiprocessing.get_context("forkserver")
"""Children fork from a process that has imported everything and started nothing."""
SERVER.set_forkserver_preload(
    ["deskpro.pipeline.cli", "deskpro.stages.train_student", "torch.utils.tensorboard"]
)


def start(project: Project, *arguments: str) -> BaseProcess:
    """`deskpro train-student …` in a process of its own that needn't import anything."""
    where = ["--config", str(project.config), "--run", str(project.run)]
    command = ["deskpro", "train-student", *where, *arguments]
    child = SERVER.Process(target=_child, args=(command, project.run / "child.log"))
    child.start()
    return child


def _child(command: list[str], log: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    sys.argv = command
    cli.main()


def end(child: BaseProcess, by: signal.Signals | None = None) -> int | None:
    """Send a signal, if any, and wait: the exit code."""
    if by is not None and child.pid is not None and child.is_alive():
        os.kill(child.pid, by)
    child.join(120)
    return child.exitcode


def last_step(project: Project) -> int:
    """The step of the newest checkpoint, 0 where there is none."""
    files = (project.run / ".state" / "student_checkpoints").glob("step-*.pt")
    return max((int(path.stem.split("-")[1]) for path in files), default=0)


def wait_for_step(project: Project, step: int, seconds: float = 60) -> None:
    """Until a checkpoint of at least that step is there."""
    deadline = time.monotonic() + seconds
    while last_step(project) < step:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_weights_and_history(
    project: Project, finished: tuple[Path, pd.DataFrame]
) -> None:
    kept, rows = finished
    random, killed = np.random.default_rng(0), 0
    while killed < 6:
        goal = last_step(project) + random.integers(0, 8)
        # What is finished is trained again; what was begun goes on without --force.
        done = (project.run / "student.safetensors").exists() and not last_step(project)
        child = start(project, *["--force"] * done, *sets(*SHORT))
        while child.is_alive() and last_step(project) < goal:
            time.sleep(0.002)
        time.sleep(random.uniform(0, 0.1))  # anywhere in or between steps and checkpoints
        if end(child, signal.SIGKILL) == 0:
            assert same(project.run / "student.safetensors", kept)
            pd.testing.assert_frame_equal(history(project), rows, check_exact=True)
        else:
            killed += 1
    project.ok("train-student", *sets(*SHORT))
    assert same(project.run / "student.safetensors", kept)
    pd.testing.assert_frame_equal(history(project), rows, check_exact=True)
    assert not (project.run / ".state" / "student_checkpoints").exists()
    resumed = re.findall(r"resuming at step (\d+)", (project.run / "child.log").read_text())
    assert len({*resumed}) > 2


@pytest.mark.slow
@pytest.mark.parametrize(("asked", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_says_so_and_goes_on(
    asked: signal.Signals, code: int, project: Project, finished: tuple[Path, pd.DataFrame]
) -> None:
    kept, rows = finished
    child = start(project, "--force", *sets(*SHORT))
    wait_for_step(project, 2)
    assert end(child, asked) == code
    last = (project.run / "child.log").read_text().splitlines()[-1]
    found = re.match(
        rf"deskpro: stopped by {asked.name} after step (\d+), saved in .*; "
        r"run the same command without --force \(FORCE=1\) to resume",
        last,
    )
    assert found, last
    result = project.ok("train-student", *sets(*SHORT))
    assert f"resuming at step {found[1]}" in result.err
    assert same(project.run / "student.safetensors", kept)
    pd.testing.assert_frame_equal(history(project), rows, check_exact=True)


@pytest.mark.slow
def test_a_signal_to_the_whole_group_saves_too(
    project: Project, finished: tuple[Path, pd.DataFrame]
) -> None:
    """As a scheduler sends it: the loader's workers get it, and live until the step is done."""
    where = ["--config", str(project.config), "--run", str(project.run)]
    command = [sys.executable, "-m", "deskpro", "train-student", "--force", *where]
    command += sets(*SHORT, "data.workers=2")
    with (project.run / "child.log").open("w") as log:
        child = subprocess.Popen(command, stderr=log, start_new_session=True, cwd=REPOSITORY)
    wait_for_step(project, 2, 120)
    os.killpg(child.pid, signal.SIGTERM)
    assert child.wait(120) == 143
    said = (project.run / "child.log").read_text()
    assert "Traceback" not in said
    assert "stopped by SIGTERM after step" in said.splitlines()[-1]
    with pytest.raises(ProcessLookupError):
        os.killpg(child.pid, 0)  # nobody of the group is left
    result = project.ok("train-student", *sets(*SHORT))
    assert "resuming at step" in result.err
    assert same(project.run / "student.safetensors", finished[0])


@pytest.mark.slow
def test_a_begun_training_is_not_continued_with_other_options(project: Project) -> None:
    project.ok("teacher-cache")
    child = start(project, *sets(*SHORT))
    wait_for_step(project, 2)
    assert end(child, signal.SIGKILL) == -signal.SIGKILL
    result = project("train-student", *sets(*SHORT, "kd_loss.T=2", "loss.margin=0.5"))
    assert result.code == 2
    assert "kd_loss.T was 5.0, is 2.0; loss.margin was 0.7, is 0.5" in result.err
    assert "starts over" in result.err
    result = project.ok("train-student", "--force", *sets(*SHORT, "kd_loss.T=2"))
    assert "resuming" not in result.err


@pytest.mark.slow
def test_an_unreadable_checkpoint_gives_way_to_the_one_before(
    project: Project, finished: tuple[Path, pd.DataFrame]
) -> None:
    kept, _ = finished
    child = start(project, "--force", *sets(*SHORT))
    wait_for_step(project, 4)
    end(child, signal.SIGKILL)
    older, newer = sorted((project.run / ".state" / "student_checkpoints").glob("step-*.pt"))
    newer.write_bytes(newer.read_bytes()[:1000])
    result = project.ok("train-student", *sets(*SHORT))
    assert f"{newer}: unreadable checkpoint" in result.err
    assert f"resuming at step {int(older.stem.split('-')[1])}" in result.err
    assert same(project.run / "student.safetensors", kept)


@pytest.mark.slow
def test_a_checkpoint_that_is_not_finite_gives_way_and_force_begins_anew(
    project: Project, finished: tuple[Path, pd.DataFrame]
) -> None:
    kept, _ = finished
    child = start(project, "--force", *sets(*SHORT))
    wait_for_step(project, 4)
    end(child, signal.SIGKILL)
    older, newer = sorted((project.run / ".state" / "student_checkpoints").glob("step-*.pt"))
    content = torch.load(newer, weights_only=True)
    next(iter(content["state"]["network"].values())).fill_(float("nan"))
    torch.save(content, newer)
    result = project.ok("train-student", *sets(*SHORT))
    assert f"{newer}: its weights are not finite" in result.err
    assert f"resuming at step {int(older.stem.split('-')[1])}" in result.err
    assert same(project.run / "student.safetensors", kept)

    child = start(project, "--force", *sets(*SHORT))
    wait_for_step(project, 4)
    end(child, signal.SIGKILL)
    result = project.ok("train-student", "--force", *sets(*SHORT))
    assert "resuming" not in result.err
    assert same(project.run / "student.safetensors", kept)


def test_a_loss_that_is_not_finite_stops_with_step_term_and_samples(project: Project) -> None:
    project.ok("teacher-cache")
    result = project("train-student", *sets(*SHORT, "train_student.lr=1e25"))
    assert result.code == 2
    found = re.search(r"diverged at step (\d+) \(epoch \d\): (\w+) is (nan|inf)", result.err)
    assert found, result.err
    assert found[2].split("_")[0] in ("ce", "triplet", "kd", "attention")
    assert len(re.findall(r"bounding_box_train/\d+_c\d_\d+\.jpg", result.err)) == 4
    assert not (project.run / "student.safetensors").exists()
    for path in (project.run / ".state" / "student_checkpoints").glob("step-*.pt"):
        assert int(path.stem.split("-")[1]) < int(found[1])  # what is kept is from before
        state = torch.load(path, weights_only=True)["state"]
        assert all(v.isfinite().all() for v in state["network"].values())


@pytest.mark.slow
def test_weights_that_another_put_there_are_kept_whatever_was_begun(project: Project) -> None:
    child = start(project, *sets(*SHORT))
    wait_for_step(project, 2)
    end(child, signal.SIGKILL)
    assert (project.run / ".state" / "manifests" / "train-student.started").exists()
    foreign = project.run / "student.safetensors"
    foreign.write_bytes(b"somebody's work")
    result = project.ok("train-student", *sets(*SHORT))
    assert "is kept: its content differs" in result.err
    kept = project.run / "student.safetensors.unrecorded"
    assert kept.read_bytes() == b"somebody's work"
    assert not (project.run / ".state" / "manifests" / "train-student.started").exists()


@pytest.mark.slow
def test_a_student_that_lacks_only_its_record_is_not_trained_twice(
    project: Project, finished: tuple[Path, pd.DataFrame]
) -> None:
    project.ok("train-student", *sets(*SHORT))
    record = project.run / ".state" / "manifests" / "train-student.json"
    told = json.loads(record.read_text())
    started = {name: told[name] for name in ("params", "deps")}
    record.with_suffix(".started").write_text(json.dumps(started))
    record.unlink()
    result = project.ok("train-student", *sets(*SHORT))
    assert "its content differs" not in result.err
    assert same(project.run / "student.safetensors", finished[0])
    assert record.exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 4])
def test_the_number_of_workers_does_not_matter(
    workers: int, project: Project, tmp_path: Path
) -> None:
    project.ok("train-student")
    kept, rows = keep(project, tmp_path)
    project.ok("train-student", "--force", *sets(f"data.workers={workers}"))
    assert same(project.run / "student.safetensors", kept)
    pd.testing.assert_frame_equal(history(project), rows, check_exact=True)


@pytest.mark.slow
def test_identities_with_too_few_pictures_repeat_them_and_are_counted(project: Project) -> None:
    assert "repeated" not in project.ok("train-student").err
    result = project.ok("train-student", "--force", *sets("batchimage=6"))
    assert re.search(r"repeated +4 identities have fewer than 6 images", result.err)


@pytest.mark.slow
def test_history_and_tensorboard_tell_the_same_without_gaps_or_doubles(project: Project) -> None:
    metrics = ("tensorboard.every=1", "tensorboard.overlays=2")
    project.ok("teacher-cache")
    child = start(project, *sets(*SHORT, *metrics))
    wait_for_step(project, 3)
    assert end(child, signal.SIGKILL) == -signal.SIGKILL
    project.ok("train-student", *sets(*SHORT, *metrics))
    rows = history(project)
    assert rows["epoch"].tolist() == [1, 2, 3, 4, 5]
    for head in head_names():
        assert {f"agree_{head}", f"divergence_{head}"} < {*rows.columns}
    events = EventAccumulator(str(project.run / "tensorboard" / "student"))
    events.Reload()
    scalars = events.Scalars("step/total")
    steps = [event.step for event in scalars]
    assert steps == sorted({*steps}) == [*range(1, steps[-1] + 1)]
    by_epoch = np.array_split([event.value for event in scalars], 5)
    np.testing.assert_allclose([part.mean() for part in by_epoch], rows["total"], rtol=1e-5)
    epochs = [(event.step, event.value) for event in events.Scalars("epoch/ce_face")]
    assert [step for step, _ in epochs] == [1, 2, 3, 4, 5]
    np.testing.assert_allclose([value for _, value in epochs], rows["ce_face"], rtol=1e-5)
    assert len(events.Images("body, student, target")) == 2


@pytest.mark.slow
def test_no_tensorboard_where_none_is_wanted(project: Project) -> None:
    project.ok("train-student", *sets("tensorboard.enable=false"))
    assert not (project.run / "tensorboard" / "student").exists()


def test_curves_do_not_wait_for_a_clock_that_is_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def waited(seconds: float) -> None:
        raise AssertionError(seconds)

    monkeypatch.setattr(time, "sleep", waited)
    earlier = tmp_path / "events.out.tfevents.1.host.1.0"
    earlier.touch()
    os.utime(earlier, (time.time() + 3600,) * 2)
    curves = monitor.Curves(tmp_path, TensorBoard(), lambda: None)
    curves.step(2, {"total": 1.0})
    curves.close()
    assert len([*tmp_path.glob("events*")]) == 2


def test_agreement_is_of_every_head() -> None:
    teacher = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(0))
    alike = agreement(teacher, teacher, 2.0, head_names())
    assert all(alike[f"agree_{head}"] == 1 for head in head_names())
    assert all(abs(alike[f"divergence_{head}"]) < 1e-6 for head in head_names())
    other = teacher.clone()
    other[:3, 2] = -other[:3, 2]
    found = agreement(other, teacher, 2.0, head_names())
    assert found[f"agree_{head_names()[2]}"] == 0.5
    p, q = (x[:, 2].double().div(2).softmax(1) for x in (teacher, other))
    truth = (p * (p / q).log()).sum(1).mean()
    assert float(found[f"divergence_{head_names()[2]}"]) == pytest.approx(float(truth), rel=1e-5)
    scaled = agreement(9 * teacher, teacher, 2.0, head_names(), zscore=True)
    assert all(scaled[f"divergence_{head}"] < 1e-5 for head in head_names())


def test_a_batch_that_tells_no_agreement_leaves_that_of_the_epoch_alone() -> None:
    epoch, logits = _Epoch(), torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    for rows, total in ((slice(0, 3), 1.0), (slice(0, 0), 3.0)):
        found = agreement(logits[rows], logits[rows], 1.0, head_names())
        epoch.add(found | {"total": torch.tensor(total)})
        epoch.done += 1
    row = epoch.row()
    assert row["total"] == 2
    assert all(row[f"agree_{head}"] == 1 for head in head_names())
    never = _Epoch(done=1)
    never.add({"agree": torch.tensor(float("nan"))})
    assert np.isnan(never.row()["agree"])


def test_an_overlay_is_red_where_the_attention_is() -> None:
    images = torch.full((2, 3, 8, 4), 200, dtype=torch.uint8)
    attention = torch.zeros(2, 1, 8, 4)
    attention[:, :, :4] = 1
    seen = overlay(images, attention).int()
    assert (seen[:, 0, :3] > seen[:, 1, :3] + 100).all()
    assert (seen[:, :, 5:] == 100).all()
    assert side_by_side(images, attention, attention).shape == (3, 16, 12)


@given(
    st.lists(st.integers(0, 9), min_size=20, max_size=80),
    st.sampled_from([(2, 1), (4, 2), (4, 4), (6, 3)]),
    st.integers(0, 5),
)
def test_processes_share_every_batch_by_identity(
    labels: list[int], share: tuple[int, int], epoch: int
) -> None:
    identities, ranks = share
    known = np.asarray(labels)
    whole = PKSampler(known, identities, 2, 3, seed=1)
    parts = [PKSampler(known, identities, 2, 3, 1, rank, ranks) for rank in range(ranks)]
    for sampler in (whole, *parts):
        sampler.set_epoch(epoch)
    for batch, *shares in zip(whole, *parts, strict=True):
        assert sorted(pair for share in shares for pair in share) == sorted(batch)
        for part in shares:
            assert len({labels[row] for row, _ in part}) == identities // ranks


def test_an_epoch_can_be_entered_anywhere() -> None:
    sampler = PKSampler(np.repeat(np.arange(6), 5), 3, 2, 4, seed=0)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.set_epoch(2, 3)
    assert list(sampler) == whole[3:]
    assert len(sampler) == len(whole) - 3


def torchrun(script: list[str], processes: int = 2) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("torchrun")
    launch = [program, "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*launch, *script], capture_output=True, text=True, cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip


@pytest.mark.slow
def test_averaged_gradients_are_those_of_one_process(tmp_path: Path) -> None:
    """With batch norm frozen and no triplets: one batch, whole or shared by two processes."""
    script = tmp_path / "gradients.py"
    script.write_text(
        textwrap.dedent("""
        import sys
        import torch
        from deskpro.stages.base import distributed
        from deskpro.stages.base.options import Options
        from deskpro.stages.losses import cross_entropy, distillation, triplet
        from deskpro.stages.losses.terms import TERMS, compute_losses
        from deskpro.stages.models.student import Student

        torch.manual_seed(0)
        student = Student(5, width=0.25, feature_dim=16).double()
        faces, bodies = torch.randn(8, 3, 32, 32).double(), torch.randn(8, 3, 64, 32).double()
        said = torch.randn(8, 7, 5).double()
        labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        forward = distributed.data_parallel(student, torch.device("cpu"))
        forward.train()
        for module in student.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()
        mine = torch.arange(8).view(4, 2)[distributed.rank() :: distributed.world_size()].flatten()
        output = forward(faces[mine], bodies[mine])
        loss = cross_entropy(output.logits, labels[mine])
        loss = loss + distillation(output.logits[:, :7], said[mine], temperature=2.0)
        if "triplets" in sys.argv:
            gathered = map(distributed.all_gather, (output.before_neck, labels[mine]))
            loss = loss + triplet(*gathered)
        if "faceless" in sys.argv:  # three of a rank's four samples have a face, all of the other's
            has = torch.arange(8)[mine] != 1
            found = forward(faces[mine], bodies[mine], has)
            face = found._replace(logits=found.logits[:, :7], before_neck=found.before_neck[:, :3])
            several = distributed.world_size() > 1
            loss = sum(
                compute_losses(
                    {name: TERMS[name] for name in ("ce_face", "triplet_face", "kd")},
                    Options(),
                    {"face": face},
                    {"label": labels[mine], "logits": said[mine]},
                    {"face": has},
                    gather=distributed.all_gather if several else None,
                    mean_of_ranks=distributed.mean_of_ranks if several else None,
                ).values()
            )
        loss.backward()
        if distributed.is_main():
            torch.save([p.grad for p in student.parameters()], sys.argv[1])
    """)
    )
    for options in ([], ["triplets"], ["faceless"]):
        alone, shared = tmp_path / "alone.pt", tmp_path / "shared.pt"
        subprocess.run(
            [sys.executable, script, alone, *options], check=True, cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        done = torchrun([str(script), str(shared), *options])
        assert done.returncode == 0, done.stderr
        pairs = zip(torch.load(alone), torch.load(shared), strict=True)
        compared = [(a, b) for a, b in pairs if a is not None]
        assert len(compared) > 50
        for a, b in compared:
            assert (a - b).abs().max() <= 1e-5 * a.abs().max() + 1e-12


@pytest.mark.slow
def test_two_processes_train_one_student(project: Project, tmp_path: Path) -> None:
    project.ok("teacher-cache")
    where = ["--config", str(project.config), "--run", str(project.run)]
    command = ["-m", "--", "deskpro", "train-student", *where]
    cpu = torchrun([*command, *sets("batchid=4", "train_student.sync_batch_norm=true")])
    refusal = "sync_batch_norm: torch synchronises batch norm on GPUs only"
    assert cpu.stderr.count(refusal) == 1  # though both meet it
    assert "Traceback" not in cpu.stderr.split("torch/distributed")[0]
    done = torchrun([*command, *sets("batchid=4", "data.workers=1")])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train-student: done in") == 1
    assert "4×2 samples each" in done.stderr
    first = keep(project, tmp_path)[0]
    done = torchrun([*command, "--force", *sets("batchid=4")])
    assert done.returncode == 0, done.stderr
    assert same(project.run / "student.safetensors", first)
    assert weights(first)
    project.ok("eval", *sets("batchid=4"))
    said = json.loads((project.run / "student.json").read_text())
    assert said["processes"] == 2


@pytest.mark.slow
def test_two_machines_train_the_student_of_one(project: Project, tmp_path: Path) -> None:
    """Two agents of torchrun, which meet at a port, beside one agent with two processes."""
    project.ok("teacher-cache")
    where = ["--config", str(project.config), "--run", str(project.run)]
    command = ["-m", "--", "deskpro", "train-student", *where, "--force", *sets("batchid=4")]
    done = torchrun(command)
    assert done.returncode == 0, done.stderr
    alone = keep(project, tmp_path)[0]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"
    agents = []
    for rank in range(2):
        program = [Path(sys.executable).with_name("torchrun"), "--nnodes", "2"]
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "one"]
        own = ["--node-rank", str(rank), "--log-dir", tmp_path / f"agent{rank}"]
        here = ["--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", "127.0.0.1"]
        agents.append(
            subprocess.Popen(
                [*program, *meeting, *own, *here, *command], cwd=REPOSITORY, text=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            )
        )  # fmt: skip
    errors = [agent.communicate(timeout=300)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], errors
    assert sum(error.count("train-student: done in") for error in errors) == 1
    assert same(project.run / "student.safetensors", alone)
    assert weights(alone)
    assert json.loads((project.run / "student.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_killed_processes_are_started_again_and_train_the_same_student(
    project: Project, tmp_path: Path
) -> None:
    """By `torchrun --max-restarts`: each kill costs the steps since the last checkpoint."""
    where = ["--config", str(project.config), "--run", str(project.run)]
    options = sets("batchid=4", "train_student.epochs=40", "checkpoints.every=1")
    command = ["-m", "--", "deskpro", "train-student", *where, *options]
    done = torchrun(command)
    assert done.returncode == 0, done.stderr
    whole = keep(project, tmp_path)[0]
    (project.run / "student.safetensors").unlink()
    (project.run / ".state" / "manifests" / "train-student.json").unlink()

    program = Path(sys.executable).with_name("torchrun")
    launch = [program, "--standalone", "--nproc-per-node", "2", "--max-restarts", "3", *command]
    said, killed = project.run / "restarts.log", set[int]()
    with said.open("w") as log:
        running = subprocess.Popen(
            launch, stdout=log, stderr=log, cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        until = time.monotonic() + 300
        while running.poll() is None and time.monotonic() < until:
            steps = [int(p.stem[5:]) for p in project.run.glob(".state/**/step-*.pt")]
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
            if len(killed) < 3 and len(children) == 2 and max(steps, default=0) > 15 * len(killed):
                victim = int(children[len(killed) % 2])  # the first process, and the other
                if victim not in killed:
                    os.kill(victim, signal.SIGKILL)
                    killed.add(victim)
            time.sleep(0.05)
    assert running.returncode == 0, said.read_text()
    assert len(killed) == 3
    assert same(project.run / "student.safetensors", whole)
    assert weights(whole)


@pytest.mark.slow
def test_two_processes_train_one_teacher(project: Project) -> None:
    where = ["--config", str(project.config), "--run", str(project.run), "--force"]
    command = ["-m", "--", "deskpro", "train-teacher", *where]
    done = torchrun([*command, *sets("train_teacher.batchid=4")])
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("train-teacher: done in") == 1
    assert "4×2 samples each" in done.stderr
    shared = weights(project.run / "teacher.safetensors")
    assert all(tensor.isfinite().all() for tensor in shared.values())
    project.ok("train-teacher", "--force", *sets("train_teacher.batchid=4"))
    alone = weights(project.run / "teacher.safetensors")
    # Batch statistics and hardest triplets are those of a half of each batch: other weights.
    assert shared.keys() == alone.keys()
    assert not torch.equal(shared["backbone.0.conv.weight"], alone["backbone.0.conv.weight"])


@pytest.mark.parametrize(
    ("batchid", "gathered", "unlabelled", "message"),
    [
        (
            2,
            True,
            3,
            "train_student.unlabelled 3 can't be shared among 2 processes: --set "
            "train_student.unlabelled=2",
        ),
        (2, True, 4, "no image of data.unlabelled has what a stream sees"),
        (3, False, 0, "batchid 3 can't be shared among 2 processes: --set batchid=2"),
        (
            2,
            False,
            0,
            "a triplet needs two: --set batchid=4 or --set train_student.gather",
        ),
        (2, True, 0, ""),
        (6, False, 0, "4 training identities make no batch of batchid 6: --set batchid=4 or less"),
    ],
)
def test_identities_that_ranks_cannot_share_are_refused(
    batchid: int, gathered: bool, unlabelled: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE=2", "MASTER_ADDR=x", "MASTER_PORT=1"):
        monkeypatch.setenv(*name.split("="))
    monkeypatch.setenv("RANK", "1")
    labels = np.repeat(np.arange(4), 5)
    data = recipe.TrainingSet(pd.DataFrame(), labels, [*"abcd"], lambda *_: labels, 3)
    options = Options.model_validate({"batchid": batchid, "batchimage": 2})
    wanted = options.recipe("student")._replace(gather_triplets=gathered, unlabelled=unlabelled)
    if message:
        with pytest.raises(InputError, match=re.escape(message)):
            recipe.make_sampler(data, wanted)
    else:
        assert {len(batch) for batch in recipe.make_sampler(data, wanted)} == {2}


@pytest.mark.parametrize(
    ("name", "gpus", "ranks", "local", "found"),
    [
        ("auto", 0, 1, 0, "cpu"), ("auto", 0, 2, 1, "cpu"), ("cpu", 2, 2, 1, "cpu"),
        ("auto", 2, 1, 0, "cuda:0"), ("cuda", 2, 2, 1, "cuda:1"), ("cuda:1", 2, 1, 0, "cuda:1"),
        ("cuda", 0, 1, 0, None), ("cuda:2", 2, 1, 0, None),
        ("auto", 1, 2, 0, None), ("cuda", 1, 2, 1, None), ("cuda:0", 2, 2, 0, None),
    ],
)  # fmt: skip
def test_a_rank_has_a_gpu_of_its_own_or_none(
    name: str, gpus: int, ranks: int, local: int, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    if found is None:
        with pytest.raises(InputError, match=f"device {name}: ") as refused:
            distributed.pick_device(name)
        assert gpus or "allowed is cpu or auto" in str(refused.value)
        assert not current
    else:
        assert str(distributed.pick_device(name)) == found
        assert current == ([] if found == "cpu" else [int(found[-1])])


@pytest.mark.slow
def test_ranks_exchange_and_a_failure_keeps_its_cause(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text(
        textwrap.dedent("""
        import time
        from deskpro.pipeline.failures import report_errors
        from deskpro.stages.base import distributed
        from deskpro.stages.base.errors import InputError

        with report_errors(), distributed.shared_errors():
            me = distributed.rank()
            assert distributed.all_gather_object({"rank": me}) == [{"rank": 0}, {"rank": 1}]
            assert distributed.broadcast_object(me + 7) == 7
            with distributed.rank_zero_first():
                pass
            try:
                with distributed.shared_errors():
                    if me == 1:
                        raise InputError("no such image")
                    distributed.barrier()
            except InputError as error:
                print(f"[{me}: {error!r} from {type(error.__cause__).__name__}]", flush=True)
                raise
    """)
    )
    done = torchrun([str(script)])
    assert done.returncode != 0
    assert "[1: InputError('no such image') from NoneType]" in done.stdout
    assert done.stderr.count("deskpro: no such image") == 1
    for line in re.findall(r"\[0: .*?\]", done.stdout):  # torchrun may have ended it before
        assert re.match(r"\[0: InputError\('rank 1 failed: no such image'\) from \w*Error", line)
    assert "deskpro: rank 1" not in done.stderr


@pytest.mark.slow
def test_when_one_process_fails_all_leave(project: Project) -> None:
    project.ok("teacher-cache")
    where = ["--config", str(project.config), "--run", str(project.run)]
    options = sets("batchid=4", "train_student.epochs=500", "train_student.lr=1e25")
    started = time.monotonic()
    done = torchrun(["-m", "--", "deskpro", "train-student", *where, *options])
    assert done.returncode != 0
    assert "training diverged at step" in done.stderr
    assert time.monotonic() - started < 120
    assert not (project.run / "student.safetensors").exists()
    assert not list(project.run.rglob("*partial*"))


ADDED = """
import torch
from typing import NamedTuple
from deskpro.stages.base.options import Options
from deskpro.stages.base.section import Section
from deskpro.stages.losses.terms import Term


class Norm(Section):
    weight: float = 0.5
    power: float = 2.0


class MyOptions(Options):
    norm: Norm = Norm()


def norm(features: torch.Tensor, labels: torch.Tensor, *, power: float) -> torch.Tensor:
    return features.float().abs().pow(power).mean()


TERM = Term(norm, "body", "features", "label", "norm.weight", settings={"power": "norm.power"})
"""


def test_a_loss_is_added_by_its_row_and_its_option(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "added_loss.py").write_text(ADDED)
    monkeypatch.syspath_prepend(tmp_path)
    added = importlib.import_module("added_loss")
    monkeypatch.setitem(TERMS, "norm_body", added.TERM)
    plain = config.load(project.config, ("train_student.max_steps=1",))
    run = RunFolder(project.run)
    for weight in (0.5, 1.0):
        changed = {**plain.model_dump(), "norm": {"weight": weight}}
        own = RunFolder(tmp_path / f"{weight}", run.path)
        stage = TrainStudent(added.MyOptions.model_validate(changed), own)
        result = stage.run(Job(FileIndex()))
        assert isinstance(result, TrainStudentResult)
        assert "norm_body" in result.training["losses"]
    histories = [RunFolder(tmp_path / f"{weight}").history("student") for weight in (0.5, 1.0)]
    one, two = (pd.read_csv(history).iloc[0] for history in histories)
    assert two["norm_body"] == pytest.approx(2 * one["norm_body"], rel=1e-6)
    assert one["norm_body"] > 0
    assert two["total"] - one["total"] == pytest.approx(one["norm_body"], rel=1e-3)


@pytest.mark.slow
def test_a_weight_that_is_not_finite_is_never_saved(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The losses of a step are finite when its update breaks a weight."""
    update = torch.optim.Adam.step

    def broken(self: torch.optim.Adam, *args: object) -> object:
        done = update(self)
        steps = {int(state["step"]) for state in self.state.values()}
        if steps == {3}:
            self.param_groups[0]["params"][0].data[0] = float("inf")
        return done

    monkeypatch.setattr(torch.optim.Adam, "step", broken)
    result = project("train-student", *sets(*SHORT, "checkpoints.every=1"))
    assert result.code == 2
    assert re.search(r"diverged at step 3 \(epoch 1\): \S+ is not finite", result.err)
    assert last_step(project) == 2


@pytest.mark.cuda
@pytest.mark.parametrize(
    "options",
    [
        ["train_student.precision=bfloat16", "train_student.channels_last=true"],
        ["train_student.precision=float16", "train_student.tf32=true"],
        ["train_student.compile=true"],
    ],
)
def test_a_student_trains_on_a_gpu(options: list[str], project: Project) -> None:
    project.ok("eval", *sets("device=cuda", *options))
    assert np.isfinite(history(project)["total"]).all()
