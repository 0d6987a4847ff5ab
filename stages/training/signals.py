"""Stop training after a checkpoint on Ctrl-C, or on the SIGTERM of a scheduler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """The signal by which the process was asked to stop, None if it was not."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # the second Ctrl-C stops at once
        self.signal = number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While the block runs, Ctrl-C and SIGTERM are noted instead of obeyed.

    To be entered before the libraries that training loads at its first step, TensorBoard's and
    torch's own: some of them swallow an interrupt that comes while they are imported.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread only
        return
    before = {n: signal.signal(n, request) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
