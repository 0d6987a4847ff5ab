"""Workers, nodes and drivers killed at enumerated points of every mapped stage: the same bytes."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest

from deskpro.pipeline import cli
from deskpro.stages.base import engine
from deskpro.stages.evaluation import feature_store
from tests.conftest import Project, Result
from tests.killing import PLACES, MapItems, Points, spread
from tests.test_workers import digests, sets

pytestmark = [pytest.mark.slow, pytest.mark.finished("train-student")]

KILLS = 10
SERIAL, TWO = sets("launch.threads=1"), sets("launch.workers=2", "launch.threads=1")
PRELOAD = [
    "deskpro.stages.targets.worker", "deskpro.stages.evaluation.feature_store",
    "deskpro.pipeline.students", "deskpro.stages.train_student", "deskpro.stages.evaluate",
]  # fmt: skip


@pytest.fixture(scope="module")
def forks() -> BaseContext:
    """Processes that are forks of one that has loaded torch: a new one costs next to nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    yield made
    made.shutdown()


class Work:
    """A mapped stage: its command, its items, and the bytes that it makes."""

    def __init__(self, name: str, project: Project, folder: Path) -> None:
        self.name, self.project = name, project
        run, data = project.run, project.data
        self.options = {
            "prepare": sets(
                f"data.root={folder / 'prepared'}",
                f"prepare.root={data}",
                f"prepare.parsing.labels={data / 'labels'}",
                "prepare.batch=4",
            ),
            "teacher-cache": sets("cache.block=2"),
            "eval": [],
            "sweep": [
                *("--grid", "kd_loss.T=1,2,3", "--seeds", "1", "--jobs", "2"),
                *sets("train_student.max_steps=2"),
            ],
        }[name]
        self.items = {"prepare": 22, "teacher-cache": 10, "eval": 12, "sweep": 3}[name]
        """At least so many."""
        self.made = {
            "prepare": [folder / "prepared"],
            "teacher-cache": [run / "targets.zarr"],
            "eval": [run / "features.zarr", run / "metrics.json"],
            "sweep": [run / "sweep"],
        }[name]

    def arguments(self, *options: str) -> list[str]:
        where = ["--config", str(self.project.config), "--run", str(self.project.run)]
        return [self.name, *where, *self.options, *options]

    def __call__(self, *options: str) -> Result:
        return self.project.command(*self.arguments(*options))

    def bytes(self) -> dict[str, str]:
        """Digests of what was made: of students the weights, and what was measured of them."""
        found = dict[str, str]()
        for path in self.made:
            if path.is_file():  # it names the dataset, whose place differs from test to test
                text = path.read_text().replace(str(self.project.data), "DATA")
                found[path.name] = hashlib.sha256(text.encode()).hexdigest()
            elif path.is_dir():
                found |= {f"{path.name}/{name}": digest for name, digest in digests(path).items()}
        ends = {"eval": ("metrics.json",), "sweep": (".safetensors", "queries.csv")}.get(self.name)
        return {
            name: digest
            for name, digest in found.items()
            if ends is None or name.endswith(ends) or name.startswith("features")
            if "config.yaml" not in name
        }

    def remove(self) -> None:
        for path in self.made:
            path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["prepare", "teacher-cache", "eval", "sweep"])
def work(
    request: pytest.FixtureRequest, project: Project, tmp_path: Path, monkeypatch: Any
) -> Work:
    """A mapped stage; nothing of it is made yet."""
    monkeypatch.setattr(feature_store, "BLOCK", 2)
    return Work(request.param, project, tmp_path)


@pytest.fixture(scope="module")
def made_once() -> dict[str, dict[str, str]]:
    """Stage → the bytes of one process."""
    return {}


@pytest.fixture
def wanted(work: Work, made_once: dict[str, dict[str, str]]) -> dict[str, str]:
    """The bytes of one process; they are not there any more, and neither is anything else."""
    alone = {"prepare": [], "sweep": ["--jobs", "1"]}.get(work.name, ["--force"])
    if work.name not in made_once:
        result = work(*alone, *SERIAL)
        assert result.code == 0, result.err
        made_once[work.name] = work.bytes()
        assert len(made_once[work.name]) >= 4
    work.remove()
    return made_once[work.name]


