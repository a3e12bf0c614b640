"""Restoring many pictures, each for itself; ``tools.inference`` is the command."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from .. import made_from
from ..files import remove_leftovers
from . import provenance
from .inputs import Job, find_jobs, require_folder, require_place
from .opening import open_restorer
from .picture_files import Format, Layout, format_of, mode_in, write_picture
from .pictures import COLOURS, Size, read_picture, read_size, register_plugins
from .restorer import Restorer
from .restoring import How, restored_size, restored_strips
from .self_check import LEAST_PSNR, self_check
from .shipped import model_for, weights_of
from .showing import PAGE, Page, Truths

__all__ = ["Outcome", "run"]

QUALITY = 95  # of formats that lose something
EXIT_STOPPED = 130  # as shells report Ctrl-C

logger = logging.getLogger(__name__)


@dataclass
class Outcome:
    """What became of one picture.

    Attributes:
        job: picture and result.
        state: ``done``, ``skipped``, ``failed`` or ``planned``.
        reason: of a failure.
        seconds: of reading, restoring and writing.
        size: (width, height) before and after; None where it is not known.
        notes: what changed besides the pixels, in words.
    """

    job: Job
    state: str
    reason: str = ""
    seconds: float = 0.0
    size: tuple[tuple[int, int], tuple[int, int]] | None = None
    notes: tuple[str, ...] = ()


def open_network(args: argparse.Namespace) -> tuple[Restorer, Path]:
    """The network that the command line asks for, and its file.

    Raises:
        ValueError: arguments that do not fit together.
    """
    if args.model and len(args.model) > 1:
        raise ValueError(f"--model was given {len(args.model)} times; pictures are restored by one network")
    if args.scale and (args.model or args.task not in (None, "sr")):
        raise ValueError("--scale chooses among the shipped networks for sr; --outscale resizes the results of any")
    if not args.model and args.opt:
        raise ValueError("-opt describes the network of a --model; the shipped networks describe themselves")
    scale = args.scale or args.outscale or 2
    path = weights_of(args.model[0]) if args.model else model_for(args.task or "sr", scale).path
    bits = None if args.bits is None else (args.bits, args.bits)
    return open_restorer(path, args.backend, args.device, args.threads, args.half, args.opt, bits), path


@dataclass(frozen=True)
class Plan:
    """How one picture becomes a file.

    Attributes:
        wanted: format of the result.
        layout: what is written.
        notes: what the format cannot hold, in words.
    """

    wanted: Format
    layout: Layout
    notes: tuple[str, ...]


def plan(size: Size, job: Job, restorer: Restorer, how: How, quality: int) -> Plan:
    """What a picture of this size and kind is written as.

    Raises:
        ValueError: the result has no room in its format.
    """
    wanted = format_of(job.target.suffix)
    height, width = restored_size(size.height, size.width, restorer, how)
    if max(height, width) > wanted.side:
        raise ValueError(
            f"its result of {width} x {height} pixels is too large for {wanted.name} ({wanted.side}); use --ext png"
        )
    mode, sixteen = mode_in(wanted, size.mode), size.sixteen and wanted.sixteen
    notes = []
    if mode != size.mode:
        notes.append(f"{wanted.name} holds no {size.mode}: written as {mode}")
    if size.sixteen and not sixteen:
        notes.append(f"{wanted.name} holds 8 bits: rounded")
    return Plan(wanted, Layout(mode, width, height, sixteen, quality), tuple(notes))


@dataclass
class Run:
    """What all pictures of a run share.

    Attributes:
        restorer: opened network.
        how: tiles, flips and size.
        args: the command line.
        truths: ground truth.
        page: what becomes the page; None without.
        settings: what decides about results besides the picture, for their records.
    """

    restorer: Restorer
    how: How
    args: argparse.Namespace
    truths: Truths
    page: Page | None
    settings: Mapping[str, str]


def stand(job: Job, run: Run) -> tuple[bool, str]:
    """Whether a result need not be made, and in what one that is made again was another.

    Raises:
        ValueError: a file is there that does not say what it was made from, or the result cannot be written.
        OSError: the picture cannot be read.
    """
    require_place(job.target)
    exists = job.target.is_file() and job.target.stat().st_size > 0
    if not exists or run.args.overwrite or run.args.skip_existing:
        return exists and not run.args.overwrite, ""
    before = provenance.record_in(job.target)
    if before is None:
        raise ValueError(
            f"{job.target} is there already and does not say what it was made from; --overwrite replaces it, "
            "--skip-existing keeps it"
        )
    other = made_from.differences(before, record_of(job, run))
    return not other, made_from.reason(other) if other else ""


def record_of(job: Job, run: Run) -> dict[str, str]:
    """What the result of a picture is made from."""
    quality = run.args.quality if format_of(job.target.suffix).lossy else None
    return provenance.of_picture(run.settings, job.source, quality)


def restore_file(job: Job, run: Run, progress) -> Outcome:
    """Restore one picture.

    Raises:
        Exception: of many kinds; nothing is written then.
    """
    started, restorer, how, args = time.perf_counter(), run.restorer, run.how, run.args
    record = record_of(job, run)
    picture = read_picture(job.source)
    height, width = picture.pixels.shape[:2]
    made = plan(
        Size(width, height, picture.format, picture.mode, picture.pixels.dtype == np.uint16),
        job,
        restorer,
        how,
        args.quality,
    )
    notes = [*picture.about.notes, *made.notes]
    before = picture if made.layout.sixteen else picture.in_eight_bits()
    before = before.in_mode(made.layout.mode)
    if args.self_check:
        check = self_check(restorer, before.pixels[..., : COLOURS[before.mode]], how.overlap)
        notes.append(str(check))
        if not check.passed:
            raise ValueError(
                f"self-check: {check}; less than {LEAST_PSNR:.0f} dB is another network: try --backend float"
            )
    del picture
    strips = restored_strips(restorer, before, how, progress)
    kept = None
    if run.page is not None:
        strips, kept = run.page.watch(before, (made.layout.height, made.layout.width), strips)
    write_picture(job.target, strips, made.wanted, made.layout, before.about, record)
    seconds = time.perf_counter() - started
    size = (width, height), (made.layout.width, made.layout.height)
    if (psnr := run.truths.psnr(job)) is not None:
        notes.append(psnr)
    if kept is not None:
        run.page.add(job.source.name, kept, [_sizes(*size), f"{seconds:.1f} s", *notes])
    return Outcome(job, "done", "", seconds, size, tuple(notes))


def _sizes(before: tuple[int, int], after: tuple[int, int]) -> str:
    return f"{before[0]}x{before[1]} -> {after[0]}x{after[1]}"


class Reporter:
    """Progress on a terminal as a bar with the time that is left, elsewhere as a line for each picture."""

    def __init__(self, total: int):
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%")
        self.progress = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.bar: TaskID = self.progress.add_task("", total=total)
        self.total, self.at = total, 0

    def begin(self, job: Job) -> None:
        """Name the picture that is next."""
        self.at += 1
        self.progress.update(self.bar, description=escape(_printable(f"{self.at}/{self.total} {job.source.name}")))

    def tiles(self, done: int, total: int) -> None:
        """Show how far this picture is."""
        self.progress.update(self.bar, completed=self.at - 1 + done / total)

    def end(self, outcome: Outcome) -> None:
        """Show what became of it."""
        self.progress.update(self.bar, completed=self.at)
        self.console.print(escape(f"{self.at}/{self.total} {line_of(outcome)}"))


def _printable(text: str) -> str:
    """A text that stays in its line: line breaks and terminals' control codes, which names may hold, as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def line_of(outcome: Outcome) -> str:
    """One picture in one line."""
    return _printable(_line_of(outcome))


