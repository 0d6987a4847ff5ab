"""Workers that tell their driver something; they load no torch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import NamedTuple

from deskpro.stages.base import progress
from deskpro.stages.base.errors import InputError


def make_telling() -> Callable[[int], int]:
    """A worker that logs a warning and shows a bar."""

    def tell(item: int) -> int:
        progress.warn(f"image {item} is left out")
        with progress.bar("train-student", 2, "steps") as bar:
            bar.advance(2)
        return item

    return tell


class Talking(NamedTuple):
    """Makes workers that warn and print."""

    fault: str = ""
    """none: there is no worker; refused: of every item; killed, broken: of item 3."""

    def __call__(self) -> Callable[[int], int]:
        if self.fault == "none":
            raise InputError("no GPU")

        def talk(item: int) -> int:
            progress.warn(f"image {item} is left out")
            print(f"a library prints {item}", end="")
            if self.fault == "refused":
                raise InputError("no GPU")
            if item == 3 and self.fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if item == 3 and self.fault == "broken":
                raise ZeroDivisionError("of image 3")
            return item

        return talk
