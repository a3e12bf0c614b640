"""The ablation studies of the Q-MambaIR paper from option files to tables; ``tools.ablation`` is their command."""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from .. import schema
from ..data.image_memory import images_in_memory
from ..recipes.option_data import DATA
from ..recipes.option_files import read_options
from ..schema.forced import apply
from .ablation_report import collect, write_plot, write_tables
from .ablation_studies import Run, plan
from .study_runs import Store, execute, forget, stale_results, stale_training, unfinished

__all__ = ["run", "test_options", "training_options"]


def forced(opt: dict, entries: Sequence[str]) -> dict:
    """Options with ``KEY:KEY=VALUE`` entries applied, as train and test take them.

    Raises:
        OptionError: an entry that is none, or a section that the file does not have.
    """
    opt = copy.deepcopy(opt)
    if mistakes := apply(opt, entries):
        raise schema.error("--force_yml", mistakes)
    return opt


def _moved(section: Mapping, root: Path | None) -> dict:
    """A data set section whose folders below ``datasets/`` lie below ``root``."""
    section = dict(section)
    for key, value in section.items():
        if root is not None and key.startswith("dataroot") and Path(value).parts[:1] == ("datasets",):
            section[key] = str(root.joinpath(*Path(value).parts[1:]))
    return section


def training_options(opt: dict, iterations: int | None, root: Path | None, start: Path | None = None) -> dict:
    """The file's training, without validation, with another length, place of data and start.

    Args:
        opt: options as read.
        iterations: ``total_iter``; milestones or periods of the schedule shrink with it. None keeps the file's.
        root: see :func:`_moved`.
        start: checkpoint that the training starts from. None keeps the file's.

    Raises:
        ValueError: no training options.
    """
    opt = copy.deepcopy(opt)
    if "train" not in opt or "train" not in opt.get("datasets", {}):
        raise ValueError("the option file has no train section; give a training option file")
    train = opt["train"]
    share = 1.0 if iterations is None else iterations / train["total_iter"]
    train["total_iter"] = iterations or train["total_iter"]
    for key in ("milestones", "periods"):
        if key in train.get("scheduler", {}):
            train["scheduler"][key] = [max(1, round(n * share)) for n in train["scheduler"][key]]
    if start is not None:
        opt["path"] = dict(opt["path"]) | {"pretrain_network_g": str(start)}
    # in this process: images stay decoded, and no worker has to be started for every variant
    opt["datasets"] = {"train": _moved(opt["datasets"]["train"], root) | {"num_worker_per_gpu": 0}}
    opt.pop("val", None)
    opt["logger"] = dict(opt["logger"]) | {"use_tb_logger": False}
    opt["logger"].pop("wandb", None)
    opt["quant_train"] = dict(opt.get("quant_train") or {}) | {"health_freq": 0}
    return opt


def test_options(opt: dict, sets: Sequence[str] | None, root: Path | None, middle: int | None = None) -> dict:
    """The test file's options for the wanted sets, without saved images.

    Args:
        opt: options as read.
        sets: names of its sets, or of others in ``recipes/option_data.py`` (``BSDS400T91 val``: photographs that are not
            trained on, if the training is given the rest); None for its own.
        root: see :func:`_moved`.
        middle: pixels of the ground truth's middle that are tested. None tests whole images.

    Raises:
        ValueError: no test options, or a set that neither has.
    """
    opt = copy.deepcopy(opt)
    if "metrics" not in (opt.get("val") or {}):
        raise ValueError("the test option file has no val: metrics")
    known = {section["name"]: key for key, section in opt["datasets"].items()}
    for name in sets or ():
        if name not in known and name in DATA:
            known[name] = f"test_{len(known) + 1}"
            opt["datasets"][known[name]] = DATA[name].options(opt["scale"])
        if name not in known:
            raise ValueError(f"--sets {name}: the test option file has {', '.join(known)}")
    wanted = {known[name] for name in sets or known}
    opt["datasets"] = {key: _moved(section, root) for key, section in opt["datasets"].items() if key in wanted}
    if middle is not None:
        for section in opt["datasets"].values():
            section["middle"] = middle
    opt["val"] |= {"save_img": False, "pbar": False}
    return opt


