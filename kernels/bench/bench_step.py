"""Times one training step of the light x2 network, at full precision and quantized, in turns.

``python kernels/bench/bench_step.py [--bits 4] [--device cuda]``: forward, L1 loss, backward and Adam on a batch of two
32 x 32 LR patches; prints the medians and their ratio, and the operator calls of a step (see ``operator_calls.py``).
``--overhead``: the same on 8 x 8 pixels, where next to nothing is computed, and with the Python of the Triton kernels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import qmambair_basicsr  # noqa: F401  (before torch, whose threads it tells how to wait)

# isort: split
import torch
import torch.nn.functional as F
from no_launches import no_launches
from operator_calls import operator_calls

from qmambair_basicsr.archs.mambair_arch import MambaIR
from qmambair_basicsr.archs.qmambair_arch import QMambaIR
from qmambair_basicsr.models.garbage import collected_later
from qmambair_basicsr.models.optimizers import Adam

LIGHT = {
    "upscale": 2,
    "embed_dim": 60,
    "d_state": 10,
    "depths": (6, 6, 6, 6),
    "mlp_ratio": 1.2,
    "upsampler": "pixelshuffledirect",
}
OVERHEAD = (1, 8)  # batch, side of the LR patch: next to no arithmetic
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def quantized(bits: int) -> dict:
    """The ``quant`` entry of the option files."""
    kinds = {"weight": "RFA", "act": "LSQOffset", "scan": "DLS"}
    return {site: {"type": kind, "bits": bits} for site, kind in kinds.items()}


class Step:
    """A network with its optimizer; calling it runs one step and returns its seconds."""

    def __init__(self, net: torch.nn.Module, device: str, clock: str):
        self.net = net.to(device).train()
        self.optimizer = Adam(self.net.parameters(), lr=1e-4, fused=True)
        self.device, self.clock = device, CLOCKS[clock]

    def __call__(self, lq: torch.Tensor, gt: torch.Tensor) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = self.clock()
        with collected_later():
            self.optimizer.zero_grad()
            F.l1_loss(self.net(lq), gt).backward()
            self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock() - start


class Pair:
    """Both networks, a batch, and their steps in turns."""

    def __init__(self, args: argparse.Namespace, batch: int, patch: int, clock: str):
        torch.manual_seed(0)
        self.lq = torch.rand(batch, 3, patch, patch, device=args.device)
        self.gt = torch.rand(batch, 3, 2 * patch, 2 * patch, device=args.device)
        self.names = "FP", f"w{args.bits}a{args.bits}"
        nets = MambaIR(**LIGHT), QMambaIR(**LIGHT, quant=quantized(args.bits))
        self.steps = [Step(net, args.device, clock) for net in nets]

    def times(self, rounds: int) -> tuple[float, float]:
        """Median seconds of a step, after two rounds that warm up (the first also initialises the quantizers)."""
        found = [[step(self.lq, self.gt) for step in self.steps] for _ in range(rounds + 2)][2:]
        return tuple(statistics.median(column) for column in zip(*found, strict=True))

    def calls(self) -> tuple[int, int]:
        """Operator calls of a step."""
        return tuple(operator_calls(lambda step=step: step(self.lq, self.gt)) for step in self.steps)


def overhead(args: argparse.Namespace) -> None:
    """Print what a step costs beside its arithmetic."""
    pair = Pair(args, *OVERHEAD, "cpu")
    say(
        "batch {} of {} x {} pixels, processor time: what Python and PyTorch do around the arithmetic,".format(
            *OVERHEAD, OVERHEAD[1]
        )
    )
    say("which an eager step on a GPU waits for")
    report(pair, "kernels of the CPU", *pair.times(args.rounds))
    with no_launches():
        report(pair, "Triton's Python, its launches left out", *pair.times(args.rounds))


def report(pair: Pair, what: str, fp: float, quantized_: float) -> None:
    """Print times and their ratio."""
    say(f"{what}: {pair.names[0]} {fp:.3f} s, {pair.names[1]} {quantized_:.3f} s, ratio {quantized_ / fp:.2f}")


def say(line: str) -> None:
    """Print a line."""
    sys.stdout.write(line + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--patch", type=int, default=32, help="LR patch size")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: for a busy machine, with --threads 1")
    parser.add_argument(
        "--overhead", action="store_true", help="the step without arithmetic to speak of, on the CPU, one thread"
    )
    args = parser.parse_args()
    torch.set_num_threads(1 if args.overhead else args.threads)
    say(f"torch {torch.__version__}, {args.device}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    if args.overhead:
        args.device = "cpu"
        overhead(args)
        return
    pair = Pair(args, args.batch, args.patch, args.clock)
    report(
        pair,
        f"step of the light x2 network, batch {args.batch}, LR {args.patch}, {args.clock} time",
        *pair.times(args.rounds),
    )
    fp, q = pair.calls()
    say(f"operator calls of a step: {pair.names[0]} {fp}, {pair.names[1]} {q}, ratio {q / fp:.2f}")


if __name__ == "__main__":
    main()
