"""Each row of the catalogue ends with exit code 2 and one message, and changes nothing."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deskpro.pipeline.stages import STAGES
from tests import bad_inputs
from tests.bad_inputs import Row, before
from tests.conftest import Project, Result, with_cache, write_recipe

ROWS = [
    pytest.param(row, id=f"{name.lower()}: {row.what}")
    for name, rows in vars(bad_inputs).items()
    if isinstance(rows, list)
    for row in rows
]


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory,
    finished_run: Callable[[str], Path],
    tiny_benchmark: Path,
) -> Path:
    """A folder with a recipe, its data and its finished run."""
    folder = tmp_path_factory.mktemp("bad")
    shutil.copytree(tiny_benchmark, folder / "data")
    write_recipe(folder / "tiny.yaml", folder / "data")
    made = Project(folder / "tiny.yaml", folder / "run", folder / "data", lambda: None)
    with_cache(made, finished_run("eval"), tiny_benchmark)
    return folder


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file and link with what changes when it is written, every folder.

    Locks may come, logs may grow.
    """
    return {
        path: (found.st_mode, found.st_size, found.st_mtime_ns)
        if not stat.S_ISDIR(found.st_mode)
        else ()
        for path, found in walk(folder)
        if not path.endswith((".lock", "/deskpro.log"))
    }


def walk(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    for entry in os.scandir(folder):
        found = entry.stat(follow_symlinks=False)
        yield entry.path, found
        if entry.is_dir(follow_symlinks=False):
            yield from walk(Path(entry.path))


OF_A_RECIPE = {*STAGES, "all", "prepare", "sweep", "ablation"}
"""Commands that take --config and --run."""


class Hang(BaseException):
    """A command took too long."""


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    """Hang where the block takes longer."""

    def stop(number: int, frame: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_one_message(
    row: Row, place: Path, command: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {
        "tmp": place,
        "data": place / "data",
        "run": place / "run",
        "config": place / "tiny.yaml",
    }

    def fill(word: str) -> str:
        for name, path in names.items():
            word = word.replace(f"{{{name}}}", str(path))
        return word

    for name, value in row.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(place)
    words = [fill(word) for word in shlex.split(row.command)]
    if words[0] in OF_A_RECIPE and "--config" not in words and "--run" not in words:
        words += ["--config", str(place / "tiny.yaml"), "--run", str(place / "run")]
    paths = [place / fill(name) for name in row.changes]
    for path, change in zip(paths, row.changes.values(), strict=True):
        if os.path.lexists(path):
            path.rename(before(path))
        change(path)
    try:
        earlier = state(place)
        with limit(15):
            result = command(*words)
        assert state(place) == earlier
    finally:
        for path in reversed(paths):
            remove(path)
            if os.path.lexists(before(path)):
                before(path).rename(path)
    assert result.code == row.code, result.err + result.out
    assert "Traceback" not in result.err
    assert fill(row.expected) in result.err
    assert sum(line.startswith(("deskpro: ", "Error: ")) for line in result.err.splitlines()) == 1


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
