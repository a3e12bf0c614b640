"""Work that several processes share: each takes what no other is at."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

__all__ = ["claimed"]


@contextlib.contextmanager
def claimed(file: Path, wait: bool = False) -> Iterator[bool]:
    """Inside, no other process has the claim on a file; it ends with the process, however that ends.

    Args:
        file: is made, and stays; its folder exists.
        wait: until another process gives its claim back.

    Yields:
        False where another process has it.
    """
    with open(file, "w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
