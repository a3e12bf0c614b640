"""Everything to know about this package on one GPU, within 6 minutes: ``python kernels/bench/gpu_report.py``.

Parity and times of the kernels (``gpu_check.py``; beside mamba_ssm where it can be imported), then a training step of the
light x2 network in full precision and at w4a4, eager and captured in a CUDA graph, with its peak memory, then the time to
restore an image. Prints Markdown tables and writes JSON. What the minutes do not reach is listed as not measured, and so is
a step that cannot be captured, with the reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import gpu_check
import torch
import torch.nn.functional as F
from bench_step import LIGHT, quantized
from operator_calls import operator_calls

from qmambair_basicsr.archs.mambair_arch import MambaIR
from qmambair_basicsr.archs.qmambair_arch import QMambaIR

SIZES = ((2, 32), (8, 64), (16, 64))  # batch, side of the LR patch
SECONDS = 360


@dataclass
class Step:
    """A training step, or an image restored; milliseconds, None where it was not measured."""

    what: str
    network: str
    batch: int
    side: int
    mode: str
    ms: float | None = None
    peak_mib: float | None = None
    calls: int | None = None
    reason: str = ""


class Training:
    """A network with its optimizer and a batch that stays where it is; calling it makes a step."""

    def __init__(self, net: torch.nn.Module, batch: int, side: int, device: str):
        self.net = net.to(device).train()
        self.cuda = device == "cuda"
        lr = torch.tensor(1e-4, device=device) if self.cuda else 1e-4
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=lr, fused=True, capturable=self.cuda)
        self.lq = torch.rand(batch, 3, side, side, device=device)
        self.gt = torch.rand(batch, 3, 2 * side, 2 * side, device=device)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        F.l1_loss(self.net(self.lq), self.gt).backward()
        self.optimizer.step()

    def captured(self) -> Callable[[], None]:
        """The step as one CUDA graph.

        Raises:
            RuntimeError: something in it cannot be captured.
        """
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # as torch asks for before a capture
            for _ in range(3):
                self()
        torch.cuda.current_stream().wait_stream(stream)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self()
        return graph.replay


def seconds_of(computation: Callable[[], object], repeats: int, cuda: bool) -> float:
    """Median time of a call, after two that warm up."""
    times = []
    for i in range(repeats + 2):
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        computation()
        if cuda:
            torch.cuda.synchronize()
        if i >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def networks() -> dict[str, Callable[[], torch.nn.Module]]:
    """The light x2 network, in full precision and with the quantizers of the option files."""
    return {"FP": lambda: MambaIR(**LIGHT), "w4a4": lambda: QMambaIR(**LIGHT, quant=quantized(4))}


def steps(device: str, sizes, repeats: int, until: float) -> Iterator[Step]:
    """Training steps, eager and captured."""
    cuda = device == "cuda"
    for batch, side in sizes:
        for name, build in networks().items():
            rows = [Step("training step", name, batch, side, mode) for mode in ("eager", "graph")]
            if time.monotonic() > until:
                for row in rows:
                    row.reason = "no time left"
                yield from rows
                continue
            torch.manual_seed(0)
            training = Training(build(), batch, side, device)
            training()  # initialises the quantizers
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            rows[0].ms = 1e3 * seconds_of(training, repeats, cuda)
            rows[0].calls = operator_calls(training)
            if cuda:
                rows[0].peak_mib = torch.cuda.max_memory_allocated() / 2**20
                try:
                    rows[1].ms = 1e3 * seconds_of(training.captured(), repeats, cuda)
                except RuntimeError as error:
                    rows[1].reason = str(error).splitlines()[0]
            else:
                rows[1].reason = "no CUDA graphs on this device"
            yield from rows


def restored(device: str, side: int, repeats: int, until: float) -> Iterator[Step]:
    """One image at a time in evaluation."""
    for name, build in networks().items():
        row = Step("image restored", name, 1, side, "eager")
        if time.monotonic() > until:
            row.reason = "no time left"
        else:
            net, image = build().to(device), torch.rand(1, 3, side, side, device=device)
            net.train()(image)  # initialises the quantizers
            net.eval()
            with torch.no_grad():
                row.ms = 1e3 * seconds_of(lambda net=net, image=image: net(image), repeats, device == "cuda")
        yield row


def table(rows: list[Step]) -> str:
    """Markdown table; ratios are to the eager step, or image, in full precision of the same size."""
    base = {(r.what, r.batch, r.side): r.ms for r in rows if r.network == "FP" and r.mode == "eager"}
    lines = [
        "| what | network | batch | LR side | mode | ms | times FP eager | peak MiB | operator calls |",
        "|" + "---|" * 9,
    ]
    for r in rows:
        first = base.get((r.what, r.batch, r.side))
        ms = f"not measured: {r.reason}" if r.ms is None else f"{r.ms:.1f}"
        ratio = "" if r.ms is None or not first else f"{r.ms / first:.2f}"
        peak = "" if r.peak_mib is None else f"{r.peak_mib:.0f}"
        calls = "" if r.calls is None else str(r.calls)
        lines.append(
            f"| {r.what} | {r.network} | {r.batch} | {r.side} | {r.mode} | {ms} | {ratio} | {peak} | {calls} |"
        )
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Command line; 0 if every parity check passed, 1 if not, 2 without a usable device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: tries this script")
    parser.add_argument("--sizes", type=int, nargs="+", help="batch and side of the patch, in turns", default=None)
    parser.add_argument("--image", type=int, default=128, help="side of the image that is restored")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--no-kernels", action="store_true", help="steps alone")
    parser.add_argument("--output", type=Path, default=Path("gpu_report.json"))
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write("gpu_report: no CUDA device here (--device cpu tries the script itself)\n")
        return 2
    until = time.monotonic() + SECONDS
    sizes = SIZES if args.sizes is None else tuple(zip(args.sizes[::2], args.sizes[1::2], strict=True))
    rows = [
        *steps(args.device, sizes, args.repeats, until - 150),
        *restored(args.device, args.image, args.repeats, until - 120),
    ]
    machine = torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or platform.machine()
    about = {"machine": machine, "torch": torch.__version__, "python": platform.python_version()}
    sys.stdout.write(", ".join(f"{k} {v}" for k, v in about.items()) + "\n\n" + table(rows) + "\n\n")
    report = {**about, "steps": [asdict(row) for row in rows]}
    code = 0
    if not args.no_kernels:
        kernels = args.output.with_name(f"{args.output.stem}_kernels.json")
        channels = ["--channels", "72", "120", "360", "--repeats", "20"]
        code = gpu_check.main(["--device", args.device, *channels, "--output", str(kernels)])
        if kernels.is_file():
            report["kernels"] = json.loads(kernels.read_text())
            kernels.unlink()
    args.output.write_text(json.dumps(report, indent=1))
    return code


if __name__ == "__main__":
    sys.exit(main())
