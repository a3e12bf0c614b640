"""One network quantized by every post-training method, on a budget, and tested; ``tools.ptq_rows`` is the command."""

from __future__ import annotations

import argparse
import copy
import itertools
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from basicsr.archs import build_network
from torch import Tensor

from .. import checkpoints
from ..data.image_memory import images_in_memory
from ..inference.backends import device_of
from ..inference.networks import load_full_precision
from ..models.calibration_data import calibration_batches
from ..ptq import build_method
from ..ptq.blockwise import BlockReconstruction
from ..ptq.method import PTQ_METHODS, require_ordinary
from ..ptq.training import TrainedMethod
from ..recipes.option_contents import stem
from ..recipes.option_table import TASKS
from ..recipes.ptq_contents import ptq_options, ptq_test_options
from .ablation_run import Store, execute, forget, stale_results, unfinished, weights_file
from .ablation_studies import Run
from .generality import working_in
from .ptq_rows_report import Reported, write_report

__all__ = ["run"]

FAMILY = "MambaIRv2Light"
EIGHT = 8  # images of a calibration batch, as in the option files
MOST_ROUTING = 0.1  # of the iterations: SPR2Q's last ones train the routing alone
IMAGE_MEMORY = 1 << 30  # bytes

logger = logging.getLogger("ptq_rows")


def rows(args: argparse.Namespace) -> Iterator[tuple[int, int, str]]:
    """Scale, bits and method of every row, in the order in which they are made; one bit is SPR2Q's alone."""
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


