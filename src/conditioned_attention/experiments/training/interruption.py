"""Ctrl-C and SIGTERM are noted, and obeyed only when there is a good moment to stop."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Stop:
    """Whether a stop was requested, and by which signal."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Handles a signal by noting it; a second Ctrl-C is obeyed at once."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def obey(self) -> NoReturn:
        """Raises what the signal would have caused: KeyboardInterrupt, or SystemExit with the shell's code for it."""
        if self.signal in (None, signal.SIGINT):
            raise KeyboardInterrupt
        sys.exit(128 + self.signal)


@contextmanager
def signals_noted(stop: Stop) -> Iterator[None]:
    """While this context lasts, the first SIGINT or SIGTERM is noted in ``stop``.

    Outside the main thread Python cannot handle signals, and nothing is ever noted.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
