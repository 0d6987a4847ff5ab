"""Stages whose blocks are shared among workers give the bytes of one process at equal threads."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deskpro.pipeline.studies import STUDIES
from deskpro.stages.base.options import Options
from deskpro.stages.evaluation import feature_store
from tests.conftest import Project, Result

pytestmark = [pytest.mark.slow, pytest.mark.finished("train-student")]

Run = Callable[[Path, Callable[..., Result]], None]
"""(a folder that fills while the workers work, a command that takes `--set` options)."""


def of_ray(name: str) -> Any:
    return pytest.param(name, marks=pytest.mark.ray)


@pytest.fixture(
    params=["local", of_ray("ray"), of_ray("nodes"), "local-killed", of_ray("ray-killed")]
)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Runs a command with two workers; where it says so one of them is killed at work."""
    engine, _, killed = request.param.partition("-")
    options = ["launch.workers=2", "launch.threads=1"]
    cluster = None
    if engine != "local":
        pytest.importorskip("ray")
        options.append("launch.engine=ray")
    if engine == "nodes":
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        cluster.add_node(num_cpus=1)
        options.append(f"launch.address={cluster.address}")

    def call(folder: Path, command: Callable[..., Result]) -> None:
        if not killed:
            result = command(*sets(*options))
        else:
            victims: list[int] = []
            killer = threading.Thread(target=kill_a_worker, args=(folder, victims), daemon=True)
            killer.start()
            result = command(*sets(*options))
            killer.join(1)
            assert len(victims) == 1
            if engine == "local":  # Ray repeats a dead worker's block by itself
                assert result.code == 2
                assert "died with exit code -9" in result.err
                assert "run the same command to resume" in result.err
                result = command(*sets(*options))
        assert result.code == 0, result.err

    yield call
    if cluster is not None:
        cluster.shutdown()


def kill_a_worker(folder: Path, victims: list[int]) -> None:
    """SIGKILL one of this process's workers, as soon as the folder has a new file."""
    before, end = count_files(folder), time.monotonic() + 120
    while time.monotonic() < end:
        workers = worker_processes()
        if workers and count_files(folder) > before:
            os.kill(workers[0], signal.SIGKILL)
            victims.append(workers[0])
            return
        time.sleep(0.01)


def count_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def worker_processes() -> list[int]:
    """Descendants of this process that are an engine's workers, by their command line."""
    parents, names = dict[int, int](), dict[int, str]()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(path.name)] = (path / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended

    def ours(process: int) -> bool:
        while process in parents:
            process = parents[process]
            if process == os.getpid():
                return True
        return False

    marks = ("spawn_main", "ray::_Actor.run")
    return [pid for pid, name in names.items() if any(m in name for m in marks) and ours(pid)]


def sets(*pairs: str) -> list[str]:
    return [word for pair in pairs for word in ("--set", pair)]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".log") and "manifests" not in path.parts
    }


BLOCKS = sets("cache.block=2", "launch.threads=1")


def test_the_cache_is_that_of_one_process(run: Run, project: Project) -> None:
    store = project.run / "targets.zarr"
    project.ok("teacher-cache", "--force", *BLOCKS)
    wanted = digests(store)
    shutil.rmtree(store)
    run(store, lambda *options: project("teacher-cache", *BLOCKS, *options))
    assert digests(store) == wanted


def test_features_and_scores_are_those_of_one_process(
    run: Run, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, scores = project.run / "features.zarr", project.run / "metrics.json"
    monkeypatch.setattr(feature_store, "BLOCK", 2)
    project.ok("eval", "--force", *sets("launch.threads=1"))
    wanted = digests(store), scores.read_bytes()
    shutil.rmtree(store)
    scores.unlink()
    run(store, lambda *options: project("eval", "--force", *options))
    assert (digests(store), scores.read_bytes()) == wanted


def test_prepared_images_are_those_of_one_process(
    run: Run, project: Project, tmp_path: Path
) -> None:
    def prepare(name: str, *options: str) -> Result:
        return project.command(
            "prepare",
            *("--run", str(tmp_path / f"run-{name}"), "--config", str(project.config)),
            *sets(
                f"data.root={tmp_path / name}",
                f"prepare.root={project.data}",
                f"prepare.parsing.labels={project.data / 'labels'}",
                "prepare.batch=2",
                "launch.threads=1",
            ),
            *options,
        )

    assert prepare("one").code == 0
    run(tmp_path / "several", lambda *options: prepare("several", *options))
    one, several = (
        {file: digest for file, digest in digests(tmp_path / name).items() if "config" not in file}
        for name in ("one", "several")
    )
    assert several == one
    assert len(one) > 50


def test_an_ablation_is_that_of_one_process(
    run: Run, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = STUDIES["parts"].variants(Options())
    few = STUDIES["parts"]._replace(lines=lambda _: {k: every[k] for k in ("plain", "both")})
    monkeypatch.setitem(STUDIES, "parts", few)
    ablation = ["--replicates", "1", *sets("launch.threads=1")]
    project.ok("ablation", *ablation)
    folder = project.run / "ablation"
    files = [*folder.glob("*/student.safetensors"), *folder.glob("*/queries.csv")]
    wanted = {path: path.read_bytes() for path in files}
    assert len(wanted) > 2
    shutil.rmtree(folder)
    (project.run / "results.csv").unlink()
    run(folder, lambda *options: project("ablation", *ablation, *options, "--jobs", "2"))
    assert {path: path.read_bytes() for path in files} == wanted
