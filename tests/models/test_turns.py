"""Threads that take turns: one at a time, those that have begun first, and an end of all of them whatever happens."""

from __future__ import annotations

import contextvars
import itertools
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from qmambair_basicsr.models import turns as module
from qmambair_basicsr.models.cuda_graph import RECORDERS
from qmambair_basicsr.models.turns import ALONE, MOST, Ended, SharedTurn, Turns, in_turns, streams

CPU = torch.device("cpu")
LONG = 60.0  # seconds that nothing here takes unless it hangs


def hang():
    """Python at work, which another thread has to end."""
    until = time.monotonic() + LONG
    while time.monotonic() < until:
        pass
    raise AssertionError("nobody has ended this thread")


def test_one_thread_at_a_time_has_the_turn_and_others_run_where_it_is_given():
    together, inside, most = threading.Barrier(3), [], []

    def work(turn):
        with turn.mine():
            for _ in range(3):
                inside.append(turn)
                most.append(len(inside))
                time.sleep(0.002)
                inside.remove(turn)
                turn.give()
                together.wait(LONG)  # all three are here at once
                turn.take()

    in_turns(3, work, CPU)
    assert most == [1] * 9 and not together.broken


def test_who_has_begun_goes_on_before_others_begin():
    order, replays, waits = [], threading.Event(), threading.Event()
    numbers = itertools.count()

    def work(turn):
        number = next(numbers)
        if number == 0:
            with turn.mine():
                turn.give()
                replays.set()
                assert waits.wait(LONG)
                turn.take()
                order.append("goes on")
            return
        assert replays.wait(LONG)
        if number == 1:
            with turn.mine():
                waits.set()
                while not turn.turns._returning:
                    time.sleep(0.001)
                time.sleep(3 * module.WAKE)  # by now the third one waits, too
                order.append("had it")
        else:
            assert waits.wait(LONG)
            with turn.mine():
                order.append("begins")

    in_turns(3, work, CPU)
    assert order == ["had it", "goes on", "begins"]


def test_the_turn_is_taken_without_waiting_where_it_is_free():
    turns = Turns()
    first, second = (SharedTurn(turns, 2, None, None) for _ in range(2))
    assert first.take_if_free() and first.take_if_free() and not second.take_if_free()
    first.give()
    first.give()  # once more is nothing
    assert second.take_if_free() and ALONE.take_if_free()


def test_a_signal_ends_all_threads():
    here, ended, before = threading.Barrier(3), [], sys.getswitchinterval()

    def work(turn):
        here.wait(LONG)
        try:
            with turn.mine():  # one has the turn, two wait for it
                signal.raise_signal(signal.SIGINT)  # reaches the main thread
                hang()
        except Ended:
            ended.append(turn)
            raise

    with pytest.raises(KeyboardInterrupt):
        in_turns(3, work, CPU)
    assert len(ended) == 3 and sys.getswitchinterval() == before


def test_an_error_ends_all_threads():
    here, ended, numbers = threading.Barrier(3), [], itertools.count()

    def work(turn):
        number = next(numbers)
        try:
            if number == 0:
                turn.take()
                here.wait(LONG)
                hang()
            here.wait(LONG)
            if number == 1:
                raise ArithmeticError("of one of them")
            while True:
                turn.give()  # as in front of each replay
        except Ended:
            ended.append(number)
            raise

    with pytest.raises(ArithmeticError, match="of one of them"):
        in_turns(3, work, CPU)
    assert sorted(ended) == [0, 2]


def test_threads_have_copies_of_context_variables():
    variable = contextvars.ContextVar("variable")
    variable.set("outside")
    found, here = [], threading.Barrier(2)

    def work(turn):
        found.append(variable.get())
        here.wait(LONG)
        variable.set("inside")
        here.wait(LONG)

    in_turns(2, work, CPU)
    assert found == ["outside"] * 2 and variable.get() == "outside"


# -- streams ---------------------------------------------------------------------------------------------------------


class Streams:
    """Hands out streams as torch does: those of a pool, over and over again."""

    def __init__(self):
        self.drawn = itertools.count(5)

    def __call__(self, device):
        return SimpleNamespace(cuda_stream=next(self.drawn) % 32, device=device)


@pytest.mark.parametrize("count", [1, 3, MOST])
def test_no_two_streams_are_the_same(count, monkeypatch):
    monkeypatch.setattr(torch.cuda, "Stream", Streams())
    pairs = streams(count, torch.device("cuda"))
    assert len(pairs) == count and len({stream.cuda_stream for pair in pairs for stream in pair}) == 2 * count
    assert streams(count, CPU) == [(None, None)] * count


def test_the_turn_is_given_when_the_stream_is_done():
    waited = []
    turn = SharedTurn(Turns(), 1, SimpleNamespace(synchronize=lambda: waited.append(turn.turns.owner)), None)
    turn.give()
    assert not waited  # in front of a replay nothing waits
    turn.take()
    turn.give()
    assert waited == [turn] and turn.turns.owner is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_recordings_of_several_threads_replay_side_by_side():
    """Products use cuBLAS's workspaces; the first thread replays while the others record."""
    device, results, recorded = torch.device("cuda"), {}, threading.Semaphore(0)
    names = itertools.count()

    def step(x, weight):
        for _ in range(50):
            x.copy_(torch.nn.functional.normalize(x @ weight, dim=0))

    def work(turn):
        number = next(names)
        with turn.mine():
            generator = torch.Generator(device).manual_seed(number)
            weight, start = (torch.randn(n, 384, device=device, generator=generator) for n in (384, 64))
            wanted, x = start.clone(), start.clone()
            for _ in range(40):
                step(wanted, weight)
            recorder = RECORDERS["cuda"](device, turn.recording)
            with recorder.warm_up():
                step(start.clone(), weight)
            recorder.record(lambda: step(x, weight))
            turn.give()
            recorded.release()
            for i in range(40):
                if number == 0 and i == 20:
                    assert all(recorded.acquire(timeout=LONG) for _ in range(3))
                recorder.replay()
            torch.cuda.current_stream().synchronize()
            turn.take()
            results[number] = torch.equal(x, wanted)

    in_turns(3, work, device)
    assert results == dict.fromkeys(range(3), True)
