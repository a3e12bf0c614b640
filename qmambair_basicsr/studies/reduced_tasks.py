"""A small network trained and tested on every restoration task; ``tools.reduced_tasks`` is the command."""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
import yaml
from basicsr.archs import build_network
from basicsr.data import build_dataset
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from tqdm import tqdm

from .. import made_from
from ..checkpoints import write_file
from ..data.matlab_resize import imresize
from ..files import read_record, write_text
from ..recipes.option_contents import stem, test_options, train_options
from ..recipes.option_table import TASKS
from ..recipes.reduced_table import ALL_SETS, REDUCED, Reduced
from .claims import claimed
from .reduced_start import interpolate_at_start
from .result_log import latest_log, read_made_from, read_results

__all__ = ["run"]

logger = logging.getLogger("reduced_tasks")

TRAINING_SET = "BSDS400T91"
START = "experiments/interpolation"


def _run(work: Path, module: str, *argv: str) -> None:
    """One of the repository's commands in the working folder."""
    command = [sys.executable, "-W", "ignore", "-m", f"qmambair_basicsr.{module}", *argv]
    logger.info("%s", " ".join(["python", *command[3:]]))
    subprocess.run(command, cwd=work, check=True)


def prepare(images: Path, work: Path, prepare_data: Callable[[list[str]], int], sets: Sequence[str] = ALL_SETS) -> None:
    """Image sets in the folder layout of the option files, by ``prepare_data`` (in this process, which is quicker).

    Args:
        images: see the command's docstring.
        work: the sets come into ``datasets`` in it.
        prepare_data: the command of that name.
        sets: test sets to prepare; the training set always is.

    Raises:
        ValueError: a set cannot be made; the reason is logged.
    """
    steps = [["sr", "--set", TRAINING_SET, "--scales", "2", "--input", *sorted(images.glob("train/*"))]]
    for name in (name for name in ("Set5", "Set14", "B100") if name in sets):
        steps.append(["sr", "--set", name, "--scales", "2", "--input", images / "test" / name / "HR"])
    for name in (name for name in ("McMaster", "classic5", "LIVE1") if name in sets):
        steps.append(["sr", "--set", name, "--scales", "--input", images / "test" / name / "HR"])
    if "CBSD68" in sets:
        steps.append(["subset", "--set", "CBSD68", "--input", images / "test" / "B100" / "HR"])
    for step in steps:
        if prepare_data([*map(str, step), "--root", str(work / "datasets"), "--workers", "1"]):
            raise ValueError(f"prepare_data {' '.join(map(str, step))} failed")


def small_tests(opt: dict, task: str, images: Path, sets: Sequence[str]) -> dict:
    """The file's test sets of these names; real noise is tested on CC15."""
    if task == "RealDN":
        pair = {"dataroot_gt": str(images / "test/CC15/GT"), "dataroot_lq": str(images / "test/CC15/LQ")}
        return {"test_1": opt["datasets"]["test_1"] | {"name": "CC15"} | pair}
    return {key: section for key, section in opt["datasets"].items() if section["name"] in sets}


def small_data(opt: dict, task: str) -> dict:
    """The training set of shipped options on the photographs at hand, with patches and batches that a CPU takes."""
    data = opt["datasets"]["train"] | {
        "name": TRAINING_SET,
        "dataroot_gt": f"datasets/{TRAINING_SET}/HR",
        "gt_size": 48 if opt["scale"] > 1 else 32,
        "batch_size_per_gpu": 4 if opt["scale"] > 1 else 2,
        "num_worker_per_gpu": 1,
    }
    if task == "RealDN":  # no photographed training pairs: camera noise is simulated on clean photographs
        data = {k: v for k, v in data.items() if k not in ("dataroot_lq", "filename_tmpl")}
        data |= {"type": "CameraNoiseDataset", "quality": [85, 90, 95]}
    elif "dataroot_lq" in data:
        data["dataroot_lq"] = f"datasets/{TRAINING_SET}/LR_bicubic/X2"
    return data


