"""Run one function over many files: in parallel, with a progress bar, resumable, with a report of failures."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tqdm import tqdm

__all__ = ["Report", "Task", "run_tasks"]


@dataclass(frozen=True)
class Task:
    """One unit of work: ``outputs`` are what it writes; it is finished when all of them exist."""

    source: Path
    outputs: tuple[Path, ...]
    options: dict = field(default_factory=dict)


@dataclass
class Report:
    """Outcome of a run: sources written, sources whose outputs existed, and ``(source, error)`` of those left out."""

    written: list[Path] = field(default_factory=list)
    present: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.written)} written, {len(self.present)} already there, {len(self.failed)} left out"
        return text + "".join(f"\n  left out: {error}" for _, error in self.failed)


def _attempt(task: Task, function: Callable[[Task], None]) -> Exception | None:
    try:
        function(task)
    except (ValueError, OSError) as err:  # a bad input; anything else is a bug and stops the run
        return err
    return None


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
    pending = []
    for task in tasks:
        finished = not overwrite and all(path.is_file() for path in task.outputs)
        (report.present if finished else pending).append(task.source if finished else task)
    attempt = partial(_attempt, function=function)
    pool = None
    if workers > 1 and len(pending) > 1:
        pool = _context(function).Pool(min(workers, len(pending)), initializer=_limit_threads)
    try:
        results = map(attempt, pending) if pool is None else pool.imap(attempt, pending)
        progress = tqdm(total=len(tasks), initial=len(report.present), desc=title, unit="file", disable=None)
        with progress:
            for task, error in zip(pending, results, strict=True):
                if error is None:
                    report.written.append(task.source)
                elif on_error == "stop":
                    raise error
                else:
                    report.failed.append((task.source, str(error)))
                progress.update()
    finally:
        if pool is not None:
            pool.terminate()
            pool.join()
    return report
