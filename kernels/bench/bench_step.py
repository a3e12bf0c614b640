"""Times one training step of the light x2 network, at full precision and quantized, in turns.

``python kernels/bench/bench_step.py [--bits 4] [--device cuda]``: forward, L1 loss, backward and Adam on a batch of two
32 x 32 LR patches; prints the medians and their ratio, and the operator calls of a step (see ``operator_calls.py``).
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import torch.nn.functional as F
from operator_calls import operator_calls

from qmambair_basicsr.archs.mambair_arch import MambaIR
from qmambair_basicsr.archs.qmambair_arch import QMambaIR

LIGHT = {
    "upscale": 2,
    "embed_dim": 60,
    "d_state": 10,
    "depths": (6, 6, 6, 6),
    "mlp_ratio": 1.2,
    "upsampler": "pixelshuffledirect",
}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def quantized(bits: int) -> dict:
    """The ``quant`` entry of the option files."""
    kinds = {"weight": "RFA", "act": "LSQOffset", "scan": "DLS"}
    return {site: {"type": kind, "bits": bits} for site, kind in kinds.items()}


class Step:
    """A network with its optimizer; calling it runs one step and returns its seconds."""

    def __init__(self, net: torch.nn.Module, device: str, clock: str):
        self.net = net.to(device).train()
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4, fused=True)  # as in models/
        self.device, self.clock = device, CLOCKS[clock]

    def __call__(self, lq: torch.Tensor, gt: torch.Tensor) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        start = self.clock()
        self.optimizer.zero_grad()
        F.l1_loss(self.net(lq), gt).backward()
        self.optimizer.step()
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.clock() - start


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
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    lq = torch.rand(args.batch, 3, args.patch, args.patch, device=args.device)
    gt = torch.rand(args.batch, 3, 2 * args.patch, 2 * args.patch, device=args.device)
    steps = {
        "FP": Step(MambaIR(**LIGHT), args.device, args.clock),
        f"w{args.bits}a{args.bits}": Step(QMambaIR(**LIGHT, quant=quantized(args.bits)), args.device, args.clock),
    }
    times = {name: [] for name in steps}
    for index in range(args.rounds + 2):  # two rounds to warm up; the first also initialises the quantizers
        for name, step in steps.items():
            seconds = step(lq, gt)
            if index >= 2:
                times[name].append(seconds)
    (fp_name, fp), (q_name, q) = ((name, statistics.median(t)) for name, t in times.items())
    sys.stdout.write(
        f"torch {torch.__version__}, {args.device}, {args.threads} threads, {args.clock} time, "
        f"load {os.getloadavg()[0]:.1f}: step of the light x2 network, batch {args.batch}, LR {args.patch}\n"
        f"{fp_name} {fp:.3f} s, {q_name} {q:.3f} s, ratio {q / fp:.2f}\n"
    )
    fp_calls, q_calls = (operator_calls(lambda step=step: step(lq, gt)) for step in steps.values())
    sys.stdout.write(
        f"operator calls of a step: {fp_name} {fp_calls}, {q_name} {q_calls}, ratio {q_calls / fp_calls:.2f}\n"
    )


if __name__ == "__main__":
    main()