def train_file(reduced: Reduced, bits: int, iterations: int) -> dict:
    """The shipped training options, made small."""
    opt = train_options(reduced.family, TASKS[reduced.task], bits)
    opt["network_g"] |= reduced.network
    opt["datasets"] = {"train": small_data(opt, reduced.task)}
    lr = reduced.lr if bits == 32 else reduced.lr / 4
    opt["path"]["pretrain_network_g"] = f"{START}/{reduced.task}.pth" if opt["scale"] > 1 and bits == 32 else None
    if bits != 32:
        name = stem("train", reduced.family, reduced.task, 32)
        opt["path"]["pretrain_network_g"] = f"experiments/{name}/models/net_g_latest.pth"
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [iterations], "restart_weights": [1], "eta_min": 1e-6}
    opt["train"] |= {"scheduler": cosine, "total_iter": iterations, "ema_decay": 0, "grad_clip": 1.0}
    opt["train"]["optim_g"]["lr"] = lr
    opt["logger"] |= {"print_freq": 20, "save_checkpoint_freq": iterations, "use_tb_logger": False}
    opt.pop("val")
    return opt


def test_file(reduced: Reduced, bits: int, images: Path, sets: Sequence[str] = ALL_SETS) -> dict:
    """The shipped test options for the small network."""
    opt = test_options(reduced.family, TASKS[reduced.task], bits)
    opt["network_g"] |= reduced.network
    opt["datasets"] = small_tests(opt, reduced.task, images, [name for name in reduced.sets if name in sets])
    opt["path"]["pretrain_network_g"] = (
        f"experiments/{stem('train', reduced.family, reduced.task, bits)}/models/net_g_latest.pth"
    )
    opt["val"] |= {"save_img": False, "pbar": False}
    return opt


def input_quality(section: dict, opt: dict) -> dict[str, float]:
    """Metrics of a test set's inputs, enlarged by MATLAB bicubic where they are smaller than the ground truth."""
    dataset = build_dataset(section | {"phase": "test", "scale": opt["scale"]})
    values: dict[str, list[float]] = {name: [] for name in opt["val"]["metrics"]}
    for item in tqdm((dataset[i] for i in range(len(dataset))), total=len(dataset), desc=section["name"], disable=None):
        images = [tensor2img(item[key]) for key in ("lq", "gt")]
        if opt["scale"] > 1:
            images[0] = imresize(images[0], opt["scale"])
        for name, metric in opt["val"]["metrics"].items():
            values[name].append(calculate_metric({"img": images[0], "img2": images[1]}, metric))
    return {name: float(np.mean(v)) for name, v in values.items()}


def _write(work: Path, opt: dict) -> Path:
    file = work / f"{opt['name']}.yml"
    write_text(file, yaml.safe_dump(opt, sort_keys=False))
    return file


def run_task(
    reduced: Reduced,
    bits: int,
    iterations: int,
    images: Path,
    work: Path,
    sets: Sequence[str] = ALL_SETS,
    rerun: bool = False,
) -> dict[str, dict[str, float]]:
    """Train and test one small network; what an earlier call finished with the same inputs is not repeated.

    Args:
        reduced, bits: the network.
        iterations: of training.
        images: see the module's docstring.
        work: folder to work in.
        sets: test sets.
        rerun: repeat it all the same.

    Returns:
        ``{set: {metric: value}}``.
    """
    test = test_file(reduced, bits, images, sets)
    train = train_file(reduced, bits, iterations)
    start = train["path"]["pretrain_network_g"]
    if start is not None and bits == 32 and not (work / start).is_file():
        torch.manual_seed(0)
        net = interpolate_at_start(build_network(train["network_g"]))
        write_file({"params": net.state_dict()}, work / start)
    return run_files(train, test, work, rerun)


def run_files(train: dict, test: dict, work: Path, rerun: bool = False) -> dict[str, dict[str, float]]:
    """Train and test by these options in a working folder; what is finished with the same inputs is not repeated.

    Returns:
        ``{set: {metric: value}}``.
    """
    experiment = work / "experiments" / train["name"]
    # not in the experiment's folder, which BasicSR renames when a training begins
    remembered, made = work / "made_from" / f"{train['name']}.json", made_from.of_training(train, work)
    if rerun or (reason := _stale(experiment, remembered, made)):
        logger.info("%s: trained anew: %s", train["name"], "--rerun" if rerun else reason)
        shutil.rmtree(experiment, ignore_errors=True)
    if not (work / test["path"]["pretrain_network_g"]).is_file():
        write_text(remembered, json.dumps(made))
        _run(work, "train", "-opt", str(_write(work, train)), "--auto_resume")
    wanted = {section["name"] for section in test["datasets"].values()}
    log = latest_log(work / "results", test["name"])
    results = read_results(log)[0] if log else {}
    changed = made_from.differences(read_made_from(log), made_from.of_test(test, work)) if log else []
    if wanted <= results.keys() and not changed and not rerun:
        return results
    if changed:
        logger.info("%s: tested anew: %s", test["name"], made_from.reason(changed))
    _run(work, "test", "-opt", str(_write(work, test)))
    return read_results(latest_log(work / "results", test["name"]))[0]


