"""A tiny benchmark, a tiny recipe, and the command line as a user has it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from deskpro.pipeline import cli
from deskpro.pipeline import runner as running
from deskpro.pipeline.config import load
from deskpro.stages.base.run_folder import RunFolder
from deskpro.stages.data.benchmark import BenchmarkOptions, make_benchmark

REPOSITORY = Path(__file__).parents[1]

TINY = BenchmarkOptions(
    train_identities=4, train_pictures=5, test_identities=6, query_pictures=2, gallery_pictures=2,
    outfits=3, outfits_per_identity=2, cameras=2, looks=2, back_views=0.3,
    body_height=64, body_width=32, face_size=32,
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and there is none")
        for item in items:
            if "cuda" in item.keywords:
                item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Test workers share the machine; networks here are too small to gain from threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_benchmark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark of 4 training and 6 test identities; read it, don't change it."""
    root = tmp_path_factory.mktemp("data") / "benchmark"
    make_benchmark(root, TINY, workers=1)
    return root


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
    "cache": {"views": 3, "block": 8, "batch": 16},
}
"""Trains for moments on the tiny benchmark."""


def write_recipe(path: Path, data: Path) -> None:
    sections: dict[str, Any] = RECIPE
    path.write_text(yaml.safe_dump(sections | {"data": sections["data"] | {"root": str(data)}}))


@pytest.fixture
def project(data: Path, tmp_path: Path, command: Callable[..., Result]) -> Project:
    """The recipe on data of its own; nothing is made yet."""
    config = tmp_path / "tiny.yaml"
    write_recipe(config, data)
    return Project(config, tmp_path / "run", data, command)


@pytest.fixture(scope="session")
def tiny_run(tiny_benchmark: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the recipe as far as its target cache; copy it, don't change it."""
    folder = tmp_path_factory.mktemp("run")
    write_recipe(folder / "tiny.yaml", tiny_benchmark)
    run = RunFolder(folder / "run")
    running.run_stage("teacher-cache", load(folder / "tiny.yaml"), run)
    return run.path


@pytest.fixture(scope="session")
def tiny_student(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run as far as its student; copy it, don't change it."""
    run = tmp_path_factory.mktemp("student") / "run"
    shutil.copytree(tiny_run, run)
    running.run_stage("train-student", load(tiny_run.parent / "tiny.yaml"), RunFolder(run))
    return run


def with_cache(project: Project, run: Path, benchmark: Path) -> Project:
    """The project with a copy of a run, as if it had been made of the project's own data."""
    shutil.copytree(run, project.run)
    for manifest in (project.run / "manifests").iterdir():
        manifest.write_text(manifest.read_text().replace(str(benchmark), str(project.data)))
    return project


def run_process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    """`deskpro …` as a process of its own."""
    program = Path(sys.executable).with_name("deskpro")
    return subprocess.run(  # type: ignore[call-overload, no-any-return]
        [program, *arguments], capture_output=True, text=True, cwd=REPOSITORY, **options
    )


@pytest.fixture(scope="session")
def reference() -> Path:
    """Facts about the published network; they lie beside the project, not in it."""
    folder = REPOSITORY.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"needs the reference material in {folder}")
    return folder
