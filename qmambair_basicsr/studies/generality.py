"""Whether DLS and RFA help beyond MambaIR: eight networks by one recipe; ``tools.generality`` is the command."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files import write_text
from ..recipes.generality_table import EVERYWHERE, METHODS, NETWORKS, Compared
from ..recipes.option_contents import stem, test_options, train_options
from ..recipes.option_table import TASKS
from .reduced_tasks import prepare, run_files, small_data, small_tests

__all__ = ["run"]

FULL = "FP"
OURS = "Q-MambaIR"
# one recipe: the loss, the optimizer and its steps, batches and patches are the same everywhere
BATCH, PATCH = 4, 24
LEARNING_RATES = {True: 1e-3, False: 5e-4}  # from scratch, and from full-precision weights


@dataclass(frozen=True)
class Case:
    """One training.

    Attributes:
        network: what is trained.
        method: name of a method, or ``FP``.
        bits: 32 for ``FP``.
        seed: of weights, patches and their order.
    """

    network: Compared
    method: str
    bits: int
    seed: int

    def name(self, phase: str) -> str:
        """Of its option file."""
        key = METHODS.get(self.method, "")
        known = stem(phase, self.network.family, self.network.task, self.bits, key)
        return f"{known}{'_dlsinputs' if self.method == EVERYWHERE else ''}_seed{self.seed}"


def cases(networks: Sequence[str], bits: Sequence[int], seeds: int) -> Iterator[Case]:
    """Every training of a study; a full-precision one before those that start from it."""
    for network in (NETWORKS[name] for name in networks):
        for seed in range(seeds):
            yield Case(network, FULL, 32, seed)
            yield from (Case(network, method, width, seed) for width in bits for method in network.methods)


def _common(opt: dict, case: Case, phase: str) -> dict:
    opt["name"], opt["manual_seed"] = case.name(phase), case.seed
    opt["network_g"] |= case.network.network
    if case.method == EVERYWHERE:
        opt["network_g"]["quant"]["act"]["type"] = "DLS"
    return opt


def train_file(case: Case, iterations: int) -> dict:
    """Options of a training: the shipped file's, made small, with the study's recipe.

    Args:
        case: which.
        iterations: of it.
    """
    network, key = case.network, METHODS.get(case.method, "")
    opt = _common(train_options(network.family, TASKS[network.task], case.bits, key), case, "train")
    data = small_data(opt, network.task)
    opt["datasets"] = {"train": data | {"gt_size": PATCH * opt["scale"], "batch_size_per_gpu": BATCH}}
    start = Case(network, FULL, 32, case.seed).name("train")
    full = case.bits == 32
    opt["path"]["pretrain_network_g"] = None if full else f"experiments/{start}/models/net_g_latest.pth"
    cosine = {"type": "CosineAnnealingRestartLR", "periods": [iterations], "restart_weights": [1], "eta_min": 1e-6}
    opt["train"] = {
        "ema_decay": 0,
        "optim_g": {"type": "Adam", "lr": LEARNING_RATES[full], "weight_decay": 0.0, "betas": [0.9, 0.99]},
        "scheduler": cosine,
        "total_iter": iterations,
        "warmup_iter": -1,
        "grad_clip": 1.0,
        "pixel_opt": {"type": "L1Loss", "loss_weight": 1.0, "reduction": "mean"},
    }
    opt["logger"] |= {"print_freq": 100, "save_checkpoint_freq": max(iterations // 4, 1), "use_tb_logger": False}
    opt.pop("val")
    return opt


def test_file(case: Case, images: Path, sets: Sequence[str]) -> dict:
    """Options of the test of a case's weights on those of its sets that were asked for."""
    network, key = case.network, METHODS.get(case.method, "")
    opt = _common(test_options(network.family, TASKS[network.task], case.bits, key), case, "test")
    wanted = [name for name in network.sets if name in sets]
    opt["datasets"] = small_tests(opt, network.task, images, wanted)
    opt["path"]["pretrain_network_g"] = f"experiments/{case.name('train')}/models/net_g_latest.pth"
    opt["val"] |= {"save_img": False, "pbar": False}
    return opt


Results = Mapping[Case, Mapping[str, Mapping[str, float]]]


def _psnr(results: Results, network: Compared, method: str, bits: int, name: str) -> list[float]:
    """One value for each seed."""
    return [
        sets[name]["psnr"]
        for case, sets in results.items()
        if (case.network, case.method, case.bits) == (network, method, bits) and name in sets
    ]


def table(results: Results, bits: Sequence[int]) -> str:
    """Markdown: a row for each network and set, PSNR of every method at every width; seeds as mean ± deviation."""
    networks = list(dict.fromkeys(case.network for case in results))
    methods = [m for m in (*METHODS, EVERYWHERE) if any(case.method == m for case in results)]
    columns = [(method, width) for width in bits for method in methods]
    head = ["network", "task", "set", FULL, *(f"{method} {width}/{width}" for method, width in columns)]
    lines = [head, ["---"] * 3 + ["---:"] * (len(columns) + 1)]
    for network in networks:
        for name in network.sets:
            values = [_psnr(results, network, *column, name) for column in ((FULL, 32), *columns)]
            if any(values):
                lines.append([network.family, network.task, name, *map(_cell, values)])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{rows}\n\n{verdict(results, bits)}\n"


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def verdict(results: Results, bits: Sequence[int]) -> str:
    """In how many networks Q-MambaIR is above each other method, on average over a network's sets, and by how much."""
    lines = []
    networks = list(dict.fromkeys(case.network for case in results))
    for width in bits:
        for other in (m for m in (*METHODS, EVERYWHERE) if m != OURS):
            gains = {}
            for network in networks:
                pairs = [
                    (_psnr(results, network, OURS, width, name), _psnr(results, network, other, width, name))
                    for name in network.sets
                ]
                means = [statistics.mean(a) - statistics.mean(b) for a, b in pairs if a and b]
                if means:
                    gains[network.family] = statistics.mean(means)
            if gains:
                above = sum(gain > 0 for gain in gains.values())
                single = ", ".join(f"{name} {gain:+.2f}" for name, gain in gains.items())
                lines.append(
                    f"{width} bits: {OURS} above {other} in {above} of {len(gains)} networks, on average by "
                    f"{statistics.mean(gains.values()):+.2f} dB ({single})"
                )
    return "\n".join(f"* {line}" for line in lines)


def run(args: argparse.Namespace, prepare_data: Callable[[list[str]], int]) -> int:
    """The study that ``tools.generality`` was asked for; what is finished is not repeated.

    Args:
        args: of the command.
        prepare_data: the command of that name.

    Raises:
        ValueError: data that cannot be prepared.
    """
    images, work = args.source.resolve(), args.out.resolve()
    work.mkdir(parents=True, exist_ok=True)
    prepare(images, work, prepare_data)
    results: dict[Case, Mapping[str, Mapping[str, float]]] = {}
    for case in cases(args.networks, args.bits, args.seeds):
        iterations = args.iterations if case.bits == 32 else args.quantized_iterations
        train, test = train_file(case, iterations), test_file(case, images, args.sets)
        results[case] = run_files(train, test, work, args.rerun)
        write_text(work / "generality.md", table(results, args.bits))
    sys.stdout.write(table(results, args.bits))
    return 0
