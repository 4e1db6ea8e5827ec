"""Ctrl-C finishes the step and saves; a second one stops at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Interrupt", "watch_interrupts"]


class Interrupt:
    """Whether the user (or the system) asked to stop."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: remember, and let the next signal act at once."""
        del frame
        self.asked = True
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@contextlib.contextmanager
def watch_interrupts() -> Iterator[Interrupt]:
    """Catch SIGINT and SIGTERM in the block; handlers are put back after it.

    Outside the main thread (a notebook's worker, say) signals cannot be caught and nothing changes.
    """
    interrupt = Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt
        return
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupt
    finally:
        for number, handler in before.items():
            # None stands for a handler that was not set from Python; nothing can put it back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
