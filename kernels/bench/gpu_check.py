"""Checks and times every GPU kernel on the machine it runs on: ``python kernels/bench/gpu_check.py``.

First parity: outputs and all gradients of the Triton kernels (and of mamba_ssm where it is installed) against the float64
reference. Then times: the scan forward and forward + backward, the quantizers, each beside the time of a device copy of
its main tensor and beside the bytes that cannot be avoided at the measured copy bandwidth. No figure is printed for a
kernel whose parity check failed. Prints a Markdown table, writes JSON, exits with 1 if any parity check failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from parity import relative_error

from qmambair_basicsr.models.cuda_graph import CudaGraph
from qmambair_basicsr.ops.backend import ENV, Backend
from qmambair_basicsr.ops.dls import dls
from qmambair_basicsr.ops.dls.item import DLSItem
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.ops.rfa import rfa
from qmambair_basicsr.ops.ss2d_scan import ss2d_scan

TOLERANCE = 1e-5  # largest deviation over largest value, float32
YARDSTICK_TOLERANCE = (
    1e-3  # for mamba_ssm, which rounds decays next to 1: enough to know that it computes the same thing
)
DLS = {"qmin": -8, "qmax": 7, "cap_share": 1 / 16}
L2_FLUSH = 1 << 28  # bytes written between two timed runs


@dataclass
class Row:
    """One line of the table; times in milliseconds, None where parity failed or there is nothing to compare with."""

    op: str
    backend: str
    shape: str
    error: float
    passed: bool
    forward: float | None = None
    both: float | None = None
    graph: float | None = None
    copy: float | None = None
    floor: float | None = None
    peak_mib: float | None = None


class Bench:
    """Times functions on one device.

    Args:
        device: ``cuda``, or ``cpu`` to try the script itself in Triton's interpreter.
        repeats: timed runs; the median is reported.
    """

    def __init__(self, device: str, repeats: int):
        self.device, self.repeats = torch.device(device), repeats
        self.cuda = self.device.type == "cuda"
        self.kept: list[object] = []  # results of a recording, whose memory is its own
        self.flush = torch.empty(L2_FLUSH if self.cuda else 1, dtype=torch.uint8, device=self.device)

    def time(self, function: Callable[[], object]) -> float:
        """Median time of a call in milliseconds, with a cold L2 cache."""
        if not self.cuda:
            start = time.perf_counter()
            function()
            return 1e3 * (time.perf_counter() - start)
        for _ in range(3):
            function()
        spans = []
        for _ in range(self.repeats):
            self.flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            function()
            end.record()
            end.synchronize()
            spans.append(begin.elapsed_time(end))
        return statistics.median(spans)

    def replayed(self, function: Callable[[], object]) -> float | None:
        """Time of a call replayed from a CUDA graph: of the device alone. None on a CPU and for what cannot be recorded."""
        if not self.cuda:
            return None
        recorder = CudaGraph(self.device)
        try:
            with recorder.warm_up():
                for _ in range(3):
                    function()
            recorder.record(lambda: self.kept.append(function()))
            return self.time(recorder.replay)
        except Exception as error:  # the other figures of the row count all the same
            sys.stderr.write(f"not recorded: {type(error).__name__}: {error}\n")
            return None
        finally:
            self.kept.clear()

    def peak(self, function: Callable[[], object]) -> float | None:
        """Memory in MiB that a call needs beyond what is allocated before it."""
        if not self.cuda:
            return None
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20

    def copy(self, tensor: torch.Tensor) -> float:
        """Time of a device copy of a tensor."""
        target = torch.empty_like(tensor)
        return self.time(lambda: target.copy_(tensor))


def evaluate(function, tensors, weight):
    """Output and gradients of sum(weight * function(*tensors))."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = function(*leaves)
    return [y.detach(), *torch.autograd.grad(y, leaves, weight.to(y))]


