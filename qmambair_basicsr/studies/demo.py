"""The steps of the demo; ``tools.demo`` is its command."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from basicsr.utils.registry import ARCH_REGISTRY
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..files import write_text
from ..recipes.option_contents import OPTIONS, stem
from ..recipes.option_files import read_options
from ..recipes.option_table import TASKS
from . import demo_photos, demo_report

TASK = TASKS["demoSRx2"]
WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / "MambaIR_tinySRx2.pth"

console = Console(width=None if sys.stdout.isatty() else 100)


class DemoError(RuntimeError):
    """A step of the demo failed; the message ends with what its run printed last."""


def shipped(name: str) -> dict:
    """The options of the shipped file called ``name``."""
    return read_options(OPTIONS / f"{name}.yml")


def run(title: str, work: Path, arguments: list[str], pattern: str, total: int) -> None:
    """Run ``python -m ...`` with a progress bar.

    Args:
        title: What is shown beside the bar.
        work: Working directory of the run; its output is added to ``demo.log`` there.
        arguments: What follows ``python``.
        pattern: Matches the lines that report progress; its first group is the number done, or without a group every
            match counts one.
        total: Where the bar ends.

    Raises:
        DemoError: The run failed.
    """
    shown = Progress(
        TextColumn("  {task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        # a log file gets the finished bar only
        disable=not console.is_terminal,
    )
    last: deque[str] = deque(maxlen=12)
    start = time.monotonic()
    reported = start
    with (
        shown,
        (work / "demo.log").open("a", encoding="utf-8", buffering=1) as log,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", *arguments],
            cwd=work,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        bar = shown.add_task(title, total=total)
        done = 0
        for line in process.stdout:
            log.write(line)
            last.append(line)
            if match := re.search(pattern, line):
                done = int(match.group(1).replace(",", "")) if match.groups() else done + 1
                shown.update(bar, completed=done)
                if not console.is_terminal and time.monotonic() - reported > 10:
                    reported = time.monotonic()
                    console.print(f"  {title}: {done} of {total}", highlight=False)
        shown.update(bar, completed=total)
    if process.returncode:
        raise DemoError(f"{title} failed; {work / 'demo.log'} ends with\n{''.join(last)}")
    if not console.is_terminal:
        console.print(f"  {title}: {time.monotonic() - start:.0f} s", highlight=False)


def test(title: str, work: Path, file: str, name: str, weights: Path) -> None:
    """Run a test file under another name and with given weights; images land in ``results/<name>``."""
    forced = [f"name={name}", f"path:pretrain_network_g={weights}"]
    command = ["-m", "qmambair_basicsr.test", "-opt", str(OPTIONS / f"{file}.yml"), "--force_yml", *forced]
    photographs = sum(1 for row in demo_photos.PHOTOS if row[0] == "PhotosTest")
    run(title, work, command, r"Test \w+: +\d+%.*\b(\d+)/\d+ ", photographs)


def restore(work: Path) -> None:
    """Enlarge the test photographs with the shipped network; page and picture of before and after.

    Raises:
        DemoError: The run failed.
    """
    photographs = work / "datasets" / "PhotosTest"
    inputs = photographs / "LR_bicubic" / f"X{demo_report.SCALE}"
    command = ["-m", "qmambair_basicsr.tools.inference", "-i", str(inputs), "-o", "restored"]
    command += ["--truth", str(photographs / "HR"), "--page", "--overwrite"]
    run("restored", work, command, r"^\d+/\d+ ", len(list(inputs.iterdir())))
    demo_report.before_after(inputs, work / "restored", work / "before_after.jpg")
    console.print(f"picture: {work / 'before_after.jpg'}; page: {work / 'restored' / 'page.html'}", highlight=False)


def demo(work: Path, bits: int, iterations: int | None = None) -> list[demo_report.Result]:
    """All steps; see the module's docstring.

    Args:
        work: Folder for data, runs and the picture.
        bits: Width of weights and activations.
        iterations: Of training; None takes the option file's.

    Returns:
        The rows of the table.

    Raises:
        DemoError: The weights are missing or a run failed.
    """
    if not WEIGHTS.is_file():
        raise DemoError(f"the full-precision weights {WEIGHTS} are missing; they come with the repository")
    full, quantized = (stem("test", "MambaIR", TASK.name, b) for b in (32, bits))
    training = stem("train", "MambaIR", TASK.name, bits)
    for old in ("datasets", f"experiments/{training}", f"tb_logger/{training}", "results"):
        shutil.rmtree(work / old, ignore_errors=True)
    write_text(work / "demo.log", "")

    console.print("[bold]1/5[/] photographs")
    counts = demo_photos.prepare(work / "datasets")
    console.print("  " + ", ".join(f"{count} pieces in {name}" for name, count in counts.items()), highlight=False)
    weights = work / "experiments" / "pretrained_models" / f"MambaIR_{TASK.name}.pth"
    weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(WEIGHTS, weights)

    iterations = iterations or shipped(training)["train"]["total_iter"]
    console.print(f"[bold]2/5[/] calibration and {iterations} iterations of quantization-aware training")
    command = ["-m", "qmambair_basicsr.train", "-opt", str(OPTIONS / f"{training}.yml")]
    command += ["--force_yml", f"train:total_iter={iterations}"]
    run(f"w{bits}a{bits}", work, command, r"iter: +([\d,]+),", iterations)

    console.print("[bold]3/5[/] tests")
    models = work / "experiments" / training / "models"
    runs = (
        ("full precision", "32/32", full, weights),
        ("calibrated only", f"{bits}/{bits}", quantized, models / "net_g_calibrated.pth"),
        ("after training", f"{bits}/{bits}", quantized, models / "net_g_latest.pth"),
    )
    reference = demo_report.truth(work / "datasets")
    results = [demo_report.score("bicubic", "", None, demo_report.bicubic(work / "datasets"), reference)]
    for label, width, file, checkpoint in runs:
        name = label.replace(" ", "_")
        test(label, work, file, name, checkpoint.resolve())
        section = dict(shipped(file)["network_g"])
        kib = demo_report.stored_kib(ARCH_REGISTRY.get(section.pop("type"))(**section))
        results.append(demo_report.score(label, width, kib, demo_report.saved(work, name), reference))

    console.print("[bold]4/5[/] result")
    console.print(demo_report.table(results))
    gain = results[-1].psnr - results[-2].psnr
    console.print(f"training gained {gain:.2f} dB over calibration at {bits} bits", highlight=False)
    demo_report.picture(results, reference, work / "side_by_side.png")
    console.print(f"picture: {work / 'side_by_side.png'}", highlight=False)

    console.print("[bold]5/5[/] photographs restored by the shipped 4-bit network, as qmambair does it")
    restore(work)
    return results


def run_all(args: argparse.Namespace) -> int:
    """The demo as ``tools.demo`` was asked for; returns 0, or 1 when a step failed."""
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        demo(args.out.resolve(), args.bits, args.iterations)
    except DemoError as err:
        sys.stderr.write(f"error: {err}\n")
        return 1
    console.print(f"{time.monotonic() - start:.0f} s in all", highlight=False)
    return 0
