"""One network quantized by every post-training method, on a budget, and tested; ``tools.ptq_rows`` is the command."""

from __future__ import annotations

import argparse
import gc
import itertools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from ..data.image_memory import images_in_memory
from ..inference.backends import device_of
from ..models.recorded_passes import recorded_passes
from ..models.turns import ALONE, MOST, SharedTurn, Turn, in_turns
from ..ptq.method import PTQ_METHODS
from ..recipes.option_contents import stem
from ..recipes.option_table import TASKS
from ..recipes.ptq_contents import ptq_options, ptq_test_options
from .ablation_studies import Run
from .generality import working_in
from .ptq_rows_calibrated import calibrated_file
from .ptq_rows_quantize import calibrate_row, device_of_row, goes_end_to_end, quantize_row
from .ptq_rows_report import Reported, write_report
from .study_runs import (
    Store,
    finish_tests,
    forget,
    missing_sets,
    stale_results,
    train_if_due,
    training_due,
    unfinished,
    weights_file,
)
from .time_limit import OutOfTime, TimeLimit
from .training_patches import patches_kept

__all__ = ["run"]

FAMILY = "MambaIRv2Light"
EIGHT = 8  # images of a calibration batch, as in the option files
IMAGE_MEMORY = 1 << 30  # bytes
LOOK_AGAIN = 2.0  # seconds after which tests look for rows that other processes have quantized

logger = logging.getLogger("ptq_rows")


Key = tuple[int, int, str]
Works = Mapping[Key, tuple[Run, dict]]


def rows(args: argparse.Namespace) -> Iterator[Key]:
    """Scale, bits and method of every row, in the order of the table; one bit is SPR2Q's alone."""
    for scale, bits, method in itertools.product(args.scales, args.bits, args.methods):
        if bits > 1 or method == "SPR2Q":
            yield scale, bits, method


