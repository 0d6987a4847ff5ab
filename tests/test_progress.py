"""What a terminal, a pipe and the log of a run folder show of a command."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from deskpro.stages.base import progress
from deskpro.stages.base.display import Display, clock
from deskpro.stages.base.engine import map_items
from deskpro.stages.base.log_file import LogFile
from deskpro.stages.base.options import Launch
from tests.conftest import Project
from tests.telling import make_telling

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  ")


def shown(width: int, *bars: tuple[str, int, int, str], **note: str) -> list[str]:
    """The lines of bars, (title, done, total, unit) at 4 units a second, on a terminal."""
    now = [0.0]
    console = Console(file=io.StringIO(), force_terminal=True, width=width, no_color=True)
    display = Display(console, live=True)
    display.get_time = lambda: now[0]
    numbers = [display.add(title, total, unit) for title, _, total, unit in bars]
    for part in (0.25, 0.5, 1):
        for number, (_, done, _, _) in zip(numbers, bars, strict=True):
            display.update(number, completed=part * done, note=note)
        now[0] += bars[0][1] / 16
    with console.capture() as text:
        console.print(display.get_renderable())
    return [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in text.get().splitlines()]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_a_bar_is_one_line_with_count_rate_and_time_left(width: int) -> None:
    losses = {f"triplet_{part}": "12.345" for part in ("face", "body", "head", "all")}
    line, *below = shown(width, ("train-student", 12_345, 1_234_567, "steps"), **losses)
    assert re.search(r"train-student [━╸╺ ]+ 12345/1234567 6.0 steps/s \d+:\d\d:\d\d left", line)
    assert len(line) <= width
    assert re.findall(r"triplet_\w+ 12.345", "\n".join(below)) == [
        f"{name} 12.345" for name in losses
    ]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_bars_of_students_are_one_line_each(width: int) -> None:
    long = "kd_loss.T=1.5,kd_loss.alpha=0.25,train_student.views=16, seed 10"
    lines = shown(
        width, ("sweep", 3, 240, "students"), (long, 300, 3000, "steps"), ("b", 1, 2, "images")
    )
    assert len(lines) == 3
    assert "seed 10" in lines[1]
    for line, found in zip(lines, ("3/240", "300/3000", "1/2"), strict=True):
        assert re.search(rf" {found} +[\d.]+ \w+/\w+ +[\d:]+ left", line)
        assert len(line) <= width


def test_times() -> None:
    assert [clock(seconds) for seconds in (None, 0.4, 65, 3_600, 90_061)] == [
        "-:--", "0:00", "1:05", "1:00:00", "25:01:01"
    ]  # fmt: skip


def work() -> None:
    """Some silent seconds, then steps."""
    with progress.working("eval"):
        time.sleep(0.3)
        with progress.bar("train-student", 4, "steps") as bar:
            for step in range(4):
                time.sleep(0.15)
                bar.note({"epoch": f"{step}/4", "total": "1.5"})
                bar.advance()


def test_a_pipe_is_told_how_far_the_work_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SILENT", 0.1)
    work()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "eval: 0:00 so far"
    last = lines[-1]
    assert re.match(r"train-student: \d/4 steps, [\d.]+ steps/s, 0:0\d left, epoch \d/4, ", last)
    assert 4 <= len(lines) <= 12


def test_an_epoch_is_a_line_unless_epochs_are_short(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for length, lines in ((0.0, 3), (60.0, 0)):
        monkeypatch.setattr(progress, "_SILENT", 60.0)
        with progress.bar("train-student", 3, "steps") as bar:
            monkeypatch.setattr(progress, "_SILENT", length)
            for _ in range(3):
                bar.advance()
                bar.epoch_ends()
        assert len(capfd.readouterr().err.splitlines()) == lines


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


RED, YELLOW = "\x1b[31m", "\x1b[33m"


@pytest.mark.parametrize(
    ("environment", "coloured", "live"),
    [({}, True, True), ({"NO_COLOR": "1"}, False, True), ({"TERM": "dumb"}, False, False)],
)
def test_warnings_are_yellow_and_refusals_red(
    environment: dict[str, str], coloured: bool, live: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ({"TERM": "xterm-256color", "COLUMNS": "80"} | environment).items():
        monkeypatch.setenv(name, value)
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress.working("eval"):
        time.sleep(0.3)
        progress.warn("one image is left out")
    progress.refuse("deskpro: no images")
    text = terminal.getvalue()
    assert "warning: one image is left out\n" in re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", text)
    assert (f"{YELLOW}warning" in text, f"{RED}deskpro" in text) == (coloured, coloured)
    assert bool(re.search(r"\x1b\[(3|9)\d", text)) == coloured
    assert ("eval  0:00" in text) == live


def test_names_are_shown_as_they_are(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """What others read as markup or an emoji is part of a name, in tables as in bars."""
    name = "[/x] Ann [red] :smile:"
    with progress.captured(tmp_path):
        progress.table(name, [name, "n"], [[name, Text("1", "bold")]])
    progress.table(name, [name, "n"], [[name, Text("1", "bold")]])
    assert capfd.readouterr().out.count(name) == 3
    assert (tmp_path / "deskpro.log").read_text().count(name) == 3
    console = Console(width=60, force_terminal=True, record=True, markup=False)
    display = Display(console, live=True)
    display.add(name, None, "")
    console.print(*display.get_renderables())
    assert name in console.export_text()


def test_nothing_is_coloured_in_a_pipe(capfd: pytest.CaptureFixture[str]) -> None:
    progress.warn("one image is left out")
    progress.refuse("deskpro: no images")
    assert capfd.readouterr().err == "warning: one image is left out\ndeskpro: no images\n"


def test_other_ranks_print_nothing_but_their_refusal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(progress, "_SILENT", 0.1)
    (tmp_path / "config.yaml").touch()
    progress.begin()
    progress.log_to(tmp_path)
    work()
    progress.warn("one image is left out")
    progress.refuse("deskpro: no images")
    progress.begin()
    assert capfd.readouterr().err == "deskpro: no images\n"
    assert logged(tmp_path)[1:] == ["deskpro: no images"]


def logged(folder: Path) -> list[str]:
    """The lines of a log without their times."""
    lines = (folder / "deskpro.log").read_text().splitlines()
    assert all(STAMP.match(line) for line in lines)
    return [STAMP.sub("", line) for line in lines]


@pytest.mark.finished("eval")
def test_a_run_folder_has_a_log_of_its_commands(project: Project) -> None:
    fresh = project.ok("eval")
    refused = project("eval", "--set", "eval.flip=false")
    usage = project.command("eval", "--run", str(project.run), "--checkpoint", "x.pt")
    assert (refused.code, usage.code) == (2, 2)
    lines = logged(project.run)
    assert [line.split()[:3] for line in lines if line.startswith("$")] == [
        ["$", "deskpro", "eval"]
    ] * 2
    assert [fresh.err.strip(), refused.err.strip()] == [lines[1], lines[3]]
    assert refused.err.startswith("deskpro: ")


def test_a_refused_command_makes_no_log(project: Project) -> None:
    assert project("eval", "--set", "data.root=nowhere").code == 2
    assert not project.run.exists()


@pytest.mark.finished("eval")
def test_a_log_that_cannot_be_written_is_a_warning(project: Project) -> None:
    (project.run / "deskpro.log").mkdir()
    result = project.ok("eval")
    warning, _ = result.err.splitlines()
    assert warning.startswith(f"warning: {project.run / 'deskpro.log'}: Is a directory; ")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.finished("eval")
def test_a_full_disk_under_the_log_is_one_line(project: Project) -> None:
    log = project.run / "deskpro.log"
    log.symlink_to("/dev/full")
    result = project("eval")
    assert result.code == 2
    [line] = result.err.splitlines()
    assert line.startswith(f"deskpro: {log}: no space left on device")


def test_lines_wait_until_the_folder_exists(tmp_path: Path) -> None:
    complaints: list[str] = []
    file = LogFile(tmp_path / "run", complaints.append)
    file.write("first")
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    file.write("second\nthird")
    assert logged(tmp_path / "run") == ["first", "second", "third"]
    assert not complaints


def test_what_is_captured_goes_to_the_log_alone(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    events: list[progress.Event] = []

    def fail() -> None:
        with progress.captured(tmp_path):
            print("printed", end=" ")
            print("by a library")
            progress.warn("one image is left out")
            progress.table("scores", ["stream"], [["face"]])
            work()
            raise ValueError("no images")

    with progress.forwarded(events.append):
        with pytest.raises(ValueError):
            fail()
        progress.log("of the worker")
    progress.log("of the driver")
    assert capfd.readouterr() == ("", "of the driver\n")
    lines = logged(tmp_path)
    assert lines[:2] == ["printed by a library", "warning: one image is left out"]
    assert lines[-1] == "failed: no images"
    assert "scores" in lines
    assert progress.BarState("train-student", 4, 4, "steps") in events
    assert [e for e in events if isinstance(e, progress.Line)] == [progress.Line("of the worker")]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_driver_is_told_of_its_workers_lines_and_bars(
    workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    heard: list[tuple[int, progress.Event]] = []
    launch = Launch(workers=workers)

    def listen(item: int, event: progress.Event) -> None:
        heard.append((item, event))
        progress.log(f"heard of {item}")  # by the driver, which prints

    assert {item for item, _ in map_items(launch, make_telling, range(3), listen)} == {0, 1, 2}
    for item in range(3):
        events = [event for told, event in heard if told == item]
        assert events == [
            progress.Line(f"warning: image {item} is left out", progress.WARNING),
            progress.BarState("train-student", 0, 2, "steps"),
            progress.BarState("train-student", 2, 2, "steps"),
        ]
    assert capfd.readouterr().err.count("heard of") == 9
    for event in events:  # as without a listener
        progress.replay(0, event)
    assert capfd.readouterr().err == "warning: image 2 is left out\n"