def measure(bench: Bench, row: Row, function, tensors, weight, main: torch.Tensor, moved: int) -> Row:
    """Fill in the times of a row whose parity check has passed.

    Args:
        main: the tensor whose device copy is the yardstick.
        moved: bytes that forward + backward have to read and write at least.
    """
    if not row.passed:
        return row
    leaves = [t.detach().requires_grad_() for t in tensors]

    def forward():
        with torch.no_grad():
            return function(*tensors)

    def both():
        return torch.autograd.grad(function(*leaves), leaves, weight)

    row.forward, row.both, row.copy = bench.time(forward), bench.time(both), bench.copy(main)
    row.graph = bench.replayed(both)
    row.floor = row.copy * moved / (2 * main.numel() * main.element_size())
    row.peak_mib = bench.peak(both)
    return row


def check(function, tensors, weight, tolerance: float, exact: bool = False) -> tuple[float, bool]:
    """Largest error of the output and the gradients against the reference.

    Args:
        exact: against the float32 reference, whose output has to be met bit for bit (quantizers: a float64 reference
            rounds values on a border of two codes the other way).
    """
    backend = os.environ[ENV]
    got = evaluate(function, tensors, weight)
    os.environ[ENV] = "reference"
    try:
        kind = torch.float32 if exact else torch.float64
        want = evaluate(function, [t.to(kind) for t in tensors], weight.to(kind))
    finally:
        os.environ[ENV] = backend
    error = max(relative_error(a, b.double()) for a, b in zip(got, want, strict=True))
    return error, error < tolerance and (not exact or torch.equal(got[0], want[0]))


def scan_inputs(batch: int, size: int, channels: int, state: int, device: torch.device) -> list[torch.Tensor]:
    """x, delta, A, B, C, D, delta_bias of SS2D with its usual step sizes (1e-3 to 0.1)."""
    count = 4
    pixels = (batch, size, size, count)
    dt = torch.exp(torch.empty(count, channels, device=device).uniform_(-6.9, -2.3))
    a = -torch.arange(1.0, state + 1, device=device).expand(count, channels, state).contiguous()
    return [
        torch.randn(batch, size, size, channels, device=device),
        torch.randn(*pixels, channels, device=device) * 0.3,
        a * torch.empty_like(a).uniform_(0.8, 1.2),
        torch.randn(*pixels, state, device=device),
        torch.randn(*pixels, state, device=device),
        torch.ones(count, channels, device=device),
        torch.expm1(dt).log(),
    ]


def available(op: str, name: str) -> bool:
    """Whether a backend can run here; says why not."""
    usable, reason = Backend(op, name).is_available()
    if not usable:
        sys.stderr.write(f"{op} on {name}: {reason}\n")
    return usable


def scan_rows(bench: Bench, args) -> list[Row]:
    """The scan on every GPU backend, at each channel count."""
    rows = []
    for channels in args.channels:
        tensors = scan_inputs(args.batch, args.size, channels, args.state, bench.device)
        weight = torch.randn_like(tensors[0])
        small = [t[:1] if t.dim() > 3 else t for t in tensors]
        shape = f"{args.batch} x {args.size} x {args.size}, K = 4, D = {channels}, N = {args.state}"
        x, delta, a, b, c = tensors[:5]
        moved = 4 * (2 * x.numel() + delta.numel() + b.numel() + c.numel())
        moved += 4 * (3 * x.numel() + 2 * delta.numel() + 2 * (b.numel() + c.numel()) + 2 * a.numel())
        for name in ("cuda", "triton", "mamba_ssm"):
            if not available("ss2d_scan", name):
                continue
            os.environ[ENV] = name
            tolerance = YARDSTICK_TOLERANCE if name == "mamba_ssm" else TOLERANCE
            error, passed = check(ss2d_scan, small, weight[:1], tolerance)
            row = Row("ss2d_scan", name, shape, error, passed)
            rows.append(measure(bench, row, ss2d_scan, tensors, weight, delta, moved))
        rows += mamba_rows(bench, tensors, weight, shape, moved)
    return rows


