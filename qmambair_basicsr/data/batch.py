"""Run one function over many files: in parallel, with a progress bar, resumable, with a report of failures."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..files import write_bytes
from .image_files import read_image
from .ledger import UNKNOWN, Ledger, Task, sources_of

__all__ = ["Report", "Task", "run_tasks"]

_SHOWN = 5  # files made again that are named
_SAVED_EVERY = 500  # tasks, so that an interrupted run has little to compare


@dataclass
class Report:
    """Outcome of a run.

    Attributes:
        written: sources whose outputs were made.
        present: sources whose outputs were there and fresh.
        failed: ``(source, error)`` of those left out.
        redone: ``(output, reason)`` of those among ``written`` whose outputs were there, but stale.
    """

    written: list[Path] = field(default_factory=list)
    present: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    redone: list[tuple[Path, str]] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.written)} written, {len(self.present)} already there, {len(self.failed)} left out"
        text += "".join(f"\n  made again: {path}: {reason}" for path, reason in self.redone[:_SHOWN])
        text += f"\n  and {len(self.redone) - _SHOWN} more made again" if len(self.redone) > _SHOWN else ""
        return text + "".join(f"\n  left out: {error}" for _, error in self.failed)


@dataclass(frozen=True)
class _Done:
    """Outcome of an attempt: an error; or the sources that the outputs were made from, and whether they are new."""

    error: Exception | None = None
    sources: tuple = ()
    new: bool = True


def _attempt(job: tuple[Task, bool], function: Callable[[Task], None]) -> _Done:
    task, compare = job
    try:
        sources = _sources(task, function)
        new = _compared(task, function) if compare else True
        if not compare:
            function(task)
    except (ValueError, OSError) as err:  # a bad input; anything else is a bug and stops the run
        return _Done(err)
    return _Done(None, sources, new)


def _sources(task: Task, function: Callable[[Task], None]) -> tuple:
    """Sources that a task's outputs will be made from."""
    try:
        return tuple(sources_of(task))
    except OSError:
        function(task)  # says in its own words what is wrong
        raise


def _compared(task: Task, function: Callable[[Task], None]) -> bool:
    """Make a task's outputs elsewhere and put those in place that differ from what is there; whether any did."""
    with tempfile.TemporaryDirectory(prefix="prepare_data.") as folder:
        made = tuple(Path(folder, str(index), path.name) for index, path in enumerate(task.outputs))
        function(replace(task, outputs=made))
        other = [(new, old) for new, old in zip(made, task.outputs, strict=True) if not _equal(new, old)]
        for new, old in other:
            write_bytes(old, new.read_bytes())
    return bool(other)


def _equal(new: Path, old: Path) -> bool:
    """Whether two files hold the same samples, whatever their compression."""
    if new.read_bytes() == old.read_bytes():
        return True
    try:
        samples = [np.load(path) if path.suffix == ".npy" else read_image(path) for path in (new, old)]
    except (ValueError, OSError):
        return False
    return np.array_equal(*samples)


def _limit_threads() -> None:
    import cv2

    cv2.setNumThreads(1)  # one process per core already


def _context(function: Callable) -> multiprocessing.context.BaseContext:
    """Start processes from a clean server: a plain fork would copy locks of threads that torch or OpenCV run."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])  # imported once, not by every process
    return context


def run_tasks(
    tasks: Sequence[Task],
    function: Callable[[Task], None],
    *,
    workers: int = 1,
    on_error: str = "stop",
    overwrite: bool = False,
    title: str = "",
    ledger: Ledger | None = None,
) -> Report:
    """Run ``function`` over ``tasks``.

    The result does not depend on ``workers``: every task reads its own source and writes its own outputs.

    Args:
        tasks: what to do.
        function: a module-level function of one task; writes the task's outputs atomically.
        workers: processes; 1 works in this process.
        on_error: ``stop`` raises the first task's error, ``skip`` goes on and reports it.
        overwrite: also redo tasks whose outputs exist.
        title: text before the progress bar.
        ledger: what the outputs that are there were made from. Stale ones are made again, and those without a record
            compared; without a ledger every output that is there is fresh.

    Returns:
        The report.

    Raises:
        ValueError: unknown ``on_error``, ``workers`` below 1, or a task's error with ``on_error="stop"``.
        OSError: likewise.
    """
    if on_error not in ("stop", "skip"):
        raise ValueError(f"on_error must be 'stop' or 'skip', got {on_error!r}")
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    report = Report()
    pending: list[tuple[Task, bool]] = []
    reasons: dict[tuple[Path, ...], str] = {}
    for task in tasks:
        there = not overwrite and all(path.is_file() for path in task.outputs)
        reason = ledger.judge(task) if there and ledger is not None else None
        if there and reason is None:
            report.present.append(task.source)
            continue
        if there:
            reasons[task.outputs] = reason if reason != UNKNOWN else f"not what {task.source} gives"
        pending.append((task, reason == UNKNOWN and task.comparable))
    attempt = partial(_attempt, function=function)
    pool = None
    if workers > 1 and len(pending) > 1:
        pool = _context(function).Pool(min(workers, len(pending)), initializer=_limit_threads)
    try:
        results = map(attempt, pending) if pool is None else pool.imap(attempt, pending)
        progress = tqdm(total=len(tasks), initial=len(report.present), desc=title, unit="file", disable=None)
        with progress:
            for number, ((task, _), done) in enumerate(zip(pending, results, strict=True), 1):
                if done.error is not None and on_error == "stop":
                    raise done.error
                if done.error is not None:
                    report.failed.append((task.source, str(done.error)))
                else:
                    (report.written if done.new else report.present).append(task.source)
                    if done.new and task.outputs in reasons:
                        report.redone.append((task.outputs[0], reasons[task.outputs]))
                    if ledger is not None:
                        ledger.keep(task, done.sources)
                        if number % _SAVED_EVERY == 0:
                            ledger.save()
                progress.update()
    finally:
        if pool is not None:
            pool.terminate()
            pool.join()
        if ledger is not None:
            ledger.save()
    return report
