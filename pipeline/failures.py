"""A failure as the user sees it: one message, the next command and an exit code, no traceback."""

from __future__ import annotations

import errno
import io
import os
import resource
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from deskpro.cache.errors import CacheError
from deskpro.cache.files import system_error
from deskpro.pipeline import messages
from deskpro.stages.base import distributed, progress
from deskpro.stages.base.errors import InputError, Stopped
from deskpro.stages.base.run_folder import RunFolder, read_json

_RESUME = "finished work is kept, run the same command to resume"
_AGAIN = "and type the same command: finished work is kept"
_ADVICE = {
    errno.EMFILE: f"Raise the limit of this shell (ulimit -n 4096) {_AGAIN}",
    errno.ENFILE: f"Wait until other processes have closed theirs {_AGAIN}",
    errno.ENOSPC: f"Free some space {_AGAIN}",
    errno.EDQUOT: f"Free some space of your quota {_AGAIN}",
    errno.EFBIG: f"Raise the limit of this shell (ulimit -f unlimited) or free some space {_AGAIN}",
    errno.EROFS: f"Make it writable, or choose a folder on another disk, {_AGAIN}",
}
"""Errors of the machine, not of the program: what to do, whatever a library makes of them."""
_SHARED_MEMORY = (
    "/dev/shm: too little shared memory for the processes that load images. Enlarge it (docker run "
    "--shm-size=8g), or type the same command with --set data.workers=0"
)
_KNOWN = {
    errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
    errno.ELOOP, errno.EIO,
}  # fmt: skip
"""Errors of the file system that its own words explain."""


@contextmanager
def report_errors() -> Iterator[None]:
    """Exit with one message where the block fails in a way that the user can fix."""
    received: list[Stopped] = []

    def stop(number: int, frame: object) -> None:
        text = f"stopped by {signal.Signals(number).name}; {_RESUME}"
        received.append(Stopped(text, 128 + number))
        raise KeyboardInterrupt if number == signal.SIGINT else received[0]

    # Who ignores Ctrl-C, as a job in the background, goes on to.
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = (_quiet(hook) for hook in hooks)
    progress.begin()
    try:
        yield
    except click.ClickException as error:
        _show(error)
        sys.exit(error.exit_code)
    except Stopped as stopped:
        _fail(str(stopped), stopped.code)
    except (click.Abort, KeyboardInterrupt):
        _fail(f"stopped by SIGINT; {_RESUME}", 130)
    except Exception as error:
        if received:  # who was reading a file, or loading a library, has made another error of it
            _fail(str(received[0]), received[0].code)
        if (problem := _explain(error)) is None:
            raise
        _fail(problem)
    finally:
        threading.excepthook, sys.unraisablehook = hooks
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: Exception) -> str | None:
    """What is wrong, or what the machine lacks; None where the error is one of the program."""
    if isinstance(error, InputError | CacheError):
        if os.strerror(errno.EMFILE) in str(error):  # not the fault of the file that it names
            return f"{error}. {_ADVICE[errno.EMFILE]}"
        end = "" if str(error).endswith("?") else "."
        return f"{error}{end} Type: {_advised(error)}" if error.command else str(error)
    text = _texts(error)
    cause = system_error(error)
    name = f"{cause.filename}: " if cause is not None and cause.filename is not None else ""
    for number, advice in _ADVICE.items():
        problem = os.strerror(number)
        if problem not in text or ("shared memory" in text and number == errno.ENOSPC):
            continue
        if number == errno.EMFILE:
            problem += f", the limit is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
        return f"{name}{problem[0].lower()}{problem[1:]}. {advice}"
    if "shared memory" in text or "Bus error" in text:
        return _SHARED_MEMORY
    if isinstance(error, OSError) and error.errno in _KNOWN:
        return f"{error.filename}: {error.strerror}"
    return None


def _texts(error: BaseException | None) -> str:
    """The words of an error and of those that it comes from; libraries keep no more of some."""
    found = []
    while error is not None:
        found.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def _advised(error: InputError | CacheError) -> str:
    """The command that an error advises: of a cache that was unpacked, to unpack it again."""
    named = dict(zip(messages.OPTIONS, messages.OPTIONS[1:], strict=False))
    run = named.get("--from") or named.get("--run")
    if isinstance(error, CacheError) and run is not None:
        with suppress(InputError):
            folder = RunFolder(RunFolder.open(Path(run)).upstream)
            record = read_json(folder.unpacked)
            if record is not None and not folder.manifest("teacher-cache").exists():
                words = ["cache", "unpack", str(record.get("file")), "--run", str(folder.path)]
                return shlex.join(["deskpro", *words, "--force"])
    return messages.command(error.command)


def _quiet(hook: Callable[[Any], object]) -> Callable[[Any], None]:
    """A hook for errors in threads and finalisers that prints none of the machine's.

    The thread that waits for the work meets the same error, or needs nothing of it.
    """

    def show(found: Any) -> None:
        cause = system_error(found.exc_value)
        if cause is None or cause.errno not in _ADVICE:
            hook(found)

    return show


def _show(error: click.ClickException) -> None:
    """As click shows it, coloured as other refusals."""
    text = io.StringIO()
    error.show(text)
    usage, mark, problem = text.getvalue().partition("Error: ")
    click.echo(usage, nl=False, err=True)
    progress.refuse(f"{mark}{problem}".rstrip())


def _fail(message: str, code: int = 2) -> None:
    if distributed.is_first_failure(message):  # what all ranks meet is printed once
        progress.refuse(f"deskpro: {message}")
    sys.exit(code)
