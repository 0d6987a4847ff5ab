"""The one view of mapped work in the terminal, and the log of each worker in the run folder."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deskpro.stages.base import log_file, progress, workers
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.errors import InputError
from deskpro.stages.base.log_file import WorkerLog
from deskpro.stages.base.options import Launch
from deskpro.stages.base.run_folder import RunFolder
from tests.conftest import REPOSITORY, Project
from tests.telling import Talking
from tests.test_progress import STAMP, Terminal

LOCAL = Launch(workers=2, threads=1)
RAY = LOCAL.model_copy(update={"engine": "ray"})


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose command has a log; it exists."""
    progress.begin()
    progress.log_to(tmp_path)
    (tmp_path / "config.yaml").touch()
    return tmp_path


def work(launch: Launch, fault: str = "", items: int = 6) -> dict[int, int]:
    with progress.bar("prepare body", items, "images") as bar:
        found = {}
        for item, result in map_items(launch, Talking(fault), range(items)):
            found[item] = result
            bar.advance()
    return found


def logs(run: Path) -> dict[str, list[str]]:
    """The lines of the workers' logs, without their times."""
    found = {}
    for path in sorted((run / "logs").glob("*")):
        lines = path.read_text().splitlines()
        assert all(STAMP.match(line) for line in lines)
        found[path.name] = [STAMP.sub("", line) for line in lines]
    return found


def require_logs(run: Path, launch: Launch, err: str) -> None:
    """Each worker's lines are in its own log, in their order; the driver's has the warnings."""
    found = logs(run)
    assert {*found} == {f"prepare-body-worker-{number}.log" for number in range(launch.workers)}
    items = list[int]()
    for lines in found.values():
        assert len([line for line in lines if line.startswith("process ")]) == 1
        for position, line in enumerate(lines):
            if start := re.fullmatch(r"(item \d+) starts: (\d)", line):
                own = [each for each in lines[position + 1 :] if not each.startswith("process ")]
                assert own[0] == f"warning: image {start[2]} is left out"
                assert own[1] == f"a library prints {start[2]}"
                assert own[2].startswith(f"{start[1]} done in ")
                items.append(int(start[2]))
    assert sorted(items) == [*range(6)]
    shown = (run / "deskpro.log").read_text()
    for item in range(6):
        assert err.count(f"image {item} is left out") == 1
        assert shown.count(f"image {item} is left out") == 1
    assert "a library prints" not in err + shown


