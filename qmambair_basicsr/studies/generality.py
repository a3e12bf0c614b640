"""Whether DLS and RFA help beyond MambaIR: eight networks by one recipe; ``tools.generality`` is the command."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from ..data.image_memory import images_in_memory
from ..inference.backends import device_of
from ..recipes.generality_table import EVERYWHERE, METHODS, NETWORKS
from ..recipes.option_contents import stem, test_options, train_options
from ..recipes.option_table import TASKS
from .ablation_studies import Run
from .generality_report import FINISHED, FULL, MISSING, Case, Row, write_report
from .reduced_tasks import TRAINING_SET, prepare, small_data
from .side_by_side import NOT_STARTED, Job, Outcome, seconds_left, side_by_side
from .study_runs import Store, execute, forget, stale_results, stale_training, training_due, unfinished

__all__ = ["run"]

# one recipe: the loss, the optimizer and its steps, batches and patches are the same everywhere
BATCH, PATCH = 4, 24
LEARNING_RATES = {True: 1e-3, False: 5e-4}  # from scratch, and from full-precision weights
COSTS = {FULL: 1.0, "QuantSR": 3.0}  # of an iteration, in those of full precision; other methods take 1.6
IMAGE_MEMORY = 1 << 30  # bytes


def cases(networks: Sequence[str], bits: Sequence[int], seeds: int) -> Iterator[Case]:
    """Every training of a study; a full-precision one before those that start from it."""
    for network in (NETWORKS[name] for name in networks):
        for seed in range(seeds):
            yield Case(network, FULL, 32, seed)
            widths = (width for width in bits if width != 32)
            yield from (Case(network, method, width, seed) for width in widths for method in network.methods)


def case_name(case: Case) -> str:
    """Of its option file and its folder."""
    known = stem("train", case.network.family, case.network.task, case.bits, METHODS.get(case.method, ""))
    return f"{known.removeprefix('train_')}{'_dlsinputs' if case.method == EVERYWHERE else ''}_seed{case.seed}"


def _weights(case: Case) -> str:
    return f"experiments/{case_name(case)}/models/net_g_latest.pth"


def _start(case: Case) -> Case | None:
    """The training whose weights a case starts from."""
    return None if case.bits == 32 else Case(case.network, FULL, 32, case.seed)


def _of_network(make: Callable[..., dict], case: Case) -> dict:
    """Options of the published network with the data, scale and metrics of the case's task, and the case's network."""
    network, key = case.network, METHODS.get(case.method, "")
    opt = make(network.family, TASKS[network.published], case.bits, key)
    if network.published != network.task:
        given = make("MambaIR", TASKS[network.task], 32)
        opt |= {key: given[key] for key in ("datasets", "scale", "val")}
    opt["name"], opt["manual_seed"] = case_name(case), case.seed
    opt["network_g"] |= network.network
    if case.method == EVERYWHERE:
        opt["network_g"]["quant"]["act"]["type"] = "DLS"
    return opt


def _gpus(device: str) -> int:
    return 0 if device == "cpu" else 1


def training(case: Case, iterations: int, device: str = "cpu") -> Run:
    """A training: the published network made small, with the study's recipe.

    Args:
        case: which.
        iterations: of it.
        device: ``cpu``, or a CUDA device.
    """
    opt = _of_network(train_options, case)
    data = small_data(opt, case.network.task) | {"num_worker_per_gpu": 0}
    opt["datasets"] = {"train": data | {"gt_size": PATCH * opt["scale"], "batch_size_per_gpu": BATCH}}
    start = _start(case)
    opt["path"]["pretrain_network_g"] = _weights(start) if start else None
    opt["num_gpu"] = _gpus(device)
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [iterations], "restart_weights": [1], "eta_min": 1e-6}
    opt["train"] = {
        "ema_decay": 0,
        "optim_g": {
            "type": "Adam",
            "lr": LEARNING_RATES[start is None],
            "weight_decay": 0.0,
            "betas": [0.9, 0.99],
        },
        "scheduler": cosine,
        "total_iter": iterations,
        "warmup_iter": -1,
        "grad_clip": 1.0,
        "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
    }
    opt["logger"] |= {"print_freq": 100, "save_checkpoint_freq": max(iterations // 4, 1), "use_tb_logger": False}
    opt.pop("val")
    return Run(opt["name"], ((case.network.family, case.method),), case.bits, case.seed, opt)


def test_of(case: Case, sets: Sequence[str], device: str = "cpu") -> dict:
    """Options of the test of a case's weights."""
    opt = _of_network(test_options, case)
    first = next(iter(opt["datasets"].values()))
    known = {section["name"]: section for section in opt["datasets"].values()}
    own = {name: first | {"name": name, "dataroot_gt": f"datasets/{name}/HR"} for name in sets}
    opt["datasets"] = {f"test_{i}": known.get(name, own[name]) for i, name in enumerate(sets, start=1)}
    opt["path"]["pretrain_network_g"] = _weights(case)
    opt["num_gpu"] = _gpus(device)
    opt["val"] |= {"save_img": False, "pbar": False}
    return opt


