"""A tiny benchmark, finished runs of a tiny recipe, the command line, and what a session costs."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import yaml
from filelock import FileLock
from hypothesis import settings

from deskpro.pipeline import cli
from deskpro.pipeline import runner as running
from deskpro.pipeline.config import load
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.benchmark import BenchmarkOptions, make_benchmark

REPOSITORY = Path(__file__).parents[1]

TINY = BenchmarkOptions(
    train_identities=4, train_images=5, test_identities=6, query_images=2, gallery_images=2,
    outfits=3, outfits_per_identity=2, cameras=2,
    query_back_views=0.3, gallery_back_views=0.3, train_back_views=0.0,
    body_height=64, body_width=32, face_size=32,
)  # fmt: skip

settings.register_profile("quick", max_examples=25, deadline=None)
settings.register_profile("all", max_examples=200, deadline=None)
settings.load_profile("quick")  # unless --hypothesis-profile=all


def pytest_configure(config: pytest.Config) -> None:
    """A session in the background ignores Ctrl-C, and so would every process that tests stop."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--costs", type=int, default=0, help="list the N tests that use most CPU")


def slow(*values: object) -> list[Any]:
    """Values of a test's parameter that the quick tests leave out."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and there is none")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


# What a session costs


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def slowness() -> float:
    """CPU time that a loop takes now, of its time on the machine on which the limit was set."""
    before, total = time.process_time(), 0
    for i in range(1_000_000):
        total += i
    return (time.process_time() - before) / 0.05


_COUNTED = pytest.StashKey[float]()
"""The CPU seconds of this process when the last report was made."""
_MEASURED = pytest.StashKey[float]()
"""When its slowness was measured: a shared machine's changes from minute to minute."""


def pytest_collection_finish(session: pytest.Session) -> None:
    session.config.stash[_COUNTED] = cpu_seconds()
    session.config.stash[_MEASURED] = 0.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, pytest.TestReport]:
    report: Any = yield
    now = cpu_seconds()
    report.cpu_seconds = now - item.config.stash[_COUNTED]
    if now - item.config.stash[_MEASURED] > 5:
        item.config.stash[_MEASURED] = now
        report.slowness = slowness()
    item.config.stash[_COUNTED] = now
    return report  # type: ignore[no-any-return]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The test processes of xdist have ended by now, so that they are counted."""
    terminalreporter.section("CPU")
    tests: dict[str, float] = {}
    reports = [report for group in terminalreporter.stats.values() for report in group]
    measured = [report.slowness for report in reports if hasattr(report, "slowness")]
    for report in reports:
        if (seconds := getattr(report, "cpu_seconds", None)) is not None:
            tests[report.nodeid] = tests.get(report.nodeid, 0.0) + seconds
    for test in sorted(tests, key=lambda test: -tests[test])[: config.getoption("--costs")]:
        terminalreporter.write_line(f"{tests[test]:8.2f} s  {test}")
    used, slow = cpu_seconds(), fmean(measured) if measured else slowness()
    terminalreporter.write_line(
        f"CPU seconds of all processes: {used:.0f} (this machine takes {slow:.2f} times as long)"
    )
    terminalreporter.write_line(f"CPU seconds to compare with the limit: {used / slow:.0f}")


# Made once


@pytest.fixture(autouse=True, scope="session")
def _one_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Test processes share the machine; networks here are too small to gain from threads.

    What is known of files does not go to the user's cache.
    """
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["DESKPRO_CACHE"] = str(tmp_path_factory.mktemp("cache"))


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, make)`: a folder that the first test process to ask for it makes for all."""
    base = tmp_path_factory.getbasetemp()
    base = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "once"
    base.mkdir(exist_ok=True)

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir()
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture(scope="session")
def tiny_benchmark(once: Once) -> Path:
    """A benchmark of 4 training and 6 test identities; read it, don't change it."""
    made = once("tiny", lambda folder: make_benchmark(folder / "benchmark", TINY, workers=1))
    return made / "benchmark"


@pytest.fixture
def data(tiny_benchmark: Path, tmp_path: Path) -> Path:
    """A copy of the tiny benchmark that a test may change."""
    return Path(shutil.copytree(tiny_benchmark, tmp_path / "data"))


