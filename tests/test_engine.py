"""Engines give the same results, say who died, and leave no process behind."""

from __future__ import annotations

import ast
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from deskpro.cache.errors import CacheError, damaged
from deskpro.stages import teacher_cache
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.errors import InputError, Stopped
from deskpro.stages.base.options import Launch, Options
from deskpro.stages.data.listings import _WrongError
from deskpro.stages.evaluation import feature_store
from deskpro.stages.models.extractor import NotFiniteError
from tests.conftest import REPOSITORY, slow
from tests.house.tree import MODULES, parse

ITEMS = [*range(7)]
LOCAL = Launch(workers=2, threads=1)
RAY = Launch(engine="ray", workers=2, threads=1)


def make_square(folder: Path | None = None) -> Callable[[int], np.ndarray]:
    """A worker whose result shows number and threads; with `folder` it dies at item 3, once."""
    import torch

    def square(item: int) -> np.ndarray:
        if folder is not None and item == 3 and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array([item**2, torch.get_num_threads()])

    return square


def make_refusing() -> Callable[[int], int]:
    def refuse(item: int) -> int:
        if item == 5:
            raise InputError(f"image {item} can't be read")
        return item

    return refuse


def make_nothing() -> Callable[[int], int]:
    raise InputError("no GPU")


def results(launch: Launch, folder: Path | None = None) -> dict[int, list[int]]:
    found = map_items(launch, partial(make_square, folder), ITEMS)
    return {item: result.tolist() for item, result in found}


EXPECTED = {item: [item**2, 1] for item in ITEMS}


def test_one_process_and_two_give_the_same() -> None:
    assert results(Launch(threads=1)) == EXPECTED
    assert results(LOCAL) == EXPECTED


def test_threads_of_the_driver_are_as_before() -> None:
    import torch

    found = dict(map_items(Launch(threads=2), make_square, ITEMS))
    assert [threads for _, threads in found.values()] == [2] * len(ITEMS)
    assert torch.get_num_threads() == 1


class CountsThreads:
    """A worker that takes its items in one stream, as those of teacher-cache and eval do."""

    def run(self, items: list[range], *advance: object) -> Iterator[int]:
        import torch

        yield from (torch.get_num_threads() for _ in items)


@pytest.mark.parametrize("computed", [feature_store._computed, teacher_cache._computed])
def test_the_only_worker_has_its_threads(computed: Callable[..., Iterator[object]]) -> None:
    import torch

    options, advance = Options(launch=Launch(threads=2)), ()
    if computed is teacher_cache._computed:
        advance = (lambda views: None,)
    assert [*computed([range(3)], CountsThreads, options, *advance)] == [(range(3), 2)]
    assert torch.get_num_threads() == 1


def make_place() -> Callable[[int], int]:
    return lambda _: int(os.environ["LOCAL_RANK"])


@pytest.mark.slow
@pytest.mark.parametrize(("share", "gpus"), [(1.0, {0, 1, 2}), (0.5, {0, 1}), (1 / 3, {0})])
def test_workers_share_gpus(share: float, gpus: set[int]) -> None:
    launch = Launch(workers=3, threads=1, gpus_per_worker=share)
    # A worker has one item before any has two.
    assert {found for _, found in map_items(launch, make_place, range(3))} == gpus


@pytest.mark.slow
@pytest.mark.parametrize("launch", [Launch(), LOCAL])
def test_an_input_error_of_a_worker_is_the_driver_s(launch: Launch) -> None:
    with pytest.raises(InputError, match=r"^image 5 can't be read$"):
        list(map_items(launch, make_refusing, ITEMS))
    with pytest.raises(InputError, match=r"^no GPU$"):
        list(map_items(launch, make_nothing, ITEMS))


@pytest.mark.slow
def test_items_are_read_when_a_worker_is_free() -> None:
    read = []

    def items() -> Iterator[int]:
        for item in range(50):
            read.append(item)
            yield item

    for launch in (Launch(), LOCAL):
        read.clear()
        found = map_items(launch, make_refusing, items())
        next(found)
        found.close()  # type: ignore[attr-defined]
        assert len(read) <= launch.workers + 1


