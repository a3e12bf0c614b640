"""Times integer layers against PyTorch in float32, in turns: float32 rows in and out, quantizing included.

    python kernels/bench/bench_integer.py --bits 4 --threads 1
    QMAMBAIR_ISA=avx2 python kernels/bench/bench_integer.py

A layer whose sums are not equal to exact arithmetic gets no figures, and the command fails.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import qmambair_basicsr  # noqa: F401  (before torch, whose threads it tells how to wait)

# isort: split
import torch
import torch.nn.functional as F
from torch import Tensor

from qmambair_basicsr.ops.integer import kernels
from qmambair_basicsr.ops.integer.kernels import IntegerLayer, Rows, pack

CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}


@dataclass(frozen=True)
class Case:
    """A layer on a map of 64 x 64 pixels.

    Attributes:
        channels, out: of the input and the output.
        kernel: 0 for a linear layer.
        groups: of a convolution.
    """

    name: str
    channels: int
    out: int
    kernel: int = 0
    groups: int = 1


CASES = (
    Case("Linear 60 -> 144", 60, 144),
    Case("Conv 3x3 60 -> 60", 60, 60, 3),
    Case("Depthwise 3x3 72", 72, 72, 3, 72),
    Case("Linear 180 -> 720", 180, 720),
    Case("Conv 3x3 180 -> 60", 180, 60, 3),
)
SIDE = 64


class Pair:
    """A layer of a case in both forms, with inputs.

    Args:
        case: which layer.
        bits: of weights and activations.
    """

    def __init__(self, case: Case, bits: int):
        generator = torch.Generator().manual_seed(0)
        self.case, zero = case, 2 ** (bits - 1)
        shape = (case.out, case.channels // case.groups, *[case.kernel] * (2 if case.kernel else 0))
        self.codes = torch.randint(-zero, zero, shape, generator=generator).to(torch.int8)
        self.weight = torch.randn(shape, generator=generator)
        self.bias = torch.randn(case.out, generator=generator)
        self.scale = torch.rand(case.out, generator=generator) / 16
        self.x = torch.randn(SIDE * SIDE, case.channels, generator=generator)
        self.map = self.x.view(1, SIDE, SIDE, -1).permute(0, 3, 1, 2).contiguous()
        self.rows = Rows(self.x, torch.tensor([0.25, 0.125, -zero, zero - 1]), zero)
        padding = (case.kernel // 2,) * 2
        packed = pack(self.codes, zero, groups=case.groups)
        self.layer = IntegerLayer(packed, self.scale, bias=self.bias, padding=padding)
        self.out = torch.empty(SIDE * SIDE, case.out)

    def integer(self) -> Tensor:
        """(4096, out)."""
        return self.layer(self.rows, (1, SIDE, SIDE), out=self.out)

    def floating(self) -> Tensor:
        """The layer in PyTorch: rows, or for a convolution a contiguous map, which is what its networks compute on."""
        if not self.case.kernel:
            return F.linear(self.x, self.weight, self.bias)
        return F.conv2d(self.map, self.weight, self.bias, 1, self.case.kernel // 2, 1, self.case.groups)

    def is_exact(self) -> bool:
        """Whether the integer layer equals exact sums of the reference's codes, rounded as in PyTorch."""
        step, shift, low, high = self.rows.grid
        q = torch.clamp(torch.round((self.x + shift) / step), low, high).double()
        weight = self.codes.double()
        if self.case.kernel:
            q = q.view(1, SIDE, SIDE, -1).permute(0, 3, 1, 2)
            sums = F.conv2d(q, weight, None, 1, self.case.kernel // 2, 1, self.case.groups)
            sums = sums.permute(0, 2, 3, 1).flatten(0, 2)
        else:
            sums = q @ weight.t()
        return torch.equal(self.integer(), sums.float() * (step * self.scale) + self.bias)


def least(calls: list[Callable], rounds: int, repeats: int, clock: Callable) -> list[float]:
    """Seconds of each call: the least of a round, the median over rounds; the calls take turns."""
    times = [[] for _ in calls]
    for _ in range(rounds):
        for call, found in zip(calls, times, strict=True):
            best = float("inf")
            for _ in range(repeats):
                start = clock()
                call()
                best = min(best, clock() - start)
            found.append(best)
    return [statistics.median(found) for found in times]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=int, default=4, choices=range(2, 9))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: for a busy machine, with --threads 1")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out, failed = sys.stdout, False
    out.write(f"{kernels.isa()}, {args.bits} bits, {args.threads} threads, torch {torch.__version__}, 4096 pixels\n")
    for case in CASES:
        pair = Pair(case, args.bits)
        with torch.inference_mode():
            if not pair.is_exact():
                out.write(f"{case.name}: NOT EQUAL to exact sums\n")
                failed = True
                continue
            floating, integer = least([pair.floating, pair.integer], args.rounds, args.repeats, CLOCKS[args.clock])
        out.write(
            f"{case.name}: float32 {1e3 * floating:.3f} ms, integer {1e3 * integer:.3f} ms, "
            f"{floating / integer:.2f} times, sums equal\n"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