def clock(device: torch.device) -> float:
    """Seconds that budgets count in: of processor time, which other programs do not take; on a GPU, of time."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.monotonic()


def iterations_that_fit(method: TrainedMethod, images: Tensor, seconds: float, most: int) -> int:
    """How many iterations a method can make in a time.

    Two are timed on a copy, in the middle, where a method that goes block by block begins with a block of average cost.

    Args:
        method: calibrated, with a plan.
        images: of one iteration.
        seconds: see :func:`clock`.
        most: not more than these.
    """
    trial = copy.deepcopy(method)
    times = []
    for _ in range(2):
        begun = clock(images.device)
        trial.step(trial.total // 2, images)
        times.append(clock(images.device) - begun)
    units = len(method.units) if isinstance(method, BlockReconstruction) else 1
    at_first = max(0.0, times[0] - times[1]) * units
    return max(least_iterations(method), min(most, int((seconds - at_first) / max(times[1], 1e-9))))


def least_iterations(method: TrainedMethod) -> int:
    """One for each block; end to end, one for each of two stages."""
    return len(method.units) if isinstance(method, BlockReconstruction) else 2


def quantize_row(run: Run, store: Store) -> dict:
    """Quantize a row's network and write its weights.

    Args:
        run: of :func:`options_of`.
        store: see :class:`Store`.

    Returns:
        What its record holds of that: iterations, images, seconds (:func:`clock`), options of the method.

    Raises:
        ValueError: a loss is not finite.
    """
    opt, device = run.opt, torch.device("cuda" if run.opt["num_gpu"] else "cpu")
    begun = clock(device)
    net = build_network(copy.deepcopy(opt["network_g"])).eval()
    load_full_precision(net, opt["path"]["pretrain_network_g"]).to(device)
    shapes = {key: tensor.shape for key, tensor in net.state_dict().items()}
    method = build_method(opt["ptq"]["method"])
    data, seed, calibration = _training_data(opt), opt["manual_seed"], opt["ptq"]["calibration"]
    drawn = calibration_batches(data, calibration["batches"], calibration["batch_size"], seed)
    batches = [batch.to(device) for batch in drawn]
    iterations, losses = 0, {}
    if method.trains:
        iterations, losses = _train(method, net, batches, opt, begun)
    else:
        method.apply(net, batches)
    require_ordinary(net, type(method).__name__, shapes)
    end_to_end = method.trains and not isinstance(method, BlockReconstruction)
    checkpoints.write_file({"params": net.cpu().state_dict()}, weights_file(run, store))
    return {
        "method": {"type": type(method).__name__, **method.settings},
        "iterations": iterations,
        "losses": losses,
        "images": {
            "calibration": sum(map(len, batches)),
            "training": iterations * data["batch_size_per_gpu"] if end_to_end else 0,
        },
        "seconds": round(clock(device) - begun, 3),
        "threads": torch.get_num_threads(),
    }


def _training_data(opt: Mapping) -> dict:
    """The section as BasicSR hands it to a data set."""
    return {**opt["datasets"]["train"], "phase": "train", "scale": opt["scale"]}


def _train(
    method: TrainedMethod, net: torch.nn.Module, batches: list[Tensor], opt: Mapping, begun: float
) -> tuple[int, dict[str, float]]:
    """From beginning to end; returns the number of iterations, and each loss averaged over the last twentieth."""
    data, seed, device = _training_data(opt), opt["manual_seed"], batches[0].device
    most, batch = int(opt["train"]["total_iter"]), data["batch_size_per_gpu"]
    method.open(net)
    method.calibrate(batches)
    _plan(method, max(most, least_iterations(method)))
    (trial,) = calibration_batches(data, 1, batch, seed + 1)
    left = 60 * opt["train"]["minutes"] - (clock(device) - begun)
    total = iterations_that_fit(method, trial.to(device), left, most)
    _plan(method, total)
    logger.info("%s: %d iterations", opt["name"], total)
    kept: list[dict[str, float]] = []
    for i, images in enumerate(calibration_batches(data, total, batch, seed + 1)):
        losses = method.step(i, images.to(device))
        bad = [name for name, loss in losses.items() if not abs(loss) < float("inf")]
        if bad:
            raise ValueError(f"{bad[0]} is {losses[bad[0]]} at iteration {i + 1}")
        kept = [*kept, losses][-max(1, total // 20) :]
    method.finish(net)
    return total, {name: sum(entry[name] for entry in kept) / len(kept) for name in kept[-1]}


def _plan(method: TrainedMethod, total: int) -> None:
    if "routing" in method.settings:
        method.settings["routing"] = min(int(method.settings["routing"]), max(1, int(MOST_ROUTING * total)))
    method.plan(total)


def run(args: argparse.Namespace) -> int:
    """The rows that ``tools.ptq_rows`` was asked for; what is finished is not repeated.

    Args:
        args: of the command.

    Returns:
        How many failed.

    Raises:
        ValueError: images, weights or the device are not there; one checkpoint for several scales.
    """
    device = device_of(args.device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {args.device}: rows are made on cpu or cuda")
    if device.index is not None:
        torch.cuda.set_device(device)
    if args.checkpoint is not None and len(args.scales) > 1:
        raise ValueError(f"--checkpoint is of one scale, and --scales names {len(args.scales)}")
    works = {key: options_of(*key, args) for key in rows(args)}
    if not args.read_only:
        _check_files(works.values())
    store = Store(args.out.resolve(), args.any_code)
    failed = 0
    with working_in(store.root), images_in_memory(IMAGE_MEMORY):
        for made, test in works.values() if not args.read_only else ():
            if args.rerun:
                forget(made, store, training=True)
            if not unfinished(made, test, store):
                continue
            if reason := stale_results(made, test, store):
                logger.info("%s: done again: %s", made.name, reason)
            failed += not _make(made, test, store)
            write_report(_reported(works, store), store.root, args.sets)
        sys.stdout.write(write_report(_reported(works, store), store.root, args.sets))
    return failed


def _make(made: Run, test: dict, store: Store) -> bool:
    """One row; returns whether it went well."""
    with store.claimed(made) as mine:
        if not mine:
            logger.info("%s: another process is at work on it", made.name)
            return True
        try:
            record = execute(made, test, store, quantize_row)
        except Exception as err:
            store.fail(made, err)
            logger.info("%s: FAILED: %s", made.name, err)
            return False
    shown = ", ".join(f"{name} {value['metrics']['psnr']:.2f} dB" for name, value in record["results"].items())
    logger.info("%s: %s (%.0f s to quantize)", made.name, shown, record["seconds"])
    return True


def _check_files(works: Iterable[tuple[Run, dict]]) -> None:
    for made, test in works:
        wanted = [made.opt["path"]["pretrain_network_g"]]
        for section in (made.opt["datasets"]["train"], *test["datasets"].values()):
            wanted += [section["dataroot_gt"], section["dataroot_lq"]]
        for path in wanted:
            if not Path(path).exists():
                raise ValueError(f"{path} is not there; see --help for what is needed")


def _reported(works: Mapping[tuple[int, int, str], tuple[Run, dict]], store: Store) -> list[Reported]:
    """Every row, with its record where it has one that is of what is asked for."""
    failures, found = store.failures(), []
    for (scale, bits, method), (made, test) in works.items():
        reason, record = stale_results(made, test, store), store.read(made.name)
        if reason:
            record = {}
        found.append(Reported(scale, bits, method, test, record, failures.get(made.name, reason or "")))
    return found