def options_of(scale: int, bits: int, method: str, args: argparse.Namespace) -> tuple[Run, dict]:
    """How a row is quantized and how it is tested: its option files, with this study's data and budget."""
    task = TASKS[f"lightSRx{scale}"]
    made, test = ptq_options(FAMILY, task, bits, method), ptq_test_options(FAMILY, task, bits, method)
    made["name"] = stem("ptq", FAMILY, task.name, bits, method).removeprefix("ptq_")
    made["num_gpu"] = test["num_gpu"] = 0 if args.device == "cpu" else 1
    made["datasets"] = {"train": _found(made["datasets"]["train"], args.root)}
    made["datasets"]["train"] |= {"batch_size_per_gpu": args.batch, "num_worker_per_gpu": 0}
    if args.photographs is not None:
        made["datasets"]["train"]["meta_info_file"] = str(args.photographs.resolve())
    if PTQ_METHODS[made["ptq"]["method"]["type"]].trains:
        made["train"] = {"total_iter": args.iterations or made["train"]["total_iter"], "minutes": args.minutes}
    made["ptq"]["calibration"] = {"batches": -(-args.patches // EIGHT), "batch_size": min(EIGHT, args.patches)}
    if args.samples is not None and "samples" in PTQ_METHODS[made["ptq"]["method"]["type"]].options:
        made["ptq"]["method"]["samples"] = args.samples
    weights = args.checkpoint or Path(made["path"]["pretrain_network_g"])
    made["path"]["pretrain_network_g"] = str(weights.resolve())
    sections = [s for s in test["datasets"].values() if s["name"] in args.sets]
    test["datasets"] = {f"test_{i}": _found(s, args.root) for i, s in enumerate(sections, start=1)}
    test["val"] |= {"save_img": False, "pbar": False}
    return Run(made["name"], ((FAMILY, method),), bits, made["manual_seed"], made), test


def _found(section: Mapping, root: Path) -> dict:
    """A data set's options with paths that hold in any working folder."""
    known = {key: value for key, value in section.items() if key.startswith("dataroot")}
    found = {key: str(root.resolve() / Path(value).relative_to("datasets")) for key, value in known.items()}
    if "meta_info_file" in section:
        package = Path(__file__).resolve().parents[1]
        found["meta_info_file"] = str(package.parent / section["meta_info_file"])
    return {**section, **found}


def run(args: argparse.Namespace) -> int:
    """The rows that ``tools.ptq_rows`` was asked for; what is finished is not repeated.

    Args:
        args: of the command.

    Returns:
        How many failed.

    Raises:
        ValueError: images, weights or the device are not there; one checkpoint for several scales; too many jobs.
    """
    limit, device = TimeLimit(args.until), device_of(args.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {args.device}: rows are made on cpu or cuda")
    if device.index is not None:
        torch.cuda.set_device(device)
    if args.jobs > MOST:
        raise ValueError(f"--jobs {args.jobs}: at most {MOST} rows are quantized at a time")
    if args.checkpoint is not None and len(args.scales) > 1:
        raise ValueError(f"--checkpoint is of one scale, and --scales names {len(args.scales)}")
    works = {key: options_of(*key, args) for key in rows(args)}
    if not args.read_only:
        _check_files(works.values(), args.only)
    store = Store(args.out.resolve(), args.any_code)
    maker = Maker(works, store, limit, args.only, args.jobs)
    with (
        working_in(store.root),
        images_in_memory(IMAGE_MEMORY),
        patches_kept(),
        recorded_passes(),
        exact_convolutions(),
    ):
        try:
            with limit.enforced():
                if args.rerun and not args.read_only:
                    for made, _ in works.values():
                        with store.claimed(made) as mine:  # not below another process that is at work on it
                            if mine:
                                forget(made, store, training=True)
                                if args.only in (None, "calibrate"):
                                    calibrated_file(made, store).unlink(missing_ok=True)
                if not args.read_only:
                    maker.make_all(args.sets)
        except OutOfTime:
            logger.info("the time is over")
        sys.stdout.write(write_report(maker.reported(), store.root, args.sets))
    return len(maker.failed)


def as_quantized(made: Run, store: Store) -> Run:
    """A row with the budget that it was quantized on, where that is nothing to the matter; as it is before that."""
    before = store.read(made.name).get("options")
    if before is None:
        return made
    data = made.opt["datasets"]["train"] | {"batch_size_per_gpu": before["datasets"]["train"]["batch_size_per_gpu"]}
    opt = {**made.opt, "train": before["train"], "datasets": {**made.opt["datasets"], "train": data}}
    return replace(made, opt=opt)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Inside, convolutions on a GPU are computed in float32, as on a CPU, instead of TensorFloat-32."""
    before, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


class Maker:
    """Makes rows, several such processes side by side: each takes those that no other one is at work on.

    Args:
        works: rows with their options.
        store: of all processes.
        limit: of this one.
        only: ``calibrate``, ``quantize``, ``test``, or None for the last two.
        jobs: rows to quantize at a time.

    Attributes:
        failed: names of rows that failed here.
    """

    def __init__(self, works: Works, store: Store, limit: TimeLimit, only: str | None = None, jobs: int = 1) -> None:
        self.works, self.store, self.limit, self.only, self.jobs = works, store, limit, only, jobs
        self.failed: set[str] = set()
        self.begun = time.time()

    def make_all(self, sets: list[str]) -> None:
        """Every row that is due: the first number of bits at all scales, then the next one.

        Tests within a limit go on as long as rows are missing that another process may be quantizing, and always take
        the first one that is there. With several jobs, tests follow when all rows are quantized.
        """
        if self.jobs > 1 and self.only in (None, "quantize"):
            works = self._in_turn()
            work, (first, _) = partial(self._quantize_some, iter(works), sets), works[0]
            in_turns(min(self.jobs, len(works)), work, device_of_row(first))
            if self.only == "quantize":
                return
        if self.only != "test":
            for made, test in self._in_turn():
                if self._make(made, test):
                    write_report(self.reported(), self.store.root, sets)
            return
        while True:
            if any(self._make(made, test) for made, test in self._in_turn()):
                write_report(self.reported(), self.store.root, sets)
            elif self.limit.left() == float("inf") or not any(
                unfinished(as_quantized(made, self.store), test, self.store)
                for made, test in self._in_turn()
                if made.name not in self.failed
            ):
                return
            else:
                time.sleep(LOOK_AGAIN)

    def _quantize_some(self, works: Iterator[tuple[Run, dict]], sets: list[str], turn: SharedTurn) -> None:
        """A thread's share: always the next row that no other one has begun."""
        more = True
        while more:
            with turn.mine():
                made, test = next(works, (None, None))
                more = made is not None
                if more and self._make(made, test, turn):
                    write_report(self.reported(), self.store.root, sets)
                gc.collect()  # a recording holds gigabytes: nothing that refers to itself may keep it

    def _in_turn(self) -> list[tuple[Run, dict]]:
        bits = list(dict.fromkeys(key[1] for key in self.works))
        return [work for _, work in sorted(self.works.items(), key=lambda entry: bits.index(entry[0][1]))]

    def _make(self, made: Run, test: dict, turn: Turn = ALONE) -> bool:
        """One row, as far as it is due, in a thread among others without its tests; returns whether anything was made."""
        only = self.only if turn is ALONE else "quantize"
        if only == "test":
            made = as_quantized(made, self.store)
        if made.name in self.failed or not self._due(made, test, only) or self._failed_elsewhere(made):
            return False
        with self.store.claimed(made) as mine:
            if not mine:
                logger.info("%s: another process is at work on it", made.name)
                return False
            if not self._due(made, test, only):  # another process has been faster
                return False
            if reason := stale_results(made, test, self.store):
                logger.info("%s: done again: %s", made.name, reason)
            try:
                if only == "calibrate":
                    logger.info("%s: calibrated (%.0f s)", made.name, calibrate_row(made, self.store))
                    return True
                if only != "test":
                    if not self._fits(made):
                        return False
                    train_if_due(made, test, self.store, partial(quantize_row, limit=self.limit, turn=turn))
                record = self.store.read(made.name)
                if only != "quantize":
                    record = finish_tests(made, test, self.store)
            except Exception as err:
                self.store.fail(made, err)
                self.failed.add(made.name)
                logger.info("%s: FAILED: %s", made.name, err)
                return True
        shown = ", ".join(f"{name} {value['metrics']['psnr']:.2f} dB" for name, value in record["results"].items())
        logger.info("%s: %s (%.0f s to quantize)", made.name, shown or "quantized", record["seconds"])
        return True

    def _due(self, made: Run, test: dict, only: str | None) -> bool:
        if self.only:  # another process may have had another budget
            made = as_quantized(made, self.store)
        trained = not training_due(made, self.store) and weights_file(made, self.store).is_file()
        if only == "calibrate":
            return not trained and goes_end_to_end(made) and not calibrated_file(made, self.store).is_file()
        if only == "quantize":
            return not trained
        if only == "test":
            return trained and bool(missing_sets(self.store.read(made.name), test, self.store.any_code))
        return unfinished(made, test, self.store)

    def reported(self) -> list[Reported]:
        """Every row, with its record where it has one that is of what is asked for."""
        failures, found = self.store.failures(), []
        for (scale, bits, method), (made, test) in self.works.items():
            made = as_quantized(made, self.store) if self.only else made
            reason, record = stale_results(made, test, self.store), self.store.read(made.name)
            if reason:
                record = {}
            found.append(Reported(scale, bits, method, test, record, failures.get(made.name, reason or "")))
        return found

    def _failed_elsewhere(self, made: Run) -> bool:
        """Whether another process has failed at it meanwhile."""
        file = self.store.failed / f"{made.name}.txt"
        return file.is_file() and file.stat().st_mtime > self.begun

    def _fits(self, made: Run) -> bool:
        """Whether the quantization of a row can be finished in the time that is left, by what its method took elsewhere."""
        left = self.limit.left()
        if left == float("inf") or not training_due(made, self.store):
            return True
        (method,) = {key[2] for key, (run, _) in self.works.items() if run.name == made.name}
        of_method = [run.name for key, (run, _) in self.works.items() if key[2] == method]
        known = [record for name in of_method if "seconds" in (record := self.store.read(name))]
        # of what trains, what comes before, and about as much again
        needed = [2 * r["seconds_before"] if "seconds_before" in r else r["seconds"] for r in known]
        if needed and left < min(needed):
            logger.info("%s: not begun: %.0f s are left, it takes %.0f s", made.name, left, min(needed))
            return False
        return True


def _check_files(works: Iterable[tuple[Run, dict]], only: str | None) -> None:
    """What the part of the work that is asked for reads."""
    for made, test in works:
        wanted, sections = [], []
        if only != "test":
            wanted.append(made.opt["path"]["pretrain_network_g"])
            sections.append(made.opt["datasets"]["train"])
        if only in (None, "test"):
            sections += test["datasets"].values()
        wanted += [section[root] for section in sections for root in ("dataroot_gt", "dataroot_lq")]
        for path in wanted:
            if not Path(path).exists():
                raise ValueError(f"{path} is not there; see --help for what is needed")
