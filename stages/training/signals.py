"""Leave training well when asked to: Ctrl-C, or the SIGTERM of a scheduler."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether the process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.signal = number


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """While the block runs Ctrl-C and SIGTERM are noted instead of obeyed.

    To be entered before the libraries that training loads at its first step, TensorBoard's and
    torch's own: some of them swallow an interrupt that comes while they are imported.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread hears signals
        return
    caught = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, request) for number in caught}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
