"""Times a training step beside busy loops, by threads and by how threads wait: ``python kernels/bench/bench_threads.py``.

A thread that is through with its part of an operator waits for the others. Where it spins while it waits, as OpenMP does by
default for about a millisecond, it takes the processor from the very thread that it waits for as soon as other programs
run. Each row is a process of its own, since OpenMP reads its settings when it is loaded; rows take turns, alone and beside
as many busy loops as there are cores. Wall time and CPU time of all threads per step, medians.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUSY = "while True: pass"
WAITS = {
    "OpenMP's default": {"OMP_WAIT_POLICY": None, "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None},
    "passive": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": None, "KMP_BLOCKTIME": None},
    "this package's": {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000", "KMP_BLOCKTIME": None},
}


def child(steps: int, layers: int) -> None:
    """Run steps and print seconds of wall and CPU time of each as JSON; imports belong to this process only."""
    sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]
    import torch
    from bench_step import LIGHT, Step, quantized

    from qmambair_basicsr.archs.qmambair_arch import QMambaIR

    torch.manual_seed(0)
    step = Step(QMambaIR(**{**LIGHT, "depths": (layers,)}, quant=quantized(4)), "cpu", "wall")
    lq, gt = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 64, 64)
    step(lq, gt)  # the first also initialises the quantizers
    seconds = []
    for _ in range(steps):
        before = time.process_time()
        wall = step(lq, gt)
        seconds.append((wall, time.process_time() - before))
    sys.stdout.write(json.dumps(seconds))


def measure(threads: int, wait: str, args: argparse.Namespace) -> list[tuple[float, float]]:
    """(wall, CPU) seconds of the steps of one process."""
    settings = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads), **WAITS[wait]}
    environment = {k: v for k, v in {**os.environ, **settings}.items() if v is not None}
    command = [sys.executable, "-W", "ignore", __file__, "--child", str(args.steps), str(args.layers)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout)


def main() -> None:
    """Command line."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, cores])
    parser.add_argument("--waits", nargs="+", choices=WAITS, default=["OpenMP's default", "this package's"])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, cores], help="numbers of busy loops beside it")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each process")
    parser.add_argument("--layers", type=int, default=2, help="blocks of the network")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", type=int, nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(*args.child)
        return
    cases = [(n, wait) for n in args.threads for wait in (args.waits if n > 1 else args.waits[:1])]
    times: dict[tuple, list] = {}
    for _ in range(args.rounds):
        for busy in args.busy:
            loops = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
            try:
                for case in cases:
                    seconds = measure(*case, args)
                    times.setdefault((busy, *case), []).extend(seconds)
                    sys.stderr.write(f"{busy} busy loops, {case}: {[round(1e3 * wall) for wall, _ in seconds]} ms\n")
            finally:
                for loop in loops:
                    loop.kill()
                    loop.wait()
    sys.stdout.write("| busy loops | threads | waiting | ms per step | CPU ms per step |\n|---|---|---|---|---|\n")
    for (busy, threads, wait), seconds in times.items():
        wall, cpu = (1e3 * statistics.median(column) for column in zip(*seconds, strict=True))
        sys.stdout.write(f"| {busy} | {threads} | {wait if threads > 1 else '-'} | {wall:.0f} | {cpu:.0f} |\n")


if __name__ == "__main__":
    main()
