"""Times the scan on codes against the scan in full precision: ``python kernels/bench/bench_table_scan.py [--bits 4]``.

All scan the same values. ``frozen`` has its tables, ``per image`` builds them in the time, as a grid that follows the image
(DLS) asks for; both as the integer runtime calls them, arguments worked out before (``table_scan.prepared_scan``). ``as a
function`` is ``frozen`` through ``table_scan``, which looks at its arguments in every call. Each has to agree with the float64 scan first; a contender that does not gets no figures and the command
fails. Contenders take turns within a round; the smallest time of the rounds counts, processor time by default.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import qmambair_basicsr  # noqa: F401, E402  (before torch, whose threads it tells how to wait)

# isort: split
import torch  # noqa: E402
from parity import relative_error  # noqa: E402

from qmambair_basicsr.ops.ss2d_scan import DIRECTIONS, ss2d_scan  # noqa: E402
from qmambair_basicsr.ops.table_scan import (  # noqa: E402
    OnGrid,
    build_tables,
    dequantize,
    prepared_scan,
    prepared_tables,
    table_scan,
)

TOLERANCE = 1e-5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
SHAPES = ((72, 10), (120, 16))
"""Channels and states: of the light network, and of a map with 60 channels expanded twice."""


def operand(bits: int, *shape: int, offset: float = 0.0) -> OnGrid:
    """Codes of normally distributed values, most of them within the grid."""
    zero = 2 ** (bits - 1)
    codes = (torch.randn(*shape) * (zero / 2.5)).round().clamp(-zero, zero - 1) + zero
    return OnGrid(codes.to(torch.uint8), torch.tensor([2.0 / zero, offset, -zero, zero - 1]), bits)


def contenders(channels: int, state: int, size: int, bits: int) -> tuple[dict, torch.Tensor]:
    """Name -> call of each contender, and the result in float64."""
    pixels, count = (1, size, size), len(DIRECTIONS)
    x, delta = operand(bits, *pixels, channels), operand(bits, *pixels, count, channels)
    b, c = (operand(bits, *pixels, count, state) for _ in range(2))
    rates = -torch.arange(1.0, state + 1).repeat(count, channels, 1)
    skip, bias = torch.randn(count, channels), torch.randn(count, channels) - 4
    values = [dequantize(t) for t in (x, delta, b, c)]
    tables, out = build_tables(delta.grid, bits, rates, bias), torch.empty(*pixels, channels)

    def full() -> torch.Tensor:
        return ss2d_scan(*values[:2], rates, *values[2:], skip, bias)

    scan = prepared_scan(x, delta, tables, b, c, skip, out=out[None])
    build = prepared_tables(delta.grid, rates, bias, True, tables)

    def frozen() -> torch.Tensor:
        scan()
        return out

    def per_image() -> torch.Tensor:
        build()
        return frozen()

    def function() -> torch.Tensor:
        return table_scan(x, delta, tables, b, c, skip, out=out)

    exact = [dequantize(t, torch.float64) for t in (x, delta, b, c)]
    want = ss2d_scan(*exact[:2], rates.double(), *exact[2:], skip.double(), bias.double())
    calls = {"full precision": full, "frozen": frozen, "per image": per_image, "as a function": function}
    return calls, want


def run_shape(channels: int, state: int, args: argparse.Namespace) -> bool:
    """Print the lines of one shape; False where a contender is not exact."""
    calls, want = contenders(channels, state, args.size, args.bits)
    shape = f"K 4, D {channels}, N {state}, L {args.size**2}, {args.bits} bits"
    for name, call in calls.items():
        error = relative_error(call(), want)
        if not error <= TOLERANCE:
            sys.stdout.write(f"{shape}: {name}: parity FAILED ({error:.1e}): no figures\n")
            return False
    clock, times = CLOCKS[args.clock], {name: [] for name in calls}
    for _ in range(args.rounds):
        for name, call in calls.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    best = {name: min(t) for name, t in times.items()}
    full = best["full precision"]
    listed = ", ".join(f"{name} {best[name] * 1e3:.2f} ms ({full / best[name]:.2f} times)" for name in list(best)[1:])
    sys.stdout.write(f"{shape}: full precision {full * 1e3:.2f} ms, {listed}\n")
    return True


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--size", type=int, default=96, help="height and width of the map")
    parser.add_argument("--shape", type=int, nargs=2, metavar=("D", "N"), help="channels and states; both usual shapes")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", default="cpu", choices=CLOCKS, help="wall: on an idle machine, or with more threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    good = [run_shape(*shape, args) for shape in ([args.shape] if args.shape else SHAPES)]
    sys.exit(0 if all(good) else "a contender failed its parity check")


if __name__ == "__main__":
    main()