def _stale(experiment: Path, remembered: Path, made: Mapping) -> str | None:
    """Why a training that has begun must begin anew; None where it need not, or has not begun."""
    if not any(experiment.glob("*/*.pth")) and not any(experiment.glob("*/*.state")):
        return None
    changed = made_from.differences(read_record(remembered), made)
    return made_from.reason(changed) if changed else None


def table(rows: Sequence[tuple]) -> str:
    """Markdown table of ``(task, set, W/A, PSNR of the input, PSNR of the result)``."""
    lines = ["| task | set | W/A | input | result | gain |", "|---|---|---|---:|---:|---:|"]
    for task, name, bits, before, after in rows:
        lines.append(f"| {task} | {name} | {bits}/{bits} | {before:.2f} | {after:.2f} | {after - before:+.2f} |")
    return "\n".join(lines)


def finished_rows(
    images: Path, work: Path, names: Sequence[str], widths: Sequence[int], sets: Sequence[str]
) -> list[tuple]:
    """Rows of :func:`table` of all tasks whose results are there and not stale, of this process and of others."""
    rows = []
    for bits in widths:
        for reduced in (REDUCED[name] for name in names):
            test = test_file(reduced, bits, images, sets)
            log = latest_log(work / "results", test["name"])
            fresh = log and not made_from.differences(read_made_from(log), made_from.of_test(test, work))
            results = read_results(log)[0] if fresh else {}
            for section in test["datasets"].values():
                before = _remembered_input(section, test, work)
                if section["name"] in results and before is not None:
                    figures = before["psnr"], results[section["name"]]["psnr"]
                    rows.append((reduced.task, section["name"], bits, *figures))
    return rows


def _input_file(section: Mapping, test: Mapping, work: Path) -> Path:
    """Where the metrics of a set's inputs are kept: they depend on images and metrics, not on networks."""
    kept = made_from.digest_of([made_from.data_of(section, work), test["scale"], test["val"]["metrics"]])
    return work / "inputs" / f"{section['name']}_{kept}.json"


def _remembered_input(section: Mapping, test: Mapping, work: Path) -> dict[str, float] | None:
    return read_record(_input_file(section, test, work))


def measure_inputs(test: dict, work: Path) -> None:
    """Take and keep the metrics of the inputs of all sets of a test file, unless they are there."""
    for section in test["datasets"].values():
        if _remembered_input(section, test, work) is None:
            # absolute paths stay
            roots = {k: str(work / v) for k, v in section.items() if k.startswith("dataroot")}
            write_text(_input_file(section, test, work), json.dumps(input_quality(section | roots, test)))


def run(args: argparse.Namespace, prepare_data: Callable[[list[str]], int]) -> int:
    """Every task that ``tools.reduced_tasks`` was asked for and no other process is at.

    Args:
        args: of the command.
        prepare_data: the command of that name.

    Returns:
        0 when every task has its results and each is better than its input, else 1.

    Raises:
        ValueError: data that cannot be prepared.
    """
    images, work, sets = args.source.resolve(), args.out.resolve(), args.sets or ALL_SETS
    for folder in ("claims", "inputs"):
        (work / folder).mkdir(parents=True, exist_ok=True)
    with claimed(work / "claims" / "data", wait=True):
        prepare(images, work, prepare_data, sets)
    elsewhere = 0
    for reduced in (REDUCED[name] for name in args.tasks):
        # all widths of a task: one starts from another's weights
        with claimed(work / "claims" / reduced.task) as mine:
            if not mine:
                logger.info("%s: left to another process, which is at work on it", reduced.task)
                elsewhere += 1
                continue
            for bits in args.bits:
                run_task(reduced, bits, args.iterations, images, work, sets, args.rerun)
                measure_inputs(test_file(reduced, bits, images, sets), work)
                rows = finished_rows(images, work, args.tasks, args.bits, sets)
                write_text(work / "results.md", table(rows) + "\n")
    if elsewhere:
        logger.info("%d task(s) are left to other processes; call again when they have ended", elsewhere)
    rows = finished_rows(images, work, args.tasks, args.bits, sets)
    sys.stdout.write(table(rows) + "\n")
    wanted = sum(len(test_file(REDUCED[name], b, images, sets)["datasets"]) for b in args.bits for name in args.tasks)
    if len(rows) < wanted:
        logger.info("%d of %d rows have no figures", wanted - len(rows), wanted)
    return 0 if len(rows) == wanted and all(after > before for *_, before, after in rows) else 1
