"""Whole networks in full precision: beside a plain PyTorch scan, and how their cost grows with the image.

    python kernels/bench/bench_networks.py scan                          # MaIR-light and EAMamba on 64 x 64 pixels
    python kernels/bench/bench_networks.py size                          # 64^2 to 512^2 pixels: exponents of time and memory

``scan``: the network of the authors' configuration with this package's scan and with the scan as the authors' code
computes it without CUDA, which is mamba_ssm's reference: permuted copies of the maps, B and C repeated for every channel,
exp(dt A) and dt B x of all pixels in memory, then a Python loop over the pixels. Everything around the scan is the same
code in both. Runs of the two alternate.

``size``: networks of their published widths with one or two blocks at each depth, since equal blocks cost the same. The
exponent is the slope of a straight line through the logarithms of cost and pixels. Memory is the peak of the resident set
over that of the network at rest, in a process for each size; on Linux, which can forget the peak of the start.

Every figure is from a process of its own (``scan``: both variants in one). With ``--clock cpu``, the default, seconds are
those of all threads together, which other work on the machine moves less than the wall's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SIDES = (64, 128, 256, 512)
LEVELS = {"num_blocks": [1, 1, 1, 1], "num_refinement_blocks": 1}
# name -> (family, task) of the option table
FULL = {"MaIR light x2": ("MaIR", "lightSRx2"), "EAMamba": ("EAMamba", "ColorDN15")}
# name -> (family, task), keys that make it shallower
SHALLOW = {
    "MambaIR": ("MambaIR", "lightSRx2", {"depths": [2]}),
    "MambaIRv2Light": ("MambaIRv2Light", "lightSRx2", {"depths": [2], "num_heads": [4]}),
    "MaIR": ("MaIR", "lightSRx2", {"depths": [2]}),
    "EAMamba": ("EAMamba", "ColorDN15", LEVELS),
    "EAMambaSR": ("EAMambaSR", "lightSRx2", {"num_blocks": [2]}),
    "VmambaIR": ("VmambaIR", "ColorDN15", LEVELS),
}


def build(family: str, task: str, changes: dict | None = None):
    """The full-precision network of the option table, with random weights."""
    import qmambair_basicsr  # noqa: F401  (registers the networks; before torch, whose threads it tells how to wait)

    # isort: split
    import torch
    from basicsr.archs import build_network

    from qmambair_basicsr.recipes.option_contents import network_options
    from qmambair_basicsr.recipes.option_table import TASKS

    torch.manual_seed(0)
    return build_network(network_options(family, TASKS[task], 32) | (changes or {})).eval()


def seconds_of(net, image, clock: str) -> tuple[float, object]:
    """Time of one forward pass, and its result."""
    now = time.process_time if clock == "cpu" else time.perf_counter
    start = now()
    out = net(image)
    return now() - start, out


def plain_scan(x, delta, A, B, C, D, delta_bias, delta_softplus=False, directions=None, *, order=None, merge=True):
    """``ss2d_scan`` in plain PyTorch, with the operations and shapes of mamba_ssm's ``selective_scan_ref``."""
    import torch
    import torch.nn.functional as F

    from qmambair_basicsr.ops.ss2d_scan import named_order

    height, width = x.shape[1:3]
    count, channels, _ = A.shape
    paths = named_order(directions, height, width, x.device) if order is None else order
    paths = paths.long()[:, None]  # (K, 1, L)

    def sequences(t: torch.Tensor) -> torch.Tensor:
        """(B, H, W, K, C) -> (B, K, C, L), each direction in its order."""
        return torch.take_along_dim(t.flatten(1, 2).permute(0, 2, 3, 1), paths[None], 3)

    shared = x if x.dim() == 5 else x[:, :, :, None].expand(-1, -1, -1, count, -1)
    u, dt = (sequences(t).flatten(1, 2) for t in (shared, delta))  # (B, K D, L)
    b, c = (sequences(t).repeat_interleave(channels, 1) for t in (B, C))  # (B, K D, N, L)
    dt = dt + delta_bias.flatten()[:, None]
    dt = F.softplus(dt) if delta_softplus else dt
    decay = torch.exp(torch.einsum("bdl,dn->bdln", dt, A.flatten(0, 1)))
    entry = torch.einsum("bdl,bdnl,bdl->bdln", dt, b, u)
    h, y = entry.new_zeros(entry[:, :, 0].shape), []
    for t in range(u.shape[-1]):
        h = decay[:, :, t] * h + entry[:, :, t]
        y.append(torch.einsum("bdn,bdn->bd", h, c[..., t]))
    y = torch.stack(y, 2) + u * D.flatten()[:, None]
    y = torch.take_along_dim(y.unflatten(1, (count, channels)), paths.argsort(2)[None], 3)
    y = y.permute(0, 3, 1, 2).unflatten(1, (height, width))  # (B, H, W, K, D)
    return y.sum(3) if merge else y