def run_all(runs: Sequence[Run], test: Mapping, store: Store, report) -> int:
    """Execute what is not finished; one failure does not stop the others.

    Args:
        runs: see ``plan``.
        test: test options.
        store: results.
        report: called after every run.

    Returns:
        How many failed.
    """
    pending = [run for run in runs if unfinished(run, test, store)]
    failed, elsewhere, start = 0, 0, time.monotonic()
    with tqdm(total=len(runs), initial=len(runs) - len(pending), unit="run", disable=None) as bar:
        for done, run in enumerate(pending, 1):
            study, variant = run.places[0]
            label = f"{study} / {variant}, {run.bits} bits, seed {run.seed}"
            bar.set_description(label)
            with store.claimed(run) as mine:
                if mine:
                    reason = stale_training(run, store) or stale_results(run, test, store)
                    said = attempt(run, test, store)
                    said += f"; done again: {reason}" if reason else ""
                    failed += said.startswith("FAILED")
                else:
                    said = "left to another process, which is at work on it"
                    elsewhere += 1
            bar.update()
            left = (time.monotonic() - start) / done * (len(pending) - done)
            bar.write(f"{label}: {said} ({done}/{len(pending)}, {left / 60:.0f} min left)", file=sys.stderr)
            report()
    if elsewhere:
        sys.stderr.write(f"{elsewhere} run(s) are left to other processes; call again when they have ended\n")
    return failed


def attempt(run: Run, test: Mapping, store: Store) -> str:
    """Execute a run and keep what comes of it.

    Returns:
        Its figures, or ``FAILED`` and the message.
    """
    try:
        results = execute(run, test, store)["results"]
    except Exception as err:
        store.fail(run, err)
        return f"FAILED: {type(err).__name__}: {(str(err).splitlines() or [''])[0]}"
    names = [section["name"] for section in test["datasets"].values()]
    return ", ".join(f"{n} " + " ".join(f"{v:.4g}" for v in results[n]["metrics"].values()) for n in names)


def listing(runs: Sequence[Run], test: Mapping, store: Store) -> str:
    """Listing of the runs: places, width, seed, folder, and whether each is finished."""
    lines = []
    for run in runs:
        state = "to do" if unfinished(run, test, store) else "finished"
        places = "; ".join(f"{study} / {variant}" for study, variant in run.places)
        lines.append(f"{run.name}  {state}  {places}")
    return "\n".join([*lines, f"{len(runs)} runs"]) + "\n"


def run(args: argparse.Namespace) -> int:
    """Run what ``tools.ablation`` was asked for.

    Returns:
        How many runs failed.

    Raises:
        ValueError: options that cannot be run.
    """
    test_file = args.test or args.opt.with_name(args.opt.name.replace("train_", "test_", 1))
    opt = training_options(read_options(args.opt, quantized=True), args.iterations, args.root, args.checkpoint)
    opt = forced(opt, args.force_yml)
    test = test_options(read_options(test_file), args.sets, args.root, args.middle)
    store = Store(args.out.resolve(), args.any_code)
    runs = plan(opt, args.studies, args.bits, args.seeds, args.variants)
    if args.list:
        sys.stdout.write(listing(runs, test, store))
        return 0
    sets = [section["name"] for section in test["datasets"].values()]

    def report() -> list:
        rows = collect(runs, store, sets)
        write_tables(rows, store, runs)
        return rows

    failed = 0
    if args.read_only:
        for run in list(runs):
            if reason := stale_results(run, test, store):
                runs.remove(run)
                sys.stderr.write(f"{run.name} is left out: its figures are of {reason}\n")
    else:
        for run in runs if args.rerun else ():
            forget(run, store, training=True)
        # what is wrong with all runs is said before the first
        first = copy.deepcopy(runs[0].opt)
        first["datasets"] |= test["datasets"]
        schema.check(first, str(args.opt))
        with images_in_memory(args.image_memory * 2**20):
            failed = run_all(runs, test, store, report)
    write_plot(report(), store.root)
    sys.stdout.write((store.root / "ablation.md").read_text(encoding="utf-8"))
    return failed
