"""Threads that take turns in one process, while what they have recorded runs side by side on one GPU.

Processes that share a GPU are served one after the other; streams of one process overlap. But Python programs of this kind
touch what belongs to the process: global random numbers, hooks, caches, a recording that is being made. So a thread has
the turn for all it does, except while it replays recordings: it gives the turn away before, and takes it back after.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch

__all__ = ["ALONE", "MOST", "Ended", "Turn", "in_turns"]

MOST = 16  # threads: each needs two streams of its own, and torch hands out 32 before it begins again
WAKE = 0.05  # seconds between two looks at whether all shall end; signals, too, are seen no later
AGAIN = 10.0  # seconds after which the end is said again: what is raised while Python cleans up after an object is lost
SWITCH = 5e-4  # seconds that Python gives a thread; its 5 ms before each launch would slow down those that replay


class Ended(BaseException):
    """This thread shall end, since another one failed or a signal came; no error, so nothing that catches those catches it."""


class Turn:
    """Of a thread that is alone: it always has the turn.

    Attributes:
        count: threads that take turns.
        recording: stream that its recordings are made on; None for any.
    """

    count = 1
    recording: torch.cuda.Stream | None = None

    def take(self) -> None:
        """Wait for the turn, in front of threads that have not begun their work; nothing where this thread has it.

        Raises:
            Ended: all shall end.
        """

    def take_if_free(self) -> bool:
        """Take the turn unless that means to wait; whether this thread has it."""
        return True

    def give(self) -> None:
        """Let others have the turn, once the device has done what was launched; nothing where this thread does not have it.

        Raises:
            Ended: all shall end.
        """


ALONE = Turn()


class SharedTurn(Turn):
    """Of one among several threads.

    Args:
        turns: of all of them.
        count: of them.
        stream: what this thread works on; None without a GPU.
        recording: see :class:`Turn`.
    """

    def __init__(
        self, turns: Turns, count: int, stream: torch.cuda.Stream | None, recording: torch.cuda.Stream | None
    ) -> None:
        self.turns, self.count, self.stream, self.recording = turns, count, stream, recording
        self.thread: int | None = None

    def take(self) -> None:
        self.turns.take(self, begins=False)

    def take_if_free(self) -> bool:
        return self.turns.take_if_free(self)

    def give(self) -> None:
        if self.turns.ended:
            raise Ended
        if self.turns.owner is self:
            if self.stream is not None:
                self.stream.synchronize()  # tensors that the process keeps are complete before another stream reads them
            self.turns.release(self)

    @contextlib.contextmanager
    def mine(self) -> Iterator[None]:
        """Inside, this thread has the turn, behind others that wait to go on with what they have begun."""
        self.turns.take(self, begins=True)
        try:
            yield
        finally:
            self.give()

    @contextlib.contextmanager
    def on_stream(self) -> Iterator[None]:
        """Inside, this thread works on its stream: device and stream are each thread's own setting."""
        self.thread = threading.get_ident()
        if self.stream is None:
            yield
            return
        with torch.cuda.device(self.stream.device), torch.cuda.stream(self.stream):
            yield


class Turns:
    """Whose turn it is.

    Attributes:
        owner: who has it.
        ended: nobody gets it any more.
        said: when that was said last, of ``time.monotonic``.
    """

    def __init__(self) -> None:
        self.owner: SharedTurn | None = None
        self.ended, self.said = False, 0.0
        self._lock = threading.Lock()
        self._returning: set[SharedTurn] = set()  # those that wait to go on with what they have begun

    def take(self, turn: SharedTurn, begins: bool) -> None:
        """Wait for the turn.

        Args:
            turn: who asks.
            begins: whether all that wait to go on with something come first.

        Raises:
            Ended: all shall end.
        """
        if self.owner is turn and not self.ended:
            return
        if not begins:
            self._returning.add(turn)
        try:
            while not self.ended:
                if begins and self._returning:
                    time.sleep(WAKE)
                elif self._lock.acquire(timeout=WAKE):
                    if not (self.ended or (begins and self._returning)):
                        self.owner = turn
                        return
                    self._lock.release()
        finally:
            self._returning.discard(turn)
        raise Ended

    def take_if_free(self, turn: SharedTurn) -> bool:
        """Take the turn where nobody has it or waits to go on; whether ``turn`` has it."""
        if self.owner is turn:
            return True
        if self.ended or self._returning or not self._lock.acquire(blocking=False):
            return False
        self.owner = turn
        return True

    def release(self, turn: SharedTurn) -> None:
        """Nothing where ``turn`` does not have it."""
        if self.owner is turn:
            self.owner = None
            self._lock.release()

    def end(self) -> None:
        """Nobody gets the turn any more, and who has it is stopped between two operations; the others stop by themselves."""
        self.ended, self.said = True, time.monotonic()
        owner = self.owner
        if owner is not None and owner.thread != threading.get_ident():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(owner.thread), ctypes.py_object(Ended))


def in_turns(count: int, work: Callable[[SharedTurn], None], device: torch.device) -> None:
    """Call ``work`` in several threads, each with streams of its own on a GPU; returns when all have returned.

    Each thread has a copy of the caller's context variables. A thread enters ``with turn.mine()`` for a piece of work.

    Args:
        count: of threads, at most ``MOST``.
        work: called with the thread's turn, which it does not have yet.
        device: what is computed on.

    Raises:
        BaseException: what ``work`` raised, or what a signal raised here meanwhile; all threads have been ended.
    """
    turns, failures = Turns(), []
    shared = [SharedTurn(turns, count, *pair) for pair in streams(count, device)]

    def run(turn: SharedTurn) -> None:
        try:
            with turn.on_stream():
                work(turn)
        except Ended:
            pass
        except BaseException as error:
            failures.append(error)
            turns.end()
        finally:
            turns.release(turn)

    waiting = [threading.Thread(target=contextvars.copy_context().run, args=(run, turn)) for turn in shared]
    before = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH)
    try:
        while waiting:
            try:
                for thread in waiting:
                    if thread.ident is None and not turns.ended:
                        thread.start()
                time.sleep(WAKE)  # no join, which takes a thread for ended where a signal ends the join (Python 3.11)
                there = set(threading.enumerate())
                waiting = [thread for thread in waiting if thread in there]
                if turns.ended and time.monotonic() > turns.said + AGAIN:
                    turns.end()
            except BaseException as error:  # of a signal, which reaches the main thread alone
                failures.append(error)
                turns.end()
    finally:
        sys.setswitchinterval(before)
    if failures:
        raise failures[0]


def streams(count: int, device: torch.device) -> list[tuple[torch.cuda.Stream | None, torch.cuda.Stream | None]]:
    """To work and to record on, for each thread; all different, since cuBLAS's workspaces belong to streams.

    Args:
        count: of threads, at most ``MOST``.
        device: without streams unless it is a GPU.
    """
    if device.type != "cuda":
        return [(None, None)] * count
    found: dict[int, torch.cuda.Stream] = {}
    while len(found) < 2 * count:
        stream = torch.cuda.Stream(device)
        found[stream.cuda_stream] = stream
    drawn = list(found.values())
    # those that replays run on are neighbours: a GPU serves streams through few queues
    return list(zip(drawn[:count], drawn[count:], strict=True))
