"""What the repository as a whole promises: tracked, pinned, with help for every target."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_make, run_process
from tests.house.tree import MODULES


def test_every_dependency_is_pinned() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = [name for extra in project["optional-dependencies"].values() for name in extra]
    required = [*project["dependencies"], *extras]
    lock = (REPOSITORY / "requirements.lock").read_text()
    pinned = {name.lower() for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    pinned = {name.replace("_", "-") for name in pinned}
    names = {re.split(r"[<>=\[]", requirement)[0].lower() for requirement in required}
    assert names <= pinned


def test_every_module_is_part_of_the_repository() -> None:
    if not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    tracked = subprocess.run(listed, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert {*MODULES} <= set(tracked.stdout.splitlines())


def test_make_alone_prints_every_target() -> None:
    printed = run_make()
    text = (REPOSITORY / "Makefile").read_text()
    targets = text.split(".PHONY:")[1].split("\n\n")[0].replace("\\\n", " ").split()
    for target in targets:
        if target != "help":
            assert f"make {target} " in printed


def test_make_types_names_with_spaces_and_options_that_are_given(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.yaml").touch()
    for words, wanted in (
        (["eval", "CONFIG=my recipe.yaml"], ["eval", "--config", "my recipe.yaml"]),
        (["eval", f"RUN={run}"], ["eval", "--run", str(run)]),
        (["report", "CONFIG=my own/my recipe.yaml"], ["report", "runs/my recipe"]),
        (["ablation", "ARGS=--results mine.csv"], ["--results", "mine.csv"]),
    ):
        printed = run_make("-n", "-o", ".venv/.ready", *words)
        assert shlex.split(printed.splitlines()[-1])[-len(wanted) :] == wanted


def test_every_command_has_a_help_page() -> None:
    commands = ("train-teacher", "teacher-cache", "train-student", "eval", "all", "demo")
    for command in commands:
        assert "--config" in run_process(command, "--help").stdout