def test_each_local_worker_has_a_log(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert work(LOCAL) == {item: item for item in range(6)}
    require_logs(run, LOCAL, capfd.readouterr().err)


@pytest.mark.slow
@pytest.mark.ray
def test_the_worker_of_a_ray_cluster_has_a_log(
    run: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one quick test of Ray: results, lines that come with them, and the view."""
    pytest.importorskip("ray")
    monkeypatch.setattr(progress, "_SILENT", 0.0)
    monkeypatch.setattr(progress, "_BEAT", 0.02)
    launch = RAY.model_copy(update={"workers": 1})
    assert work(launch) == {item: item for item in range(6)}
    err = capfd.readouterr().err
    require_logs(run, launch, err)
    assert "prepare body: 0/6 images, - images/s, -:-- left, items 0 done, 1 running, 5 wait" in err


def test_one_process_has_no_log_of_a_worker(run: Path) -> None:
    work(Launch())
    assert not (run / "logs").exists()


def test_a_killed_worker_is_named_with_its_log(run: Path) -> None:
    with pytest.raises(InputError, match="died with exit code -9") as raised:
        work(LOCAL, "killed")
    path = Path(str(raised.value).rsplit("Its log: ", 1)[1])
    lines = [STAMP.sub("", line) for line in path.read_text().splitlines()]
    assert "warning: image 3 is left out" in lines  # what it said before
    assert re.match(r"item 4 failed: worker \d died with exit code -9", lines[-1])
    RunFolder(run).remove_empty(whole=True)  # what the runner does then
    assert path.exists()


@pytest.mark.ray
@pytest.mark.slow
def test_an_item_that_kills_every_worker_of_ray_ends_the_work(run: Path) -> None:
    """Also though tries to reach a worker are not counted."""
    pytest.importorskip("ray")
    with pytest.raises(InputError, match=r"ray: The actor died") as raised:
        work(RAY.model_copy(update={"workers": 1, "max_restarts": 1}), "killed")
    path = Path(str(raised.value).rsplit("Its log: ", 1)[1])
    lines = [STAMP.sub("", line) for line in path.read_text().splitlines()]
    assert [line for line in lines if " done in " in line] != []
    assert lines[-1].startswith("item 4 failed: ray: The actor died")


def test_an_error_of_the_program_names_the_log_which_has_its_traceback(run: Path) -> None:
    with pytest.raises(ZeroDivisionError) as raised:
        work(LOCAL, "broken")
    traceback, named = raised.value.__notes__
    path = Path(named.rsplit(": ", 1)[1])
    assert "in talk" in traceback
    text = STAMP.sub("", path.read_text())
    assert "item 4 failed: ZeroDivisionError: of image 3" in text
    assert "in talk" in text


def test_a_refusal_leaves_no_log_where_nothing_was_done(run: Path) -> None:
    with pytest.raises(InputError, match=r"^no GPU$"):
        work(LOCAL, "refused")
    refused = [lines for lines in logs(run).values() if lines[-1].endswith("failed: no GPU")]
    assert len(refused) == 1  # where it warned before, which is worth a log
    with pytest.raises(InputError, match=r"^no GPU$"), progress.bar("features", 3, "images"):
        list(map_items(LOCAL, Talking("none"), range(3)))
    assert "features-worker-0.log" not in logs(run)


@given(
    texts=st.lists(st.text(max_size=300), max_size=60),
    commands=st.lists(st.integers(0, 60), max_size=4),
)
def test_a_log_is_bounded_and_has_the_last_lines(
    texts: list[str], commands: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    run, written = tmp_path_factory.mktemp("run"), list[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log_file, "LIMIT", 4_000)
        log = WorkerLog(run, "prepare body", 0, pytest.fail)
        for number, text in enumerate(texts):
            if number in commands:  # another command goes on with it
                log = WorkerLog(run, "prepare body", 0, pytest.fail)
            log.write(f"{number} {text!r}")
            written.append(f"{number} {text!r}".rstrip())
            sizes = [path.stat().st_size for path in (log.path, log.old) if path.exists()]
            assert max(sizes) <= 4_000
    found = "".join(path.read_text() for path in (log.old, log.path) if path.exists())
    lines = [STAMP.sub("", line) for line in found.splitlines()]
    assert lines == written[len(written) - len(lines) :]
    assert len("\n".join(written)) < 1_000 or len(found) > 1_000


def test_what_a_library_prints_without_end_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_file, "LIMIT", 4_000)
    log = WorkerLog(tmp_path, "sweep", 1, pytest.fail)
    for number in range(500):
        log.wait(f"line {number}")
    log.wait("x" * 50_000)
    log.write("item 1 done in 0:01")
    assert {path.name for path in (tmp_path / "logs").iterdir()} == {
        "sweep-worker-1.log", "sweep-worker-1.old.log"
    }  # fmt: skip
    assert all(path.stat().st_size < 8_000 for path in (tmp_path / "logs").iterdir())
    assert log.path.read_text().endswith("item 1 done in 0:01\n")


def test_a_log_that_cannot_be_written_is_a_warning(
    run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (run / "logs").write_text("a file")
    assert len(work(LOCAL)) == 6
    err = capfd.readouterr().err
    assert err.count("this command goes on without a log") == 2  # of each worker


@given(total=st.integers(0, 40), count=st.integers(1, 12), data=st.data())
def test_the_view_counts_items_and_times_workers(
    total: int, count: int, data: st.DataObject
) -> None:
    """Any order in which workers end; seconds of an item are its number of the worker."""
    with pytest.MonkeyPatch.context() as patch:
        now = [0.0]
        patch.setattr(workers.time, "monotonic", lambda: now[0])
        patch.setattr("sys.stderr", Terminal())
        progress.begin()
        with progress.bar("sweep", total, "students") as bar:
            seen = workers.Workers(count, total)
            waiting, running = [*range(total)], dict[int, float]()
            done = dict.fromkeys(range(count), 0)

            def start(number: int) -> None:
                if waiting:
                    seen.start(number, waiting.pop(0))
                    running[number] = now[0]

            for number in range(count):
                start(number)
            while running:
                number = data.draw(st.sampled_from(sorted(running)))
                now[0] = max(now[0], running.pop(number) + number + 1)
                seen.end(number)
                done[number] += 1
                note = bar._display.task(bar._number).fields["note"]
                finished = sum(done.values())
                left = total - finished - len(running)
                expected = f"{finished} done, {len(running)} running, {left} waiting"
                assert note["items"] == expected
                if count == 1:
                    assert note["each worker"] == "1.0 items/s"
                start(number)
            if total and (active := sum(map(bool, done.values()))) <= 8:
                note = bar._display.task(bar._number).fields["note"]
                assert len(note["each worker"].split(",")) == active


@pytest.mark.slow
def test_without_a_length_nothing_waits(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for count, shown in ((None, "items 0 done, 2 running\n"), (4, "2 running, 2 waiting\n")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(progress, "_SILENT", 0.0)
            patch.setattr(progress, "_BEAT", 0.02)
            with progress.bar("prepare body", 4, "images"):
                list(map_items(LOCAL, Talking(), iter(range(4)), count=count))
        assert shown in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.finished("train-teacher")
def test_logs_upset_nothing(project: Project, tmp_path: Path) -> None:
    """Freshness, packing, evaluation, report; a repeated command goes on with the same files."""
    shared = ["--set", "launch.workers=2", "--set", "launch.threads=1", "--set", "cache.block=8"]
    project.ok("teacher-cache", *shared)
    assert {*logs(project.run)} <= {f"teacher-cache-worker-{number}.log" for number in (0, 1)}
    assert sum(" done in " in line for lines in logs(project.run).values() for line in lines) == 3
    assert "is fresh" in project.ok("teacher-cache", *shared).err
    packed = project.command("cache", "pack", str(project.run), str(tmp_path / "targets.zip"))
    assert packed.code == 0, packed.err
    before = logs(project.run)
    shutil.rmtree(project.run / "targets.zarr")
    project.ok("teacher-cache", *shared)
    after = logs(project.run)
    assert all(after[name][: len(lines)] == lines for name, lines in before.items())
    assert sum(map(len, after.values())) > sum(map(len, before.values()))
    assert project.command("cache", "verify", str(project.run)).code == 0
    project.ok("eval")
    assert project.command("report", str(project.run)).code == 0


def test_ray_is_imported_only_when_it_is_asked_for() -> None:
    code = (
        "import sys\n"
        "from deskpro.stages.base.engine import map_items\n"
        "from deskpro.stages.base.options import Launch\n"
        "import deskpro.pipeline.cli, deskpro.pipeline.stages as stages\n"
        "[stages.stage_class(name) for name in stages.STAGES]\n"
        "assert len([*map_items(Launch(), lambda: abs, range(3))]) == 3\n"
        "sys.exit('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, cwd=REPOSITORY)
    assert done.returncode == 0


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"pip install 'deskpro\[cluster\]'"):
        list(map_items(RAY, Talking(), range(3)))


def test_one_test_of_ray_is_quick(request: pytest.FixtureRequest) -> None:
    """`make test` runs it, `make test-all` the others."""
    of_ray = [item for item in request.session.items if item.get_closest_marker("ray")]
    quick = {item.name for item in of_ray if not item.get_closest_marker("slow")}
    assert quick <= {"test_the_worker_of_a_ray_cluster_has_a_log"}