@pytest.fixture
def points(tmp_path: Path, work: Work) -> Callable[..., Points]:
    def make(*kinds: str, count: int = KILLS) -> Points:
        (tmp_path / "points").mkdir()
        each = spread(work.items, count // len(kinds), repeated="start" in kinds)
        return Points(tmp_path / "points", dict.fromkeys(kinds, each))

    return make


def test_local_workers_are_killed(
    work: Work,
    wanted: dict[str, str],
    points: Callable[..., Points],
    forks: BaseContext,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each kill ends the command with one line; the same command goes on."""
    at = points("start", "end")
    monkeypatch.setattr(engine.multiprocessing, "get_context", lambda name: forks)
    monkeypatch.setattr(PLACES[work.name], MapItems(at))
    while (result := work(*TWO)).code == 2:
        assert "died with exit code -9" in result.err
        log = Path(result.err.rsplit("Its log: ", 1)[1].strip())
        assert "died with exit code -9" in log.read_text().splitlines()[-1]
    assert result.code == 0, result.err
    assert at.killed == at.wanted == KILLS
    assert work.bytes() == wanted


@pytest.mark.ray
def test_ray_workers_are_killed(
    work: Work,
    wanted: dict[str, str],
    points: Callable[..., Points],
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray repeats what they had: one command, which nobody need type again."""
    at = points("start", "end")
    monkeypatch.setattr(PLACES[work.name], MapItems(at))
    options = sets("launch.engine=ray", f"launch.address={cluster.address}")
    result = work(*TWO, *options, *sets("launch.max_restarts=20"))
    assert result.code == 0, result.err
    assert at.killed == at.wanted == KILLS
    assert work.bytes() == wanted


@pytest.mark.ray
@pytest.mark.parametrize("work", ["teacher-cache"], indirect=True)
def test_a_node_is_removed_while_it_works(
    work: Work,
    wanted: dict[str, str],
    points: Callable[..., Points],
    cluster: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two workers on two nodes, one of which goes when both workers have given a result."""
    node = cluster.add_node(num_cpus=2)
    cluster.wait_for_nodes()
    at, gone = Points(points("start", count=2).folder, {}, together=2), list[int]()
    folder = work.project.run / "logs"

    def remove(number: int) -> None:
        if not gone and len([*folder.glob("teacher-cache-*.log")]) == 2:
            cluster.remove_node(node, allow_graceful=False)
            gone.append(number)

    monkeypatch.setattr(PLACES[work.name], MapItems(at, remove))
    result = work(*TWO, *sets("launch.engine=ray", f"launch.address={cluster.address}"))
    assert result.code == 0, result.err
    assert gone
    assert work.bytes() == wanted
    logs = [path.read_text() for path in folder.glob("teacher-cache-*.log")]
    assert sum(log.count(" process ") for log in logs) == 3  # one was started again


def drive(arguments: list[str], at: Points) -> None:
    """A driver in a process of its own."""
    os.environ["OMP_NUM_THREADS"] = "1"
    feature_store.BLOCK = 2
    module, _, name = PLACES[arguments[0]].rpartition(".")
    setattr(sys.modules.get(module) or __import__(module, fromlist=[name]), name, MapItems(at))
    sys.argv = ["deskpro", *arguments]
    cli.main()


@pytest.mark.parametrize(
    ("work", "count"),
    [("prepare", 2), ("teacher-cache", 4), ("eval", 2), ("sweep", 2)],
    indirect=["work"],
)
def test_drivers_are_killed(
    count: int,
    work: Work,
    wanted: dict[str, str],
    points: Callable[..., Points],
    forks: BaseContext,
) -> None:
    """Each kill comes as a result is received, or was written; the same command goes on."""
    end_drivers(work, points("received", "written", count=count), forks, TWO)
    assert work.bytes() == wanted


@pytest.mark.ray
@pytest.mark.parametrize("work", ["teacher-cache"], indirect=True)
def test_drivers_of_ray_are_killed(
    work: Work,
    wanted: dict[str, str],
    points: Callable[..., Points],
    cluster: Any,
    forks: BaseContext,
) -> None:
    options = sets("launch.engine=ray", f"launch.address={cluster.address}")
    end_drivers(work, points("received", "written", count=2), forks, [*TWO, *options])
    assert work.bytes() == wanted


def end_drivers(work: Work, at: Points, forks: BaseContext, options: list[str]) -> None:
    """Repeat a command, which is killed at every point, until it is done."""
    for _ in range(at.wanted + 1):
        process = forks.Process(target=drive, args=(work.arguments(*options), at))  # type: ignore[attr-defined]
        process.start()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL)
    assert process.exitcode == 0
    assert at.killed == at.wanted