@dataclass(frozen=True)
class Result:
    """What a command did."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Project:
    """A recipe in a folder, and the commands on it."""

    config: Path
    run: Path
    data: Path
    command: Callable[..., Result]

    def __call__(self, stage: str, *arguments: str) -> Result:
        """`deskpro STAGE --config … --run … ARGUMENTS` in this process."""
        where = ("--config", str(self.config), "--run", str(self.run))
        return self.command(stage, *where, *arguments)

    def ok(self, stage: str, *arguments: str) -> Result:
        result = self(stage, *arguments)
        assert result.code == 0, result.err
        return result


@pytest.fixture
def command(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """`deskpro …` in this process: exit code, standard output and error."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["deskpro", *arguments])
        monkeypatch.setenv("COLUMNS", "200")
        capfd.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return Result(code, out, err)

    return call


RECIPE = {
    "device": "cpu",
    "data": {"body_size": [64, 32], "face_size": [32, 32], "workers": 0},
    "batchid": 2,
    "batchimage": 2,
    "teacher": {"width": 0.25, "feature_dim": 16},
    "student": {"width": 0.25, "feature_dim": 16},
    "train_teacher": {"epochs": 2, "warmup_epochs": 1, "batchid": 2, "batchimage": 2},
    "train_student": {"epochs": 2, "warmup_epochs": 1},
    "cache": {"views": 3, "block": 8, "batch": 16, "targets": ["logits", "parsing", "embedding"]},
}
"""Trains for moments on the tiny benchmark."""


def write_recipe(path: Path, data: Path) -> None:
    sections: dict[str, Any] = RECIPE
    path.write_text(yaml.safe_dump(sections | {"data": sections["data"] | {"root": str(data)}}))


STAGES = ("train-teacher", "teacher-cache", "train-student", "eval")


@pytest.fixture(scope="session")
def finished_run(once: Once, tiny_benchmark: Path) -> Callable[[str], Path]:
    """A run of the recipe as far as a stage; copy it, don't change it."""

    def run(stage: str) -> Path:
        def make(folder: Path) -> None:
            write_recipe(folder / "tiny.yaml", tiny_benchmark)
            if stage != STAGES[0]:
                shutil.copytree(run(STAGES[STAGES.index(stage) - 1]), folder / "run")
            running.run_stage(stage, load(folder / "tiny.yaml"), RunFolder(folder / "run"))

        return once(stage, make) / "run"

    return run


@pytest.fixture(scope="session")
def tiny_run(finished_run: Callable[[str], Path]) -> Path:
    """A run as far as its target cache; copy it, don't change it."""
    return finished_run("teacher-cache")


@pytest.fixture(scope="session")
def tiny_student(finished_run: Callable[[str], Path]) -> Path:
    """A run as far as its student; copy it, don't change it."""
    return finished_run("train-student")


@pytest.fixture
def project(
    request: pytest.FixtureRequest, data: Path, tmp_path: Path, command: Callable[..., Result]
) -> Project:
    """The recipe on a copy of the data, without a run unless the test is marked finished(STAGE)."""
    config = tmp_path / "tiny.yaml"
    write_recipe(config, data)
    made = Project(config, tmp_path / "run", data, command)
    if marker := request.node.get_closest_marker("finished"):
        finished: Callable[[str], Path] = request.getfixturevalue("finished_run")
        with_cache(made, finished(*marker.args), request.getfixturevalue("tiny_benchmark"))
    return made


def with_cache(project: Project, run: Path, benchmark: Path) -> Project:
    """The project with a copy of a run, as if it had been made of the project's own data."""
    shutil.copytree(run, project.run)
    for manifest in (project.run / ".state" / "manifests").iterdir():
        manifest.write_text(manifest.read_text().replace(str(benchmark), str(project.data)))
    return project


def run_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`deskpro …` as a process of its own."""
    program = Path(sys.executable).with_name("deskpro")
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [program, *arguments], capture_output=True, text=True, cwd=REPOSITORY, **options
    )


def run_make(*words: str) -> str:
    """What `make …` prints, free of the options of a make that started the tests."""
    alone = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["make", *words], cwd=REPOSITORY, env=alone, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture(scope="session")
def reference() -> Path:
    """Facts about the published network; they lie beside the project, not in it."""
    folder = REPOSITORY.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"needs the reference material in {folder}")
    return folder
