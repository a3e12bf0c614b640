"""Times the operators against their reference: ``python kernels/bench/bench_ops.py [--device cuda] [--only NAME]``.

Every operator first has to agree with the float64 reference; the figures of a backend that does not are withheld and
the command fails. Backends take turns within each round, so that what else the machine does hits all of them; the
median over the rounds is printed. ``floor`` is the time over that of moving the operator's inputs and outputs once at
the bandwidth that a copy reaches in the same run. Peak memory is measured in a process of its own per backend.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import qmambair_basicsr  # noqa: F401, E402  (before torch, whose threads it tells how to wait)

# isort: split
import torch  # noqa: E402
from cases import CASES, Case  # noqa: E402
from parity import relative_error  # noqa: E402

from qmambair_basicsr.ops.backend import ENV, backends  # noqa: E402

TOLERANCE = 1e-5
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
_clock = "wall"


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def clock(call, device: str) -> float:
    """Seconds of one call: of the clock on the wall, or of the processors (all threads together)."""
    synchronize(device)
    start = CLOCKS[_clock]()
    call()
    synchronize(device)
    return CLOCKS[_clock]() - start


def copy_bandwidth(device: str, rounds: int) -> float:
    """Bytes per second of copying 256 MB, reads and writes counted."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = statistics.median(clock(lambda: target.copy_(source), device) for _ in range(max(rounds, 3)))
    return 2 * source.numel() * source.element_size() / seconds


def contenders(case: Case, device: str) -> dict:
    """Name -> callable(inputs) of the backends usable on the device and of the case's baselines."""
    found = {}
    for backend in backends(case.op):
        if backend.is_available()[0] and device in backend.module.DEVICES:
            found[backend.name] = forced(case.run, backend.name)
    return {**found, **case.baselines(device)}


def forced(run, name: str):
    """The call with one backend forced."""

    def call(inputs):
        before = os.environ.get(ENV)
        os.environ[ENV] = name
        try:
            return run(inputs)
        finally:
            os.environ.pop(ENV) if before is None else os.environ.update({ENV: before})

    return call


def parity(case: Case, call, inputs) -> float:
    """Largest relative deviation of any output from the float64 reference, on the same values."""
    exact = [t.detach().cpu() for t in inputs]
    exact = [t.double() if t.is_floating_point() else t for t in exact]
    exact = [t.requires_grad_(given.requires_grad) for t, given in zip(exact, inputs, strict=True)]
    return max(relative_error(got, want) for got, want in zip(call(inputs), case.run(exact), strict=True))


def peak_memory(case: str, name: str, device: str, threads: int) -> float:
    """MB that one call needs beyond its inputs, measured in a fresh process."""
    arguments = ["--device", device, "--threads", str(threads), "--peak", case, name]
    done = subprocess.run([sys.executable, "-W", "ignore", __file__, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"peak memory of {case} on {name} could not be measured: {done.stderr.strip()[-400:]}")
    return float(done.stdout.split()[-1])


def measure_peak(case: Case, name: str, device: str) -> float:
    """The measurement itself: how far memory in use rises during one call."""
    call = contenders(case, device)[name]
    call(case.tiny(device))  # imports and thread pools are not the operator's memory
    inputs = case.inputs(device)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call(inputs)
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is in use now
    before = _status("VmHWM")
    call(inputs)
    return (_status("VmHWM") - before) / 1e3


def _status(field: str) -> int:
    """A line of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def run_case(case: Case, args: argparse.Namespace, bandwidth: float) -> bool:
    """Print the lines of one operator; False when a backend failed its parity check."""
    inputs = case.inputs(args.device)
    calls = contenders(case, args.device)
    good, agreed = {}, True
    for name, call in calls.items():
        error = parity(case, call, inputs)
        if error <= case.tolerance(TOLERANCE):
            good[name] = call
        else:
            agreed = False
            sys.stdout.write(f"{case.name:<34} {name:<12} parity FAILED ({error:.1e}): no figures\n")
    times = {name: [] for name in good}
    for _ in range(args.rounds):
        for name, call in good.items():
            times[name].append(clock(lambda call=call: call(inputs), args.device))
    floor = case.bytes_moved(inputs) / bandwidth
    slowest = max((statistics.median(t) for t in times.values()), default=0)
    for name in good:
        middle = statistics.median(times[name])
        peak = "-" if args.no_memory else f"{peak_memory(case.name, name, args.device, args.threads):.1f}"
        sys.stdout.write(
            f"{case.name:<34} {name:<12} {middle * 1e3:>10.2f} {slowest / middle:>9.1f} {middle / floor:>8.1f} {peak:>9}\n"
        )
    sys.stdout.flush()
    return agreed


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    parser.add_argument("--clock", default="wall", choices=CLOCKS, help="cpu: for a busy machine, with --threads 1")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "NAME"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    global _clock
    _clock = args.clock
    if args.peak:
        sys.stdout.write(f"{measure_peak(CASES[args.peak[0]], args.peak[1], args.device)}\n")
        return
    bandwidth = copy_bandwidth(args.device, args.rounds)
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} CPU threads"
    sys.stdout.write(
        f"torch {torch.__version__}, {where}, {args.clock} time, copy {bandwidth / 1e9:.1f} GB/s, load {os.getloadavg()[0]:.1f}\n"
    )
    sys.stdout.write(f"{'case':<34} {'backend':<12} {'ms':>10} {'x slowest':>9} {'x floor':>8} {'peak MB':>9}\n")
    results = [run_case(case, args, bandwidth) for name, case in CASES.items() if args.only in name]
    sys.exit(0 if all(results) else "an operator failed its parity check")


if __name__ == "__main__":
    main()