@dataclass(frozen=True)
class Work:
    """What has to be done for a case; may travel to another process.

    Attributes:
        run, test: trainings and tests, see :func:`training` and :func:`test_of`.
        folder: working folder.
        any_code: see ``Store``.
        device: ``cpu``, or a CUDA device.
    """

    run: Run
    test: dict
    folder: Path
    any_code: bool
    device: str

    def store(self) -> Store:
        """Where its results are kept."""
        return Store(self.folder, self.any_code)

    def __call__(self) -> bool:
        """Do it and keep what comes of it; returns whether it went well."""
        store = self.store()
        if self.device != "cpu":
            import torch

            torch.cuda.set_device(self.device if ":" in self.device else f"{self.device}:0")
        with working_in(self.folder), images_in_memory(IMAGE_MEMORY), store.claimed(self.run) as mine:
            if not mine:
                store.fail(self.run, RuntimeError("another process is at work on it; call again when that has ended"))
                return False
            try:
                execute(self.run, self.test, store)
            except Exception as err:
                store.fail(self.run, err)
                return False
        return True


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Relative paths of options begin there."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _said(outcome: Outcome, store: Store) -> str:
    """What became of a job, in words; a process that was killed could not write its own."""
    name = outcome.job.name
    if outcome.code is NOT_STARTED:
        return f"{name}: not started, since {outcome.job.after} failed"
    if outcome.code == 0:
        results = store.read(name)["results"]
        return f"{name}: " + ", ".join(f"{key} {value['metrics']['psnr']:.2f} dB" for key, value in results.items())
    return f"{name}: FAILED: {store.failures()[name]}"


def unfinished_cases(works: dict[str, tuple[Case, Work]]) -> set[str]:
    """Names of the cases that lack figures, have stale ones, or start from weights that are to be made (anew)."""
    lacking = set()
    for name, (case, work) in works.items():
        start, store = _start(case), work.store()
        begins = start and training_due(works[case_name(start)][1].run, store)
        if begins or unfinished(work.run, work.test, store):
            lacking.add(name)
    return lacking


def run_all(works: dict[str, tuple[Case, Work]], jobs: int, report: Callable[[], object]) -> int:
    """Do what is not finished; one failure does not stop the others.

    Args:
        works: by the name of the case.
        jobs: processes at the same time.
        report: called as each ends.

    Returns:
        How many failed or could not be started.
    """
    todo, lacking = [], unfinished_cases(works)
    for name, (case, work) in works.items():
        store = work.store()
        if name not in lacking:
            continue
        if reason := stale_training(work.run, store) or stale_results(work.run, work.test, store):
            sys.stderr.write(f"{name}: done again: {reason}\n")
        start = _start(case)
        cost = work.run.opt["train"]["total_iter"] * case.network.cost * COSTS.get(case.method, 1.6)
        todo.append(Job(name, work, case_name(start) if start else None, cost))
    outcomes: list[Outcome] = []
    begin = time.monotonic()
    with tqdm(total=len(works), initial=len(works) - len(todo), unit="run", disable=None) as bar:
        for outcome in side_by_side(todo, jobs):
            outcomes.append(outcome)
            run, store = works[outcome.job.name][1].run, works[outcome.job.name][1].store()
            if outcome.code is not NOT_STARTED and outcome.code < 0:
                store.fail(run, RuntimeError(f"its process was ended by signal {-outcome.code}"))
            left = seconds_left(todo, outcomes, jobs)
            times = f"{time.monotonic() - begin:.0f} s" + (f", about {left:.0f} s left" if left is not None else "")
            bar.update()
            bar.write(f"{_said(outcome, store)} ({len(outcomes)}/{len(todo)}, {times})", file=sys.stderr)
            report()
    return sum(outcome.code != 0 for outcome in outcomes)


def run(args: argparse.Namespace, prepare_data: Callable[[list[str]], int]) -> int:
    """The study that ``tools.generality`` was asked for; what is finished is not repeated.

    Args:
        args: of the command.
        prepare_data: the command of that name.

    Returns:
        How many trainings failed.

    Raises:
        ValueError: data that cannot be prepared, or are not there; a device that is not there.
    """
    if device_of(args.device).type not in ("cpu", "cuda"):
        raise ValueError(f"--device {args.device}: networks are trained on cpu or cuda")
    folder = args.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if args.source is not None and not args.read_only:
        prepare(args.source.resolve(), folder, prepare_data, args.sets)
    for name in (TRAINING_SET, *args.sets):
        if not args.read_only and not (folder / "datasets" / name).is_dir():
            raise ValueError(f"{folder / 'datasets' / name} is not there; --source says what to make it from")
    lengths = {True: args.iterations, False: args.quantized_iterations}
    works = {
        case_name(case): (
            case,
            Work(
                training(case, lengths[case.bits == 32], args.device),
                test_of(case, args.sets, args.device),
                folder,
                args.any_code,
                args.device,
            ),
        )
        for case in cases(args.networks, args.bits, args.seeds)
    }
    store = Store(folder, args.any_code)
    report = functools.partial(_report, works, store, args)
    failed = 0
    if not args.read_only:
        with working_in(folder):
            for _, work in works.values() if args.rerun else ():
                forget(work.run, store, training=True)
            failed = run_all(works, args.jobs, functools.partial(report, drawn=False))
    sys.stdout.write(report(drawn=True))
    return failed


def _report(works: dict[str, tuple[Case, Work]], store: Store, args: argparse.Namespace, drawn: bool) -> str:
    """Write the tables of what is finished; returns ``generality.md``."""
    failures, rows = store.failures(), []
    with working_in(store.root):
        lacking = unfinished_cases(works)
        for name, (case, _) in works.items():
            if name in lacking:
                rows.append(Row(case, state=f"FAILED: {failures[name]}" if name in failures else MISSING))
            else:
                rows.append(Row(case, store.read(name), FINISHED))
    recipe = (
        f"Photographs of {TRAINING_SET}; batches of {BATCH} patches of {PATCH} x {PATCH} pixels (before enlargement), Adam, "
        f"cosine schedule, L1 loss: {args.iterations} iterations from scratch at {LEARNING_RATES[True]:g}, then "
        f"{args.quantized_iterations} quantized ones at {LEARNING_RATES[False]:g}; seeds {', '.join(map(str, range(args.seeds)))}."
    )
    return write_report(rows, store.root, [n for n in args.bits if n != 32], args.sets, recipe, drawn)
