"""Independent jobs in processes of their own, as many at a time as the machine has cores for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait

__all__ = ["NOT_STARTED", "Job", "Outcome", "seconds_left", "side_by_side"]

NOT_STARTED = None
"""Exit code of a job whose predecessor failed."""


@dataclass(frozen=True)
class Job:
    """One piece of work.

    Attributes:
        name: unique among the jobs.
        work: what to do; returns whether that went well. With several processes it must be picklable.
        after: name of the job whose result it needs; one that is not among the jobs counts as done.
        cost: how long it takes in comparison with the others.
    """

    name: str
    work: Callable[[], bool]
    after: str | None = None
    cost: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a job ended.

    Attributes:
        job: which.
        code: 0 when it went well, 1 when not, minus the number of the signal that ended its process, ``NOT_STARTED``.
        seconds: how long it took.
    """

    job: Job
    code: int | None
    seconds: float = 0.0


def side_by_side(jobs: Sequence[Job], processes: int) -> Iterator[Outcome]:
    """Do all jobs; each is reported as it ends, and one that fails stops only those that need it.

    Those that the most work waits for begin first. Each process computes on one thread, so that results do not depend on
    how many there are; with one process everything happens in the caller's, on the caller's threads.

    Args:
        jobs: what to do.
        processes: at the same time.
    """
    waiting = {job.name: job for job in sorted(jobs, key=lambda job: -_with_followers(job, jobs))}
    running: dict[int, tuple[multiprocessing.Process, Job, float]] = {}
    failed: set[str] = set()
    context = _context() if processes > 1 else None
    try:
        while waiting or running:
            while doomed := [job for job in waiting.values() if job.after in failed]:
                for job in doomed:
                    failed.add(waiting.pop(job.name).name)
                    yield Outcome(job, NOT_STARTED)
            busy = {job.name for _, job, _ in running.values()}
            ready = [job for job in waiting.values() if job.after not in busy and job.after not in waiting]
            if context is None:
                ended = [_here(waiting.pop(job.name)) for job in ready[:1]]
            else:
                for job in ready[: processes - len(running)]:
                    process = _start(context, waiting.pop(job.name))
                    running[process.sentinel] = process, job, time.monotonic()
                ended = [_outcome(*running.pop(sentinel)) for sentinel in wait(list(running))] if running else []
            for outcome in ended:
                if outcome.code != 0:
                    failed.add(outcome.job.name)
                yield outcome
    finally:  # interrupted, or the caller has had enough
        for process, _, _ in running.values():
            process.terminate()
            process.join()


def seconds_left(jobs: Sequence[Job], outcomes: Sequence[Outcome], processes: int) -> float | None:
    """How long the jobs that have not ended will take; None before the first has ended."""
    ended = {outcome.job.name for outcome in outcomes}
    paid = sum(outcome.job.cost for outcome in outcomes if outcome.code is not NOT_STARTED)
    if not paid:
        return None
    rate = sum(outcome.seconds for outcome in outcomes) / paid
    return rate * sum(job.cost for job in jobs if job.name not in ended) / processes


def _with_followers(job: Job, jobs: Sequence[Job]) -> float:
    return job.cost + sum(_with_followers(other, jobs) for other in jobs if other.after == job.name)


def _here(job: Job) -> Outcome:
    start = time.monotonic()
    return Outcome(job, 0 if job.work() else 1, time.monotonic() - start)


def _context() -> multiprocessing.context.BaseContext:
    """Processes that are copies of one that has loaded this package, where the system can make them, which saves seconds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # torch's optimizers import the last one, which takes as long as the others together
    context.set_forkserver_preload([__package__.rpartition(".")[0], __name__, "torch._dynamo"])
    return context


def _start(context: multiprocessing.context.BaseContext, job: Job) -> multiprocessing.Process:
    process = context.Process(target=_child, args=(job.work,), name=job.name, daemon=False)
    with _one_thread():
        process.start()
    return process


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Inside, new processes are told to compute on one thread, which some libraries read once, as they are loaded."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _child(work: Callable[[], bool]) -> None:
    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    raise SystemExit(0 if work() else 1)


def _end_with_parent() -> None:
    """No process goes on unseen behind a command that was killed."""
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _outcome(process: multiprocessing.Process, job: Job, start: float) -> Outcome:
    process.join()
    return Outcome(job, process.exitcode, time.monotonic() - start)
