"""side_by_side: order, failures, processes that are killed."""

from __future__ import annotations

import functools
import os
import signal
import time

import pytest

from qmambair_basicsr.studies.side_by_side import NOT_STARTED, Job, Outcome, seconds_left, side_by_side


def note(folder, name, *, ok=True, needs=None, die=False):
    """A job: leaves a file with the number of its threads; says whether what it needs was there."""
    import torch

    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    (folder / name).write_text(f"{os.getpid()} {torch.get_num_threads()}")
    return ok and (needs is None or (folder / needs).is_file())


def job(folder, name, after=None, cost=1.0, **options):
    return Job(name, functools.partial(note, folder, name, needs=after, **options), after, cost)


@pytest.mark.parametrize("processes", [1, 2])
def test_one_failure_stops_only_what_needs_it(tmp_path, processes):
    jobs = [
        job(tmp_path, "long follower", after="long", cost=5.0),
        job(tmp_path, "follower", after="bad"),
        job(tmp_path, "follower's follower", after="follower"),
        job(tmp_path, "bad", ok=False, cost=0.5),
        job(tmp_path, "short"),
        job(tmp_path, "long", cost=3.0),
    ]
    codes = {outcome.job.name: outcome.code for outcome in side_by_side(jobs, processes)}
    assert codes == {"long": 0, "long follower": 0, "bad": 1, "follower": NOT_STARTED,
                     "follower's follower": NOT_STARTED, "short": 0}  # fmt: skip
    assert {file.name for file in tmp_path.iterdir()} == {"long", "long follower", "bad", "short"}
    own = {file.name: file.read_text().split() for file in tmp_path.iterdir()}
    assert (len({process for process, _ in own.values()}) == 4) == (processes > 1)
    if processes > 1:
        assert str(os.getpid()) not in {process for process, _ in own.values()}
        assert {threads for _, threads in own.values()} == {"1"}


def test_what_most_waits_for_begins_first(tmp_path):
    jobs = [job(tmp_path, "b", cost=4.0), job(tmp_path, "a", cost=1.0), job(tmp_path, "after a", after="a", cost=9.0)]
    assert [outcome.job.name for outcome in side_by_side(jobs, 1)] == ["a", "after a", "b"]


def test_a_killed_process_is_told_by_its_signal(tmp_path):
    jobs = [job(tmp_path, "killed", die=True), job(tmp_path, "after", after="killed"), job(tmp_path, "other")]
    codes = {outcome.job.name: outcome.code for outcome in side_by_side(jobs, 2)}
    assert codes == {"killed": -signal.SIGKILL, "after": NOT_STARTED, "other": 0}


def test_a_predecessor_that_is_not_among_the_jobs_is_done(tmp_path):
    (tmp_path / "earlier").touch()
    assert [outcome.code for outcome in side_by_side([job(tmp_path, "a", after="earlier")], 1)] == [0]


def test_time_left(tmp_path):
    jobs = [job(tmp_path, name, cost=cost) for name, cost in (("a", 2.0), ("b", 1.0), ("c", 3.0))]
    assert seconds_left(jobs, [], 2) is None
    assert seconds_left(jobs, [Outcome(jobs[0], 0, 10.0)], 2) == pytest.approx(5.0 * (1.0 + 3.0) / 2)