def _line_of(outcome: Outcome) -> str:
    job = outcome.job
    if outcome.state == "failed":
        return f"FAILED {job.source}: {outcome.reason}"
    if outcome.state == "skipped":
        return f"{job.target} is finished already"
    text = f"{job.source} -> {job.target} ({_sizes(*outcome.size)}"
    text += ")" if outcome.state == "planned" else f", {outcome.seconds:.1f} s)"
    return text + "".join(f"; {note}" for note in outcome.notes)


def reason_of(err: Exception, job: Job) -> str:
    """Why a picture failed, in one line, without its name, which stands beside it."""
    text = " ".join(str(err).split()) or type(err).__name__
    text = text.removeprefix(f"{job.source}: ")
    if isinstance(err, OSError) and err.strerror and not text.startswith(err.strerror):
        text = f"{err.strerror}: {err.filename}" if err.filename else err.strerror
    known = isinstance(err, (ValueError, OSError))
    return text[:400] if known else f"{type(err).__name__}: {text[:400]}"


def outcomes(jobs: list[Job], run: Run, report: Reporter) -> Iterator[Outcome]:
    """Restore picture after picture; one that fails costs no other."""
    restorer, how, args = run.restorer, run.how, run.args
    for job in jobs:
        report.begin(job)
        try:
            if job.problem:
                raise ValueError(job.problem)
            finished, other = stand(job, run)
            if finished:
                outcome = Outcome(job, "skipped")
                if run.page is not None and not args.dry_run:
                    psnr = run.truths.psnr(job)
                    run.page.add_finished(job, job.source.name, [] if psnr is None else [psnr])
            elif args.dry_run:
                size = read_size(job.source)
                made = plan(size, job, restorer, how, args.quality)
                outcome = Outcome(
                    job, "planned", "", 0.0, ((size.width, size.height), (made.layout.width, made.layout.height))
                )
                outcome.notes = (
                    *made.notes,
                    f"{restorer.tiles(size.height, size.width, how.tile, how.overlap).count} tiles",
                )
            else:
                outcome = restore_file(job, run, report.tiles)
            if other:
                outcome.notes = (f"made again: {other}", *outcome.notes)
        except Exception as err:  # whatever is wrong with one picture, or with us and it, the others are restored
            if args.debug:
                traceback.print_exc()
            outcome = Outcome(job, "failed", reason_of(err, job))
        report.end(outcome)
        yield outcome