def mamba_rows(bench: Bench, tensors, weight, shape: str, moved: int) -> list[Row]:
    """mamba_ssm's own function on sequences that are in its layout already: no copies, its own autograd."""
    if not Backend("ss2d_scan", "mamba_ssm").is_available()[0]:
        return []
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    from qmambair_basicsr.ops.ss2d_scan import mamba_ssm

    sequences = [t.detach() for t in mamba_ssm.kernel_arguments(*tensors, [0, 1, 2, 3])]

    def scan(u, delta, a, b, c, skip, bias):
        return selective_scan_fn(u, delta, a, b, c, skip, delta_bias=bias, delta_softplus=True)

    row = Row("selective_scan_fn alone", "mamba_ssm", shape, 0.0, True)  # its parity is the row before
    upstream = mamba_ssm.sequences(weight, [0, 1, 2, 3]).flatten(1, 2)
    return [measure(bench, row, scan, sequences, upstream, tensors[1], moved)]


def parity_rows(bench: Bench) -> list[Row]:
    """The scan at awkward sizes and step sizes: parity only."""
    rows = []
    device = bench.device
    maps = ((1, 1, 1), (2, 7, 9), (3, 20, 25), (1, 17, 241)) if bench.cuda else ((1, 1, 1), (1, 2, 3))
    for batch, height, width in maps:
        for low, high, rate in ((1e-3, 0.1, 16.0), (1e-6, 50.0, 1e4), (1e-6, 1e-6, 1.0)):
            channels, state, pixels = (45 if bench.cuda else 3), (10 if bench.cuda else 2), (batch, height, width, 4)
            dt = torch.exp(
                torch.empty(*pixels, channels, device=device).uniform_(0, 1) * math.log(high / low) + math.log(low)
            )
            tensors = [
                torch.randn(batch, height, width, channels, device=device),
                torch.expm1(dt.double()).log().float().nan_to_num(posinf=50.0),
                -torch.exp(torch.rand(4, channels, state, device=device) * math.log(rate)),
                torch.randn(*pixels, state, device=device),
                torch.randn(*pixels, state, device=device),
                torch.randn(4, channels, device=device),
                torch.zeros(4, channels, device=device),
            ]
            shape = f"{batch} x {height} x {width}, D = {channels}, dt {low:g} to {high:g}, A to -{rate:g}"
            order = torch.stack([torch.randperm(height * width, device=device) for _ in range(4)])
            listed = partial(ss2d_scan, order=order, merge=False)
            for name in ("cuda", "triton"):
                if not available("ss2d_scan", name):
                    continue
                os.environ[ENV] = name
                error, passed = check(ss2d_scan, tensors, torch.randn_like(tensors[0]), TOLERANCE)
                rows.append(Row("ss2d_scan", name, shape, error, passed))
                error, passed = check(listed, tensors, torch.randn_like(tensors[1]), TOLERANCE)
                rows.append(Row("ss2d_scan", name, f"{shape}, explicit order, outputs apart", error, passed))
    return rows


def quantizer_rows(bench: Bench, args) -> list[Row]:
    """dls, lsq and rfa at 4 bits on a tensor of the size of delta, and rfa on weights."""
    os.environ[ENV] = "triton"
    device = bench.device
    values = args.batch * args.size * args.size * 4 * args.channels[0]
    x = torch.randn(1, values, device=device)
    w = torch.tensor([1.0, 3.0, 0.1, 0.1], device=device) / 7
    v = torch.tensor([-1.0, 0.01, 0.02, 0.03], device=device)
    one = torch.ones(1, device=device)
    thresholds = torch.arange(-8.0, 8.0, device=device) + 0.3 * torch.rand(16, device=device)
    weight = torch.randn_like(x)
    cases = {
        # forward reads twice and writes, backward reads x and the gradient twice and writes
        "dls": (lambda *t: dls(*t, **DLS)[0], [x, w, v], 8),
        "lsq": (lambda *t: lsq(*t, qmin=-8, qmax=7), [x, one * 0.3, one * 0.1], 5),
        "rfa": (lambda *t: rfa(*t, qmin=-8), [x, one * 0.3, one * 0.05, thresholds], 5),
    }
    rows = []
    for op, (function, tensors, passes) in cases.items():
        if not available(op, "triton"):
            continue
        error, passed = (
            dls_parity(*tensors, weight) if op == "dls" else check(function, tensors, weight, TOLERANCE, True)
        )
        row = Row(op, "triton", f"{values} values, 4 bits", error, passed)
        rows.append(measure(bench, row, function, tensors, weight, x, 4 * passes * values))
    return rows


