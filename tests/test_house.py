"""The house stands as designed: imports run one way, importing does nothing, help is quick."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_process

BLOCKS = {"data", "models", "losses", "metrics", "reporting"}
"""Rooms under stages/ that don't know each other."""
SHARED = {"training", "targets", "evaluation", "preparation"}
"""Rooms of what stages are made of; they stand on the blocks, below the stages."""
BASE = "base"
"""What all of these stand on."""

MODULES = sorted(
    path.relative_to(REPOSITORY)
    for room in ("pipeline", "stages", "cache")
    for path in (REPOSITORY / room).rglob("*.py")
)


def imports(path: Path) -> set[str]:
    """Every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(path: Path, imported: set[str]) -> list[str]:
    """The imports of a file that run against the direction."""
    room, *inner = path.with_suffix("").parts
    block = inner[0] if room == "stages" and len(inner) > 1 else None
    stage = inner[0] if room == "stages" and len(inner) == 1 else None
    wrong = []
    for name in imported:
        target, *below = name.removeprefix("deskpro.").split(".")
        against = False
        if target == "click":
            against = room != "pipeline"
        elif target in ("zarr", "numcodecs", "google_crc32c"):
            against = room != "cache"
        elif target == "torch":
            against = room in ("cache", "pipeline")
        elif target == "pipeline":
            against = room != "pipeline"
        elif target == "cache":
            light = below[:1] in (["errors"], ["files"], ["file_index"], ["fingerprint"])
            against = not light and (room == "pipeline" or block in BLOCKS)
        elif target == "stages":
            first = below[0] if below else ""
            if room == "cache":
                against = True
            elif first == BASE:
                against = block in BLOCKS and below[1:2] == ["options"]
            elif block == BASE:
                against = True
            elif block in SHARED:
                against = first not in BLOCKS | {block}
            elif block is not None:
                against = first != block
            elif stage is not None:
                against = first not in BLOCKS | SHARED and first != stage
        if against:
            wrong.append(name)
    return wrong


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
    assert {str(path) for path in MODULES} <= set(tracked.stdout.splitlines())


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_run_one_way(path: Path) -> None:
    assert not violations(path, imports(path))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("stages/train_student.py", "deskpro.stages.teacher_cache.run"),
        ("stages/models/osnet.py", "deskpro.stages.data.views.look"),
        ("stages/models/lmbn.py", "deskpro.stages.training.loop.fit"),
        ("stages/training/loop.py", "deskpro.stages.train_student.run"),
        ("stages/losses/triplet.py", "deskpro.stages.base.options.Options"),
        ("stages/data/index.py", "deskpro.cache.open_reader"),
        ("stages/evaluate.py", "deskpro.pipeline.stages"),
        ("cache/reader.py", "torch"),
        ("cache/reader.py", "deskpro.stages.base.errors.InputError"),
        ("pipeline/plan.py", "deskpro.cache.reader.MappedReader"),
        ("stages/teacher_cache.py", "zarr"),
        ("stages/progress.py", "click"),
    ],
)
def test_an_import_against_the_direction_is_seen(path: str, name: str) -> None:
    assert violations(Path(path), {name}) == [name]


@pytest.mark.parametrize("module", ["cache", "pipeline.cli", "stages.base.options"])
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, deskpro.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys, deskpro.pipeline.cli\n"
        "sys.argv = ['deskpro', '--help']\n"
        "try: deskpro.pipeline.cli.main()\n"
        "except SystemExit: sys.exit(bool({'torch', 'pandas', 'zarr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_make_alone_prints_every_target() -> None:
    made = subprocess.run(["make"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    text = (REPOSITORY / "Makefile").read_text()
    targets = text.split(".PHONY:")[1].split("\n\n")[0].replace("\\\n", " ").split()
    for target in targets:
        if target != "help":
            assert f"make {target} " in made.stdout


def test_every_command_has_a_help_page() -> None:
    commands = ("train-teacher", "teacher-cache", "train-student", "eval", "all", "demo")
    for command in commands:
        assert "--config" in run_process(command, "--help").stdout
