"""The networks in ``assets`` made again: trained, tested and packed; ``tools.shipped`` is the command."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..files import write_text
from ..inference.shipped import shipped_model
from ..recipes.option_names import Row, parse
from ..recipes.option_table import TASKS, recipe_of
from .reduced_tasks import input_quality
from .result_log import latest_log, read_results

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


def tests(name: str) -> list[Row]:
    """Test files of a shipped network: full precision, then quantized."""
    row = parse(shipped_model(name).options)
    return [Row("test", row.family, row.task, bits, method) for bits, method in ((32, ""), (row.bits, row.method))]


def table(name: str) -> list[str]:
    """Rows of a Markdown table: PSNR / SSIM of each test set's inputs, of full precision, and of the shipped network.

    Tests are run where their newest log lacks figures.
    """
    rows = tests(name)
    results = [_tested(row) for row in rows]
    opt, lines = rows[0].options(), []
    for section in opt["datasets"].values():
        columns = [input_quality(section, opt), *(result[section["name"]] for result in results)]
        cells = (f"{c['psnr']:.2f} / {c['ssim']:.4f}".replace("/ 0.", "/ .") for c in columns)
        gain = columns[-1]["psnr"] - columns[0]["psnr"]
        lines.append(f"| {name} | {section['name']} | {' | '.join(cells)} | {gain:+.2f} |")
    return lines


def _tested(row: Row) -> dict[str, dict[str, float]]:
    wanted = {section["name"] for section in row.options()["datasets"].values()}

    def results() -> dict:
        log = latest_log(Path("results"), row.name)
        return read_results(log)[0] if log else {}

    if not wanted <= results().keys():
        write_text(_file(row), row.text())
        _run("test", "-opt", str(_file(row)), "--force_yml", "val:save_img=false")
    return results()


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
        lines = head + [line for name in args.networks for line in table(name)]
        sys.stdout.write("\n".join(lines) + "\n")
    return 0