def dls_parity(x, w, v, grad) -> tuple[float, bool]:
    """Error of the grid against the float64 reference, and on that grid of values (bit for bit) and gradients."""
    ours, reference = (Backend("dls", name).module for name in ("triton", "reference"))
    bounds = DLS["qmin"], DLS["qmax"], DLS["cap_share"]
    item = DLSItem(x, w, v, x.shape[0], *bounds, 0.3)
    (out,), (stats, grid) = ours.forward_items([item])
    error = relative_error(grid, reference.forward(x.double(), w.double(), v.double(), *bounds)[2])
    step, offset = grid[:, :1], grid[:, 1:2]
    exact = torch.equal(out, (reference.codes(x, grid) - offset / step) * step)
    (gradients,) = ours.backward_items([grad], [item], [stats, grid])
    want = reference.backward(grad, x, w, v, stats, grid, DLS["cap_share"], 0.3)
    error = max(error, *(relative_error(a, b.double()) for a, b in zip(gradients, want, strict=True)))
    return error, error < TOLERANCE and exact


def table(rows: list[Row]) -> str:
    """Markdown table."""

    def cell(value, form="{:.3f}"):
        return "" if value is None else form.format(value)

    lines = [
        "| op | backend | shape | error | forward ms | fwd + bwd ms | as a graph | copy ms | fwd / copy | fwd + bwd / floor | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        if not r.passed:
            lines.append(
                f"| {r.op} | {r.backend} | {r.shape} | {r.error:.1e} PARITY FAILED, no figures | | | | | | | |"
            )
            continue
        ratio = None if r.forward is None else r.forward / r.copy
        floor = None if r.both is None else r.both / r.floor
        numbers = (r.forward, r.both, r.graph, r.copy, ratio, floor)
        cells = " | ".join(map(cell, numbers))
        lines.append(f"| {r.op} | {r.backend} | {r.shape} | {r.error:.1e} | {cells} | {cell(r.peak_mib, '{:.0f}')} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Run the checks; 0 if every parity check passed, 1 if not, 2 without a usable device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64, help="height and width of the maps")
    parser.add_argument("--channels", type=int, nargs="+", default=[120, 360])
    parser.add_argument("--state", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tries this script, interpreted")
    parser.add_argument("--output", type=Path, default=Path("gpu_check.json"))
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "gpu_check: no CUDA device here (--device cpu with TRITON_INTERPRET=1 tries the script itself)\n"
        )
        return 2
    if not available("ss2d_scan", "triton"):
        return 2
    before = os.environ.get(ENV)
    torch.manual_seed(0)
    bench = Bench(args.device, args.repeats)
    try:
        rows = [*parity_rows(bench), *scan_rows(bench, args), *quantizer_rows(bench, args)]
    finally:
        os.environ.pop(ENV, None)
        if before is not None:
            os.environ[ENV] = before
    import triton

    machine = (
        torch.cuda.get_device_name() if bench.cuda else f"{platform.processor()} (interpreted, times mean nothing)"
    )
    about = {
        "machine": machine,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "python": platform.python_version(),
    }
    sys.stdout.write(", ".join(f"{k} {v}" for k, v in about.items()) + "\n\n" + table(rows) + "\n")
    args.output.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1))
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
