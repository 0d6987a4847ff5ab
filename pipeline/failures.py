"""A failure as the user sees it: one message, the next command and an exit code, no traceback."""

from __future__ import annotations

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from deskpro.cache.errors import CacheError
from deskpro.pipeline import messages
from deskpro.stages.base import distributed
from deskpro.stages.base.errors import InputError, Stopped

_RESUME = "finished work is kept, run the same command to resume"
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KNOWN = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""Errors of the file system that its own words explain."""


@contextmanager
def report_errors() -> Iterator[None]:
    """Exit with one message where the block fails in a way that the user can fix."""

    received: list[Stopped] = []

    def stop(number: int, frame: object) -> None:
        received.append(
            Stopped(f"stopped by {signal.Signals(number).name}; {_RESUME}", 128 + number)
        )
        raise KeyboardInterrupt if number == signal.SIGINT else received[0]

    # Who ignores Ctrl-C, as a job in the background, goes on to.
    numbers = [n for n in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InputError, CacheError) as error:
        advice = f". Type: {messages.command(error.command)}" if error.command else ""
        _fail(f"{error}{advice}")
    except Stopped as stopped:
        _fail(str(stopped), stopped.code)
    except (click.Abort, KeyboardInterrupt):
        _fail(f"stopped by SIGINT; {_RESUME}", 130)
    except Exception as error:
        if received:  # a library that was being loaded has made another error of it
            _fail(str(received[0]), received[0].code)
        if not isinstance(error, OSError):
            raise
        if error.errno in _FULL:
            _fail(f"{error.filename or 'the disk'}: no space left; make room, then run it again")
        if error.errno in _KNOWN:
            _fail(f"{error.filename}: {error.strerror}")
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str, code: int = 2) -> None:
    if distributed.is_first_failure(message):  # what all ranks meet is printed once
        click.echo(f"deskpro: {message}", err=True)
    sys.exit(code)
