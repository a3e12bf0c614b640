"""One training of a study, trained and tested by BasicSR's own pipelines, in this process, and remembered on disk."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import platform
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import yaml
from basicsr.test import test_pipeline
from basicsr.train import train_pipeline
from basicsr.utils import logger as basicsr_logger
from basicsr.utils.options import ordered_yaml

from .. import made_from
from ..files import read_record, write_text
from .ablation_studies import Run
from .claims import claimed
from .result_log import latest_log, read_results

__all__ = [
    "Store",
    "execute",
    "finish_tests",
    "forget",
    "missing_sets",
    "stale_results",
    "stale_training",
    "train_if_due",
    "training_due",
    "unfinished",
    "weights_file",
]


class Store:
    """Results of finished runs, one file each, and the messages of failed ones.

    Files are written beside their place and renamed: a killed process leaves whole files only.

    Args:
        root: working folder; ``experiments/`` and ``results/`` of the pipelines are made in it too.
        any_code: results stay though this package, torch or BasicSR has changed since.
    """

    def __init__(self, root: Path, any_code: bool = False) -> None:
        self.root = root
        self.any_code = any_code
        self.finished = root / "finished"
        self.failed = root / "failed"
        self.claims = root / "claims"
        self.started = root / "started"
        for folder in (self.finished, self.failed, self.claims, self.started, root / "options"):
            folder.mkdir(parents=True, exist_ok=True)

    def claimed(self, run: Run) -> contextlib.AbstractContextManager[bool]:
        """Inside, no other process works on a run: see :func:`claims.claimed`."""
        return claimed(self.claims / run.name)

    def read(self, name: str) -> dict:
        """The record of a run; ``results`` is empty for a new one."""
        return read_record(self.finished / f"{name}.json", ("results",)) or {"results": {}}

    def write(self, run: Run, record: Mapping) -> None:
        """Keep a run's record and forget an earlier failure."""
        text = json.dumps({"name": run.name, "bits": run.bits, "seed": run.seed, **record}, indent=1)
        write_text(self.finished / f"{run.name}.json", text)
        (self.failed / f"{run.name}.txt").unlink(missing_ok=True)

    def made_from(self, run: Run) -> dict | None:
        """Record of the inputs of the run's training, finished or not; None before it."""
        return read_record(self.started / f"{run.name}.json")

    def start(self, run: Run, record: Mapping) -> None:
        """Remember what a training is made from."""
        write_text(self.started / f"{run.name}.json", json.dumps(record, indent=1))

    def fail(self, run: Run, error: BaseException) -> None:
        """Keep the message and the traceback of a run that failed."""
        text = "".join(traceback.format_exception(error))
        write_text(self.failed / f"{run.name}.txt", f"{type(error).__name__}: {error}\n\n{text}")

    def failures(self) -> dict[str, str]:
        """First line of the message by run name."""
        files = sorted(self.failed.glob("*.txt"))
        return {file.stem: file.read_text(encoding="utf-8").splitlines()[0] for file in files}


def missing_sets(record: Mapping, test: Mapping, any_code: bool = False) -> dict[str, dict]:
    """Test sections that a record has no figures of, or only figures of other options, images or (unless any will do) code."""
    passed_over = {"code"} if any_code else set()

    def differs(name: str, protocol: Mapping) -> bool:
        before = record["results"].get(name, {}).get("protocol", {})
        return any(
            _placeless(before.get(key)) != _placeless(value)
            for key, value in protocol.items()
            if key not in passed_over
        )

    return {k: section for k, section in test["datasets"].items() if differs(section["name"], _protocol(section, test))}


def _placeless(part: object) -> object:
    """Part of a protocol without folders: the digest of their images says what is in them, on whatever machine."""
    if not isinstance(part, dict):
        return part
    return {key: value for key, value in part.items() if not key.startswith(("dataroot", "meta_info"))}


def stale_training(run: Run, store: Store) -> str | None:
    """Why a run's training must begin anew; None where it need not, or has not begun."""
    before = store.made_from(run)
    if before is None and "train_seconds" not in store.read(run.name):
        return None
    changed = made_from.differences(before, made_from.of_training(run.opt))
    if before is not None and store.any_code:
        changed = [name for name in changed if name != "versions"]
    return made_from.reason(changed) if changed else None


def stale_results(run: Run, test: Mapping, store: Store) -> str | None:
    """Why figures that are there are taken again: other training, weights, options, images or code; else None."""
    record = store.read(run.name)
    if not record["results"]:
        return None
    if reason := stale_training(run, store):
        return reason
    weights = made_from.weights_of(weights_file(run, store))
    if weights is not None and record.get("weights") != weights:
        return "other weights" if "weights" in record else "it does not say what it was made from"
    names = [
        section["name"]
        for section in missing_sets(record, test, store.any_code).values()
        if section["name"] in record["results"]
    ]
    return f"other options, images or code for {', '.join(names)}" if names else None


def unfinished(run: Run, test: Mapping, store: Store) -> bool:
    """Whether a run lacks figures, or has stale ones."""
    return bool(missing_sets(store.read(run.name), test, store.any_code)) or stale_results(run, test, store) is not None


def training_due(run: Run, store: Store) -> bool:
    """Whether a run has to be trained, for the first time or anew."""
    return "train_seconds" not in store.read(run.name) or stale_training(run, store) is not None


def forget(run: Run, store: Store, training: bool) -> None:
    """Drop a run's figures and, with ``training``, its weights and training states."""
    if training:
        for folder in (store.finished, store.started):
            (folder / f"{run.name}.json").unlink(missing_ok=True)
        shutil.rmtree(store.root / "experiments" / run.name, ignore_errors=True)
    elif store.read(run.name)["results"]:
        store.write(run, {**store.read(run.name), "results": {}})


