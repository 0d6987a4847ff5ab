"""What a failure looks like to the user: one message and an exit code, never a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from deskpro.stages.base.distributed import is_first_failure

_SAID = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.ELOOP,
}  # fmt: skip
"""Errors of the file system that its own words tell."""


@contextmanager
def report_errors() -> Iterator[None]:
    """End the process with one message and a code where the block fails in a way to be mended."""
    from deskpro.cache.errors import CacheError
    from deskpro.stages.base.errors import InputError, Stopped

    try:
        yield
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (InputError, CacheError) as error:
        _fail(str(error))
    except Stopped as stopped:
        _fail(str(stopped), stopped.code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted; what was complete is kept, the same command goes on from there", 130)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            _fail(f"{error.filename or 'the disk'}: no space left; make room, then run it again")
        if error.errno in _SAID:
            _fail(f"{error.filename}: {error.strerror}")
        raise


def _fail(message: str, code: int = 2) -> None:
    if is_first_failure(message):
        click.echo(f"deskpro: {message}", err=True)
    sys.exit(code)
