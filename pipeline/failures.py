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

    def stop(number: int, frame: object) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}; {_RESUME}", 128 + number)

    before = signal.signal(signal.SIGTERM, stop)
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
        _fail(f"interrupted; {_RESUME}", 130)
    except OSError as error:
        if error.errno in _FULL:
            _fail(f"{error.filename or 'the disk'}: no space left; make room, then run it again")
        if error.errno in _KNOWN:
            _fail(f"{error.filename}: {error.strerror}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(message: str, code: int = 2) -> None:
    if distributed.is_first_failure(message):  # what all ranks meet is printed once
        click.echo(f"deskpro: {message}", err=True)
    sys.exit(code)
