"""How threads wait for each other, and how many there are: set before torch loads its OpenMP runtime, which reads it once.

OpenMP's threads spin while they wait for the others behind each operator, by default up to 300,000 times in GNU's runtime
(15 ms where a pause is long) and 200 ms in LLVM's. On a machine that other programs use the spinning thread takes the
processor from the one that it waits for: a training step on two threads then takes ten to thirty times as long as on one
(kernels/README.md). So threads go to sleep after a short spin here, which an idle machine does not notice. There is
one runtime: this package's native library links the one that torch has loaded.

How many threads is not chosen by the load of the machine: sums that threads share depend on their number, and with it the
bits of a result. But a container whose share of processors is limited gets no more threads than it has processors, which
torch does not see. What the user sets stays.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
SPINS = "1000"  # about 50 microseconds, as long as it takes to be woken

_CGROUP = Path("/sys/fs/cgroup")


def processors_granted(cgroup: Path = _CGROUP) -> int | None:
    """Processors that a container may use at once by its quota, at least 1; None where there is none."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()  # cgroup v2: "max 100000" or "150000 100000"
    except (OSError, ValueError):
        try:
            quota, period = ((cgroup / "cpu" / f"cpu.cfs_{what}_us").read_text() for what in ("quota", "period"))
        except OSError:
            return None
    try:
        share = float(quota) / float(period)
    except (ValueError, ZeroDivisionError):  # "max"
        return None
    return max(1, math.ceil(share)) if share > 0 else None


def usable_processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def apply(environment: MutableMapping[str, str] = os.environ, cgroup: Path = _CGROUP) -> bool:
    """Set how threads wait, and their number where a quota is below the number of processors, unless the user has.

    Returns:
        Whether it had an effect: False when torch is loaded already.
    """
    if "torch" in sys.modules:
        return False
    if not any(name in environment for name in WAITING):
        # the policy is for runtimes of LLVM and Intel; GNU's takes the count where both are given
        environment.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT=SPINS)
    granted = processors_granted(cgroup)
    if "OMP_NUM_THREADS" not in environment and granted is not None and granted < usable_processors():
        environment["OMP_NUM_THREADS"] = str(granted)
    return True