def child_scan(args: argparse.Namespace) -> dict:
    """Both scans in turns, in one process."""
    import qmambair_basicsr  # noqa: F401  (before torch, whose threads it tells how to wait)

    # isort: split
    import torch
    from parity import relative_error

    from qmambair_basicsr.archs import ss2d

    torch.set_num_threads(args.threads)
    net, ours = build(*FULL[args.child]), ss2d.ss2d_scan
    image = torch.rand(1, 3, args.side, args.side)
    times, outputs = {"native": [], "plain": []}, {}
    with torch.inference_mode():
        net(image)
        for _ in range(args.repeat):
            for name, scan in (("native", ours), ("plain", plain_scan)):
                ss2d.ss2d_scan = scan
                spent, outputs[name] = seconds_of(net, image, args.clock)
                times[name].append(spent)
    error = relative_error(outputs["native"], outputs["plain"])
    return {"native": min(times["native"]), "plain": min(times["plain"]), "error": error}


def peak_mib() -> float:
    """Largest resident set since the process began, or since it was told to forget."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


def child_size(args: argparse.Namespace) -> dict:
    """One network on one size of image."""
    import qmambair_basicsr  # noqa: F401  (before torch, whose threads it tells how to wait)

    # isort: split
    import torch

    torch.set_num_threads(args.threads)
    net = build(*SHALLOW[args.child])
    image = torch.rand(1, 3, args.side, args.side)

    with torch.inference_mode():
        net(image[..., :16, :16])
        Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
        rest = peak_mib()
        first = seconds_of(net, image, args.clock)[0]
        memory = peak_mib() - rest
        times = [seconds_of(net, image, args.clock)[0] for _ in range(args.repeat)]
    return {"seconds": min(times, default=first), "mib": memory}


def run_child(args: argparse.Namespace, name: str, side: int) -> dict:
    """Figures of a child process.

    Raises:
        SystemExit: it failed; the message holds what it said.
    """
    command = [sys.executable, "-W", "ignore", __file__, args.what, "--child", name, "--side", str(side)]
    command += ["--threads", str(args.threads), "--repeat", str(args.repeat), "--clock", args.clock]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    if args.what == "size":  # freed maps go back to the system, so that the peak is that of what is alive
        environment["MALLOC_MMAP_THRESHOLD_"] = "262144"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}, {side} x {side}, failed:\n{done.stderr}")
    figures = json.loads(done.stdout.splitlines()[-1])
    sys.stderr.write(f"{name}, {side} x {side}: {figures}\n")  # of a run of minutes
    return figures


def exponent(sides, values) -> float:
    """Slope of the straight line through (log pixels, log value) that has the least squared distances."""
    x, y = [2 * math.log(side) for side in sides], [math.log(value) for value in values]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    spread = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("scan", "size"))
    parser.add_argument("--networks", nargs="+", help="of those that the table shows; all of them without it")
    parser.add_argument("--side", type=int, default=64, help="scan: side of the image (default 64)")
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES, help="size: sides of the images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the fastest counts")
    parser.add_argument("--clock", choices=("cpu", "wall"), default="cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        json.dump((child_scan if args.what == "scan" else child_size)(args), sys.stdout)
        return
    names = args.networks or list(FULL if args.what == "scan" else SHALLOW)

    from rich.console import Console
    from rich.table import Table

    title = f"{args.threads} threads, {'seconds of all threads' if args.clock == 'cpu' else 'seconds of the clock'}"
    if args.what == "scan":
        table = Table(
            "network", "plain PyTorch scan", "this package", "times faster", "largest difference", title=title
        )
        for name in names:
            got = run_child(args, name, args.side)
            cells = f"{got['plain']:.2f}", f"{got['native']:.3f}", f"{got['plain'] / got['native']:.1f}"
            table.add_row(name, *cells, f"{got['error']:.1e}")
    else:
        table = Table("network", *(f"{side}^2: s, MiB" for side in args.sides), "exponents: time, memory", title=title)
        for name in names:
            got = [run_child(args, name, side) for side in args.sides]
            slopes = (exponent(args.sides, [g[key] for g in got]) for key in ("seconds", "mib"))
            cells = (f"{g['seconds']:.3f}, {g['mib']:.1f}" for g in got)
            table.add_row(name, *cells, ", ".join(f"{slope:.3f}" for slope in slopes))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


if __name__ == "__main__":
    main()
