"""The networks in ``assets`` made again: trained, tested and packed; ``tools.shipped`` is the command."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from basicsr.data import build_dataset
from basicsr.metrics import calculate_metric
from basicsr.utils import tensor2img
from torch import Tensor
from tqdm import trange

from ..data.matlab_resize import imresize
from ..files import write_text
from ..inference import open as open_network
from ..inference.networks import load_network
from ..inference.shipped import shipped_model
from ..recipes.option_names import Row, parse
from ..recipes.option_table import TASKS, recipe_of

__all__ = ["run"]


logger = logging.getLogger("shipped")


@dataclass(frozen=True)
class Step:
    """One of this repository's commands.

    Attributes:
        words: behind ``python -m qmambair_basicsr.``.
        makes: file that is there when it is done, relative to the working folder.
        options: its option file.
    """

    words: tuple[str, ...]
    makes: Path
    options: Row


def _file(row: Row) -> Path:
    return Path("options") / f"{row.name}.yml"


def _weights(row: Row) -> Path:
    return Path("experiments") / row.name / "models" / "net_g_latest.pth"


def _full_precision(row: Row) -> Iterator[Step]:
    """Trainings that lead to the full-precision network of a row, unless its weights ship."""
    task = TASKS[row.task]
    if task.weights:
        return
    if start := recipe_of(row.family, task, 32).start:
        yield from _full_precision(Row("train", row.family, start, 32))
    yield Step(("train", "-opt", str(_file(row)), "--auto_resume"), _weights(row), row)


def steps(name: str, out: Path) -> list[Step]:
    """The commands that make a shipped network, in their order.

    Args:
        name: of the network.
        out: folder of the packed file.

    Raises:
        ValueError: there is no such network.
    """
    quantized = parse(shipped_model(name).options)
    train = Step(("train", "-opt", str(_file(quantized)), "--auto_resume"), _weights(quantized), quantized)
    packed = out / f"{name}.safetensors"
    words = ("tools.export", "-opt", str(_file(quantized)), "--checkpoint", str(train.makes), "--packed", str(packed))
    before = _full_precision(Row("train", quantized.family, quantized.task, 32))
    return [*before, train, Step(words, packed, quantized)]


def table(name: str, sets: Sequence[str] = ()) -> Iterator[str]:
    """Rows of a Markdown table: PSNR / SSIM of each test set's inputs, of full precision, and of the shipped file.

    Images are restored whole, the shipped file by :func:`qmambair_basicsr.inference.open` as users run it.

    Args:
        name: of the network.
        sets: names of test sets; empty for all of its task.

    Raises:
        CheckpointError: the full-precision network has not been trained here.
    """
    model = shipped_model(name)
    row = parse(model.options)
    full = Row("test", row.family, row.task, 32).options()
    restorer = open_network(model.path)

    def shipped(given: Tensor) -> Tensor:
        image = restorer.restore(given[0].permute(1, 2, 0).numpy(), tile="off")
        return torch.from_numpy(image).permute(2, 0, 1)[None]

    networks = [load_network(full["network_g"], full["path"]["pretrain_network_g"]), shipped]
    for section in full["datasets"].values():
        if not sets or section["name"] in sets:
            columns = _quality(section, full, networks)
            cells = (f"{c['psnr']:.2f} / {c['ssim']:.4f}".replace("/ 0.", "/ .") for c in columns)
            gain = columns[-1]["psnr"] - columns[0]["psnr"]
            yield f"| {name} | {section['name']} | {' | '.join(cells)} | {gain:+.2f} |"


def _quality(section: dict, opt: dict, networks: Sequence[Callable[[Tensor], Tensor]]) -> list[dict[str, float]]:
    """Mean metrics of a test set's inputs (enlarged by MATLAB bicubic) and of what each network makes of them."""
    dataset = build_dataset(section | {"phase": "test", "scale": opt["scale"]})
    totals: list[Counter] = [Counter() for _ in range(1 + len(networks))]
    for index in trange(len(dataset), desc=section["name"], disable=None):
        item = dataset[index]
        # copies: tensor2img clips in place, and noise must reach the networks as it is
        truth, given = tensor2img(item["gt"].clone()), tensor2img(item["lq"].clone())
        images = [given if opt["scale"] == 1 else imresize(given, opt["scale"])]
        with torch.no_grad():
            images += [tensor2img(network(item["lq"][None])) for network in networks]
        for total, image in zip(totals, images, strict=True):
            for metric, settings in opt["val"]["metrics"].items():
                total[metric] += calculate_metric({"img": image, "img2": truth}, settings)
    return [{metric: value / len(dataset) for metric, value in total.items()} for total in totals]


def _run(*words: str) -> None:
    command = [sys.executable, "-W", "ignore", "-m", f"qmambair_basicsr.{words[0]}", *words[1:]]
    logger.info("%s", " ".join(["python", *command[3:]]))
    subprocess.run(command, check=True)


def run(args: argparse.Namespace) -> int:
    """What ``tools.shipped`` was asked for; ``args`` are its arguments. Returns 0.

    Raises:
        CalledProcessError: a step failed; it has said why.
    """
    if args.dry_run:
        todo = dict.fromkeys(step.words for name in args.networks for step in steps(name, args.out))
        sys.stdout.writelines(f"python -m qmambair_basicsr.{' '.join(words)}\n" for words in todo)
        return 0
    for step in (step for name in args.networks for step in steps(name, args.out)):
        if step.makes.is_file():
            logger.info("%s is there already", step.makes)
            continue
        write_text(_file(step.options), step.options.text())
        _run(*step.words)
    if args.table:
        head = ["| network | test set | input | full precision | shipped | gain |", "|---|---|---|---|---|---:|"]
        for line in (*head, *(line for name in args.networks for line in table(name, args.sets))):
            sys.stdout.write(f"{line}\n")
    return 0
