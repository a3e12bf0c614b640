"""What tests share between the workers of pytest-xdist: files that take long to make are made once."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


def folder_of_all_workers(factory: pytest.TempPathFactory) -> Path:
    """The session's temporary folder; with pytest-xdist the one above each worker's own."""
    folder = factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@contextlib.contextmanager
def one_worker_at_a_time(lock: Path) -> Iterator[None]:
    """Inside, no other worker holds the lock file; a worker that dies lets go of it."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
