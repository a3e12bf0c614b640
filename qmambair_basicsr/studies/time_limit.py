"""The wall-clock time that a command may take, all in all."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

__all__ = ["OutOfTime", "TimeLimit"]


AGAIN = 10.0  # seconds after which it is said again: what is raised while Python cleans up after an object is lost


class OutOfTime(BaseException):
    """The time is over; no error, so nothing that catches those catches it."""


class TimeLimit:
    """Counts from when it is made.

    Args:
        seconds: None for no end.
    """

    def __init__(self, seconds: float | None) -> None:
        self._end = float("inf") if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        """Seconds; infinite without a limit."""
        return self._end - time.monotonic()

    @contextlib.contextmanager
    def enforced(self) -> Iterator[None]:
        """Inside, whatever runs when the time is over ends with :class:`OutOfTime`, between two operations; main thread only."""
        if self._end == float("inf"):
            yield
            return

        def over(*_: object) -> None:
            raise OutOfTime

        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(self.left(), 1e-3), AGAIN)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
