"""The line that shows how far the suite is, and how many workers a machine gets."""

from __future__ import annotations

import os

import pytest
import suite_progress

from qmambair_basicsr import threads


def test_the_line_names_what_runs():
    now = [100.0]
    progress = suite_progress.Progress(lambda line: None, lambda: now[0])
    assert progress.line() == "0:00  0 of ? tests; running: nothing"
    progress.pytest_xdist_node_collection_finished(None, ["a", "b", "c"])
    for name in ("a", "b", "c"):
        progress.pytest_runtest_logstart(name)
        now[0] += 50
    progress.pytest_runtest_logfinish("a")
    assert progress.line() == "2:30  1 of 3 tests; running: b (100 s), c (50 s)"


def test_lines_come_while_a_test_runs_and_end_with_the_session(monkeypatch):
    monkeypatch.setattr(suite_progress, "INTERVAL", 0.01)
    lines = []
    progress = suite_progress.Progress(lines.append)
    progress.pytest_sessionstart()
    progress.pytest_runtest_logstart("slow")
    while not any("slow" in line for line in lines):  # ended by the time limit of every test where none comes
        progress._end.wait(0.01)
    progress.pytest_sessionfinish()
    progress._thread.join(60)
    assert not progress._thread.is_alive()


@pytest.mark.parametrize(("cores", "gigabytes", "workers"), [(2, 24, 2), (64, 16, 8), (4, 1, 1)])
def test_workers_fit_into_memory(monkeypatch, cores, gigabytes, workers):
    monkeypatch.setattr(threads, "usable_processors", lambda: cores)
    pages = {"SC_PHYS_PAGES": gigabytes << 18, "SC_PAGE_SIZE": 4096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    assert suite_progress.usable_cores() == workers
