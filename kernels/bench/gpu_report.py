"""Everything to know about this package on one GPU, within 6 minutes: ``python kernels/bench/gpu_report.py``.

Sections, in this order; ``--only`` takes some of them:

* ``steps``: a training step of the light x2 networks in full precision and at w4a4, eager and recorded as a CUDA graph;
* ``kernels``: which kernels a recorded w4a4 step spends its time in;
* ``parity``: outputs and gradients of every GPU kernel against the reference, at awkward sizes, and times of the quantizers;
* ``scan``: times of the scan on every backend, beside mamba_ssm where it can be imported;
* ``operators``: window attention beside scaled_dot_product_attention, depthwise convolutions by order of memory and library;
* ``memory``: time and peak memory of a w4a4 step with ``train: requantize`` and ``checkpoint``;
* ``images``: an image restored in the tiles of the published tables;
* ``suite``: this repository's tests of the operators on this device, where pytest can be imported.

Prints Markdown and writes it beside one JSON file. Times of operators are of launches from Python and, "as a graph", of a recording replayed: the device alone. What the time does not reach is listed as not measured, and so is a step
that cannot be recorded, with the reason. Needs this repository, its dependencies, and nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import gpu_check  # noqa: E402
import gpu_kernels  # noqa: E402
import gpu_steps  # noqa: E402
import torch  # noqa: E402

from qmambair_basicsr.ops.backend import ENV  # noqa: E402

SIZES = ((2, 32), (8, 64), (16, 64))  # batch, side of the LR patch
CHANNELS = (72, 120, 360)
IMAGE = (160, 240)  # LR of a photograph of B100 at x2
SECTIONS = ("steps", "kernels", "parity", "scan", "operators", "memory", "images", "suite")
SHARES = dict(zip(SECTIONS, (36, 8, 12, 9, 6, 6, 8, 15), strict=True))  # of the time, if all run


class Report:
    """Runs sections until the time is over; ``found`` is what goes into the JSON file, ``text`` the Markdown."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.start = args, time.monotonic()
        self.found: dict[str, object] = {}
        self.text: list[str] = []
        self.failed = False

    def until(self, section: str) -> float:
        """When a section has to end: its share, and what the sections before it left."""
        shares = {name: SHARES[name] for name in SECTIONS if name in self.args.only}
        before = sum(list(shares.values())[: list(shares).index(section) + 1])
        return self.start + self.args.seconds * before / sum(shares.values())

    def run(self, section: str) -> None:
        """Run one section; what goes wrong in it is written down, and the next one runs."""
        self.text.append(f"## {section}\n")
        if time.monotonic() > self.start + self.args.seconds:
            self.text.append("not measured: no time left\n")
            return
        began = time.monotonic()
        try:
            self.found[section], lines = getattr(self, f"_{section}")(self.until(section))
        except Exception as error:  # a report of what works is worth more than none
            self.failed = True
            self.found[section] = reason = f"{type(error).__name__}: {error}"
            lines = f"failed: {reason}"
        self.text.append(f"{lines}\n\n({time.monotonic() - began:.0f} s)\n")

    def _steps(self, until: float) -> tuple[object, str]:
        args = self.args
        rows = list(gpu_steps.steps(args.device, args.families, args.sizes, args.repeats, until))
        return [asdict(row) for row in rows], gpu_steps.table(rows)

    def _images(self, until: float) -> tuple[object, str]:
        args = self.args
        rows = list(gpu_steps.restored(args.device, args.families, args.image, args.repeats, until))
        return [asdict(row) for row in rows], gpu_steps.table(rows)

    def _kernels(self, until: float) -> tuple[object, str]:
        if self.args.device != "cuda":
            return None, "not measured: no CUDA graphs on this device"
        found, lines = {}, []
        for family in self.args.families:
            if time.monotonic() > until:
                lines.append(f"{family}: not measured: no time left")
                continue
            batch, side = self.args.sizes[-1]
            found[family] = rows = gpu_steps.kernels(family, batch, side)
            lines += [
                f"{family} w4a4, batch {batch}, LR {side}:\n",
                "| kernel | calls | ms | share |",
                "|---|---|---|---|",
            ]
            lines += [f"| `{r['kernel']}` | {r['calls']} | {r['ms']:.3f} | {r['share']:.1%} |" for r in rows] + [""]
        return found, "\n".join(lines)

    def _parity(self, until: float) -> tuple[object, str]:
        with self._backends() as bench:
            if not gpu_check.available("ss2d_scan", "triton"):
                return None, "not measured: Triton cannot run here"
            rows = gpu_check.parity_rows(bench)
            if time.monotonic() < until:
                rows += gpu_check.quantizer_rows(bench, argparse.Namespace(batch=8, size=64, channels=[120]))
        return self._checked(rows)

    def _scan(self, until: float) -> tuple[object, str]:
        rows, left = [], []
        with self._backends() as bench:
            for channels in self.args.channels:
                if time.monotonic() > until:
                    left.append(channels)
                    continue
                given = argparse.Namespace(batch=8, size=64, state=16, channels=[channels])
                rows += gpu_check.scan_rows(bench, given)
        found, lines = self._checked(rows)
        return found, lines + "".join(f"\nD = {channels}: not measured: no time left" for channels in left)

    def _operators(self, until: float) -> tuple[object, str]:
        batch, side = self.args.sizes[min(1, len(self.args.sizes) - 1)]
        side = -(-side // gpu_kernels.WINDOW) * gpu_kernels.WINDOW
        with self._backends() as bench:
            rows = gpu_kernels.attention_rows(bench, batch, side)
            if time.monotonic() < until:
                rows += gpu_kernels.depthwise_rows(bench, batch, side)
        return self._checked(rows)

    def _memory(self, until: float) -> tuple[object, str]:
        args = self.args
        size = args.sizes[min(1, len(args.sizes) - 1)]
        rows = list(gpu_kernels.memory_steps(args.device, args.families, size, max(args.repeats // 2, 1), until))
        return [asdict(row) for row in rows], gpu_steps.table(rows)

    @contextlib.contextmanager
    def _backends(self) -> Iterator[gpu_check.Bench]:
        """Inside, checks may force backends."""
        before = os.environ.get(ENV)
        torch.manual_seed(0)
        try:
            yield gpu_check.Bench(self.args.device, 2 * self.args.repeats)
        finally:
            os.environ.pop(ENV, None)
            if before is not None:
                os.environ[ENV] = before

    def _checked(self, rows: list) -> tuple[object, str]:
        wrong = [row for row in rows if not row.passed]
        self.failed = self.failed or bool(wrong)
        return [asdict(row) for row in rows], f"{gpu_check.table(rows)}\n\n{len(rows)} checks, {len(wrong)} failed"

    def _suite(self, until: float) -> tuple[object, str]:
        if importlib.util.find_spec("pytest") is None:
            return None, "not measured: pytest is not installed"
        workers = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
        command = [sys.executable, "-m", "pytest", "tests/ops", "-p", "no:cacheprovider", *workers]
        seconds = max(until - time.monotonic(), 1)
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, f"not measured: not through after {seconds:.0f} s"
        self.failed = self.failed or done.returncode != 0
        last = [line for line in done.stdout.splitlines() if line.strip()][-15:]
        return {"returncode": done.returncode, "tail": last}, "\n".join(f"    {line}" for line in last)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="SECTION,...", default=",".join(SECTIONS), help="sections to run, by comma")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tries this script")
    parser.add_argument("--families", nargs="+", default=list(gpu_steps.families()), choices=list(gpu_steps.families()))
    parser.add_argument("--sizes", type=int, nargs="+", help="batch and side of the LR patch, in turns", default=None)
    parser.add_argument("--channels", type=int, nargs="+", default=list(CHANNELS), help="D of the scans")
    parser.add_argument("--image", type=int, nargs=2, default=list(IMAGE), help="height and width of the LR image")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=360.0, help="after these nothing new is begun")
    parser.add_argument("--output", type=Path, default=Path("gpu_report.json"), help="the tables go beside it, as .md")
    args = parser.parse_args(argv)
    args.only = args.only.split(",")
    unknown = set(args.only) - set(SECTIONS)
    if unknown:
        parser.error(f"--only: no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    if args.sizes is not None and len(args.sizes) % 2:
        parser.error("--sizes: give a side for every batch")
    args.sizes = SIZES if args.sizes is None else tuple(zip(args.sizes[::2], args.sizes[1::2], strict=True))
    return args


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 if all went well, 1 if a check or a section failed, 2 without a usable device."""
    args = arguments(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("gpu_report: no CUDA device here (--device cpu tries the script itself)\n")
        return 2
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    about = {"machine": machine, "torch": torch.__version__, "python": platform.python_version()}
    report = Report(args)
    for section in SECTIONS:
        if section in args.only:
            report.run(section)
            # after every section: what there is survives a machine that is taken back
            args.output.write_text(json.dumps({**about, **report.found}, indent=1))
            text = "\n".join(["# GPU report", "", ", ".join(f"{k} {v}" for k, v in about.items()), "", *report.text])
            args.output.with_suffix(".md").write_text(text)
    sys.stdout.write(text + "\n")
    return int(report.failed)


if __name__ == "__main__":
    sys.exit(main())
