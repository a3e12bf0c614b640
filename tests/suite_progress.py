"""A line every half minute: time gone by, tests done, and what is running, so that a slow suite is seen to move."""

from __future__ import annotations

import os
import threading
import time

import pytest

INTERVAL = 30.0  # seconds between two lines
LISTED = 4  # running tests named in a line
WORKER_BYTES = 2 << 30  # memory that a worker needs, with room to spare


class Progress:
    """Counts tests as they start and end, and writes a line now and then.

    Args:
        write: writes one line.
        clock: seconds, monotonic.
    """

    def __init__(self, write, clock=time.monotonic) -> None:
        self.write, self.clock = write, clock
        self.started = clock()
        self.total = self.done = 0
        self.running: dict[str, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def line(self) -> str:
        """What is written: ``4:30  612 of 6545 tests; running: tests/a.py::test_b (12 s)``."""
        now = self.clock()
        minutes, seconds = divmod(int(now - self.started), 60)
        running = sorted(self.running.items(), key=lambda item: item[1])[:LISTED]
        names = ", ".join(f"{name} ({now - since:.0f} s)" for name, since in running) or "nothing"
        return f"{minutes}:{seconds:02}  {self.done} of {self.total or '?'} tests; running: {names}"

    def _beat(self) -> None:
        while not self._end.wait(INTERVAL):
            self.write(self.line())

    def pytest_sessionstart(self) -> None:
        """Begin."""
        self._thread.start()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """How many tests there are; workers of pytest-xdist tell it below."""
        self.total = self.total or len(session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node, ids) -> None:
        """As above, from a worker."""
        self.total = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins, here or in a worker."""
        self.running[nodeid] = self.clock()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test is through."""
        self.running.pop(nodeid, None)
        self.done += 1

    def pytest_sessionfinish(self) -> None:
        """Stop."""
        self._end.set()


def usable_cores() -> int:
    """Cores that this process may use, as far as their workers fit into memory."""
    from qmambair_basicsr.threads import usable_processors  # not before conftest has set what the package reads

    cores = usable_processors()
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return cores
    return max(1, min(cores, memory // WORKER_BYTES))


def install(config: pytest.Config) -> None:
    """Write progress to the terminal of the process that reports: not that of a worker."""
    reporter = config.pluginmanager.getplugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    os.environ.setdefault("PYTHONHASHSEED", "0")  # of the workers, which have to collect the same tests in one order

    def write(line: str) -> None:
        reporter.ensure_newline()
        reporter.write_line(line)
        reporter.flush()

    config.pluginmanager.register(Progress(write), "progress")