@pytest.mark.slow
def test_a_dead_worker_is_one_line_and_what_came_before_is_kept(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="died") as raised:
        results(LOCAL, tmp_path)
    assert "exit code -9" in str(raised.value)
    assert "run the same command to resume" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert results(LOCAL, tmp_path) == EXPECTED


def make_reporting(folder: Path) -> Callable[[int], None]:
    (folder / f"{os.getpid()}.pid").touch()

    def sleep(item: int) -> None:
        time.sleep(60)

    return sleep


def test_an_address_without_a_cluster_is_refused_at_once() -> None:
    pytest.importorskip("ray")
    launch = Launch(engine="ray", address="127.0.0.1:1")
    with pytest.raises(InputError, match=r"launch.address 127.0.0.1:1: no Ray cluster"):
        list(map_items(launch, make_square, ITEMS))


DRIVER = """
import sys
from functools import partial
from pathlib import Path
from deskpro.stages import teacher_cache
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.options import Launch, Options
from tests.test_engine import make_reporting

if __name__ == "__main__":
    launch = Launch(engine=sys.argv[2], workers=2, threads=1)
    found = map_items(launch, partial(make_reporting, Path(sys.argv[1])), range(9))
    list(found)
"""


def end_driver(folder: Path, engine: str, number: int) -> list[int]:
    """Send a signal to a driver with two workers; the process ids of its workers."""
    script = folder / "driver.py"
    script.write_text(DRIVER)
    with (folder / "err").open("w") as err:
        driver = subprocess.Popen(
            [sys.executable, script, folder, engine],
            stderr=err,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
    try:
        wait_for(lambda: len([*folder.glob("*.pid")]) == 2, 60)
        driver.send_signal(number)
        assert driver.wait(20) != 0
    finally:
        driver.kill()
    return [int(path.stem) for path in folder.glob("*.pid")]


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def alive(process: int) -> bool:
    """Whether a process runs; a zombie doesn't."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, *slow(signal.SIGTERM, signal.SIGINT)])
def test_a_driver_that_ends_leaves_no_worker(number: signal.Signals, tmp_path: Path) -> None:
    for worker in end_driver(tmp_path, "local", number):
        wait_for(lambda worker=worker: not alive(worker), 30)  # type: ignore[misc]


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_same_and_repeats_what_a_dead_worker_had(tmp_path: Path) -> None:
    assert results(RAY, tmp_path) == EXPECTED
    assert (tmp_path / "died").exists()
    with pytest.raises(InputError, match=r"^image 5 can't be read$"):
        list(map_items(RAY, make_refusing, ITEMS))


@pytest.mark.ray
@pytest.mark.slow
def test_two_ray_nodes_give_the_same() -> None:
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        launch = RAY.model_copy(update={"address": cluster.address})
        assert results(launch) == EXPECTED
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_ray_driver_that_ends_leaves_no_worker(number: signal.Signals, tmp_path: Path) -> None:
    for worker in end_driver(tmp_path, "ray", number):
        wait_for(lambda worker=worker: not alive(worker), 20)  # type: ignore[misc]


ERRORS = [
    InputError("wrong", command="train-student --force"),
    Stopped("stopped", 143),
    CacheError("stale", command="teacher-cache", path=Path("c")),
    damaged(Path("c"), "it is cut short"),
    NotFiniteError(3),
    _WrongError(Path("list.txt"), "line 3"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_a_worker_is_whole_in_the_driver(error: Exception) -> None:
    found = pickle.loads(pickle.dumps(error))
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))


def test_every_own_error_that_takes_arguments_is_tried() -> None:
    own = {
        node.name
        for module in MODULES
        for node in ast.walk(parse(module))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
        and any(isinstance(d, ast.FunctionDef) and d.name == "__init__" for d in node.body)
    }
    assert own == {type(error).__name__ for error in ERRORS} - {"DamagedError"}