def summary(done: list[Outcome], seconds: float) -> str:
    """What became of all of them, failures by name."""
    counts = {state: sum(o.state == state for o in done) for state in ("done", "planned", "skipped", "failed")}
    shown = ", ".join(f"{n} {state}" for state, n in counts.items() if n or state in ("skipped", "failed"))
    if counts["planned"] == counts["done"] == 0:
        shown = f"0 done, {shown}"
    lines = [f"{shown} in {seconds:.1f} s"]
    lines += [_printable(f"  {o.job.source}: {o.reason}") for o in done if o.state == "failed"]
    return "\n".join(lines)


def pointless(args: argparse.Namespace, jobs: list[Job]) -> Iterator[str]:
    """What was asked for and has no effect, in words."""
    if args.quality is not None and not any(format_of(job.target.suffix).lossy for job in jobs):
        yield "--quality has no effect: the results are of formats that lose nothing"
    if args.overlap is not None and args.tile == "off":
        yield "--overlap has no effect with --tile off"
    if args.dry_run:
        asked = {"--page": args.page, "--self-check": args.self_check, "--truth": args.truth}
        yield from (f"{flag} has no effect with --dry-run" for flag, given in asked.items() if given)


def run(args: argparse.Namespace) -> int:
    """Restore what ``tools.inference`` was asked for; ``args`` are its arguments.

    Returns:
        0, 1 when a picture failed, 130 when it was stopped by Ctrl-C.

    Raises:
        ValueError, OSError: arguments that do not fit together, or inputs that are not there.
    """
    register_plugins()
    reserved = [PAGE] if args.page else []
    require_folder(args.out, reserved, dry=True)
    jobs = find_jobs(args.inputs, args.out, args.recursive, args.ext, args.suffix)
    restorer, weights = open_network(args)
    require_folder(args.out, reserved, args.dry_run)
    how = How(args.tile, args.overlap, args.tta, args.outscale)
    restorer.tiles(
        1 << 16, 1 << 16, how.tile, how.overlap
    )  # mistakes in them stop here, not at the first large picture
    for folder in sorted({job.target.parent for job in jobs}):
        if folder.is_dir() and not args.dry_run:
            remove_leftovers(folder)
    page = Page(str(restorer)) if args.page and not args.dry_run else None
    settings = provenance.settings_of(
        *(weights, args.opt),
        bits=restorer.bits,
        backend=restorer.backend,
        half_precision=args.half,
        tile=how.tile,
        overlap="" if how.tile == "off" or how.overlap is None else how.overlap,
        flips=how.tta,
        size=float(how.outscale or restorer.scale),
    )
    shared = Run(restorer, how, args, Truths(args.truth, restorer.scale), page, settings)
    report = Reporter(len(jobs))
    report.console.print(escape(f"{len(jobs)} pictures, {restorer}"))
    for line in pointless(args, jobs):
        report.console.print(escape(line))
    args.quality = QUALITY if args.quality is None else args.quality
    started, done, stopped = time.perf_counter(), [], False
    with report.progress:
        try:
            for outcome in outcomes(jobs, shared, report):
                done.append(outcome)
        except KeyboardInterrupt:
            stopped = True
    if page is not None:
        page.write(args.out / PAGE)
        report.console.print(escape(f"page: {args.out / PAGE}"))
    sys.stdout.write(summary(done, time.perf_counter() - started) + "\n")
    if stopped:
        sys.stderr.write(f"stopped with {len(jobs) - len(done)} pictures left: the same command goes on there\n")
        return EXIT_STOPPED
    return 1 if any(outcome.state == "failed" for outcome in done) else 0