def weights_file(run: Run, store: Store) -> Path:
    """Where a run's training leaves its weights."""
    return store.root / "experiments" / run.name / "models" / "net_g_latest.pth"


def train_by_pipeline(run: Run, store: Store) -> dict:
    """Train with BasicSR's pipeline; an interrupted training goes on from its last saved state."""
    folder = store.root / "experiments" / run.name
    if not any(folder.glob("training_states/*.state")):
        shutil.rmtree(folder, ignore_errors=True)  # nothing in it to go on from
    _pipeline(train_pipeline, run.opt, store, "--auto_resume")
    shutil.rmtree(folder / "training_states", ignore_errors=True)
    return {}


def execute(run: Run, test: Mapping, store: Store, train: Callable[[Run, Store], Mapping] = train_by_pipeline) -> dict:
    """Train a run unless that is done, then test it on the sets it lacks.

    Args:
        run: what to train.
        test: test options; network, weights and name are the run's.
        store: where results are kept.
        train: leaves the run's ``net_g_latest.pth``, and returns what its record shall hold besides.

    Returns:
        The record: ``train_seconds``, ``test_seconds`` and ``results``, ``{set: {metrics, protocol}}``.
    """
    if not unfinished(run, test, store):
        return store.read(run.name)
    train_if_due(run, test, store, train)
    return finish_tests(run, test, store)


def train_if_due(
    run: Run, test: Mapping, store: Store, train: Callable[[Run, Store], Mapping] = train_by_pipeline
) -> dict:
    """The first half of :func:`execute`; what is stale is forgotten. Returns the record."""
    if stale_training(run, store) is not None:
        forget(run, store, training=True)
    elif stale_results(run, test, store) is not None:
        forget(run, store, training=False)
    record = store.read(run.name)
    if "train_seconds" not in record or not weights_file(run, store).is_file():
        store.start(run, made_from.of_training(run.opt))
        start = time.monotonic()
        record |= train(run, store)
        record |= {"train_seconds": round(time.monotonic() - start, 1), "results": {}, "options": _plain(run.opt)}
        record |= {"torch": torch.__version__, "device": _device(run.opt)}
        store.write(run, record)
    return record


def finish_tests(run: Run, test: Mapping, store: Store) -> dict:
    """The second half of :func:`execute`. When it is interrupted, figures of sets that are finished stay. Returns the record."""
    record, weights = store.read(run.name), weights_file(run, store)
    sections = missing_sets(record, test, store.any_code)
    record["weights"] = made_from.weights_of(weights)
    start, begun = time.monotonic(), time.time()
    opt = {**test, "name": f"test_{run.name}", "model_type": run.opt["model_type"]}
    opt |= {"network_g": run.opt["network_g"], "datasets": sections}
    opt["path"] = {"pretrain_network_g": str(weights), "strict_load_g": True}
    if run.opt["train"].get("ema_decay"):
        opt["path"]["param_key_g"] = "params_ema"  # as tests within training
    wanted = set(test["val"]["metrics"])
    try:
        _pipeline(test_pipeline, opt, store)
    finally:
        log = latest_log(store.root / "results", opt["name"])
        new = log is not None and log.stat().st_mtime >= begun - 1  # a clock of files may be a little behind
        figures = read_results(log)[0] if new else {}
        for section in sections.values():
            found = figures.get(section["name"], {})
            if wanted <= found.keys():
                record["results"][section["name"]] = {"metrics": found, "protocol": _protocol(section, test)}
        record["test_seconds"] = round(record.get("test_seconds", 0) + time.monotonic() - start, 1)
        store.write(run, record)
    for section in sections.values():
        if lacking := sorted(wanted - figures.get(section["name"], {}).keys()):
            raise RuntimeError(f"the test gave no {', '.join(lacking)} for {section['name']}")
    return record


def _device(opt: Mapping) -> str:
    """Name of what computes: the machine's architecture, or its GPU."""
    on_gpu = opt.get("num_gpu") != 0 and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else f"CPU ({platform.machine()})"


def _protocol(section: Mapping, test: Mapping) -> dict:
    """Everything but the weights that a figure depends on."""
    return _plain(
        {
            "section": section,
            "val": test["val"],
            "tile": test.get("tile"),
            "images": made_from.data_of(section),
            "code": made_from.code(),
        }
    )


def _plain(value: object) -> dict:
    """As JSON gives it back, so that what is read compares equal to what was written."""
    return json.loads(json.dumps(value, default=str))


def _pipeline(pipeline, opt: Mapping, store: Store, *flags: str) -> None:
    """Run a stock pipeline on options, as its command would; everything it writes lands below ``store.root``."""
    file = store.root / "options" / f"{opt['name']}.yml"
    text = yaml.dump(dict(opt), Dumper=ordered_yaml()[1], sort_keys=False)
    write_text(file, text)
    try:
        with _command_line("-opt", str(file), *flags), _own_log():
            pipeline(str(store.root))
    finally:
        gc.collect()  # models hold references to themselves


@contextlib.contextmanager
def _command_line(*arguments: str) -> Iterator[None]:
    """BasicSR's ``parse_options`` reads ``sys.argv``."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _own_log() -> Iterator[None]:
    """Inside, BasicSR's logger is new: it opens the file its pipeline names, and writes nothing to the terminal.

    BasicSR sets its logger up once per process; a second run would write into the first one's file.
    """
    logger = logging.getLogger("basicsr")
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    known = dict(basicsr_logger.initialized_logger)
    logger.handlers = []
    basicsr_logger.initialized_logger.clear()
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            yield
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)
        basicsr_logger.initialized_logger.clear()
        basicsr_logger.initialized_logger.update(known)
