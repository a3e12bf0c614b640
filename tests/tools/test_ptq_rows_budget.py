"""``tools.ptq_rows``: how many iterations a time has room for, and the limit of a command."""

from __future__ import annotations

import signal
import time
from collections import deque
from typing import ClassVar

import pytest
import torch

from qmambair_basicsr.studies import ptq_rows_quantize
from qmambair_basicsr.studies.time_limit import OutOfTime, TimeLimit


class Clock:
    """A method whose steps take what it says."""

    total, at_first, each, time = 100, 0.0, 1.0, 0.0

    def __init__(self):
        self.steps = []

    def step(self, iteration, images):
        self.steps.append(iteration)
        Clock.time += self.each + (self.at_first if len(self.steps) == 1 else 0)


class Blocks(Clock, ptq_rows_quantize.BlockReconstruction):
    units = ("a", "b", "c")


@pytest.mark.parametrize(
    ("kind", "at_first", "seconds", "most", "expected"),
    [
        (Clock, 0.0, 10.5, 100, 10),
        (Clock, 0.0, 10.5, 7, 7),
        (Clock, 4.0, 10.5, 100, 6),
        (Clock, 0.0, -1.0, 100, 2),
        (Blocks, 2.0, 10.5, 100, 4),
        (Blocks, 2.0, 1.0, 100, 3),
    ],
)
def test_iterations_that_fit(kind, at_first, seconds, most, expected, monkeypatch):
    monkeypatch.setattr(ptq_rows_quantize.time, "process_time", lambda: Clock.time)
    method = kind()
    method.at_first = at_first
    assert ptq_rows_quantize.iterations_that_fit(method, torch.zeros(1), seconds, most) == expected
    assert method.steps == []  # a copy took them


class Plan:
    """A method that trains by itself, whose last ten iterations are of another stage."""

    settings: ClassVar = {}
    grouped = 90
    total = 100

    def plan(self, total):
        self.total, self.grouped = total, total - 10


@pytest.mark.parametrize(
    ("done", "end", "times", "total"),
    [
        (20, 80.0, [0.0, 10.0, 20.0], 80),  # a second each
        (20, 500.0, [0.0, 10.0, 20.0], 100),  # no more than there were to be
        (20, 50.0, [0.0, 10.0, 10.5], 95),  # as the last ones went
        (90, 91.0, [0.0, 10.0, 90.0], 100),  # the last stage has begun
        (20, 0.0, [0.0, 10.0, 20.0], 21),  # the time is over
    ],
)
def test_the_plan_follows_the_time(done, end, times, total):
    method = Plan()
    ptq_rows_quantize.follow(method, done, 100, end, deque(times))
    assert method.total == total


def test_a_limit_ends_what_is_running():
    limit = TimeLimit(0.05)
    with pytest.raises(OutOfTime), limit.enforced():
        while True:
            time.sleep(0.01)
    assert limit.left() < 0 and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with TimeLimit(None).enforced():
        assert TimeLimit(None).left() == float("inf")
