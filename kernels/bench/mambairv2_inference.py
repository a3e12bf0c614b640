"""Inference of MambaIRv2-light x2 on one image: time and peak memory with each scan, one process each.

    python kernels/bench/mambairv2_inference.py --size 256 --threads 2 --weights mambairv2_lightSR_x2.pth

``sequential`` is the scan as PyTorch code usually has it (mamba_ssm's ``selective_scan_ref``): exp(dt A) and dt B x
of all tokens in memory, then a Python loop over the tokens. ``reference`` is this package's chunked PyTorch scan,
``native`` its C++ kernel. Everything around the scan is the same code in all three. Times are the smallest of
``--repeat`` runs (sequential: one) after a warm-up on a 16 x 16 image; memory is the growth of the peak resident set over the network
at rest. CPU seconds are those of all threads together, of the fastest run; on a busy machine trust them rather than
the time of the clock. Differences are the largest absolute ones of the output (range 0..1) to the first variant that was run.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

VARIANTS = ("native", "reference", "sequential")
NETWORK = {
    "upscale": 2,
    "embed_dim": 48,
    "d_state": 8,
    "depths": [5, 5, 5, 5],
    "num_heads": [4, 4, 4, 4],
    "mlp_ratio": 1.0,
    "upsampler": "pixelshuffledirect",
}


def peak_mib() -> float:
    """Peak resident set of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(args: argparse.Namespace) -> None:
    """Child process: run one variant, print its figures as JSON, save its output."""
    import qmambair_basicsr  # noqa: F401  (before torch, whose threads it tells how to wait)

    # isort: split
    import torch

    from qmambair_basicsr.archs import ss2d
    from qmambair_basicsr.archs.mambairv2_arch import MambaIRv2Light
    from qmambair_basicsr.ops.ss2d_scan.naive import naive_scan

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    net = MambaIRv2Light(**NETWORK).eval()
    if args.weights:
        net.load_state_dict(torch.load(args.weights, weights_only=True)["params"])
    if args.variant == "sequential":
        ss2d.ss2d_scan = naive_scan
    image = torch.rand(1, 3, args.size, args.size)
    with torch.inference_mode():
        net(image[..., :16, :16])
        rest = peak_mib()
        seconds = []
        for _ in range(1 if args.variant == "sequential" else args.repeat):
            start, cpu = time.perf_counter(), time.process_time()
            output = net(image)
            seconds.append((time.perf_counter() - start, time.process_time() - cpu))
    torch.save(output, args.output)
    wall, cpu = min(seconds)
    json.dump({"seconds": wall, "cpu": cpu, "mib": peak_mib() - rest}, sys.stdout)


def run(variant: str, args: argparse.Namespace, folder: str) -> tuple[dict, str]:
    """Start the child process of one variant; its figures and the file of its output."""
    output = str(Path(folder) / f"{variant}.pt")
    command = [sys.executable, "-W", "ignore", __file__, "--variant", variant, "--output", output]
    command += ["--size", str(args.size), "--threads", str(args.threads), "--repeat", str(args.repeat)]
    command += ["--weights", args.weights] if args.weights else []
    backend = "reference" if variant == "sequential" else variant
    environment = os.environ | {"QMAMBAIR_BACKEND": backend, "OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{variant} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1]), output


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the input image in pixels (default 256)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--weights", help="official mambairv2_lightSR_x2.pth; random weights without it")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        measure(args)
        return

    import torch
    from rich.console import Console
    from rich.table import Table

    table = Table("scan", "seconds", "times faster", "CPU seconds", "peak memory, MiB", "largest difference")
    rows, first = [], None
    with tempfile.TemporaryDirectory() as folder:
        for variant in args.variants:
            figures, file = run(variant, args, folder)
            output = torch.load(file, weights_only=True)
            first = output if first is None else first
            rows.append((variant, figures, (output - first).abs().max().item()))
    slowest = max(figures["seconds"] for _, figures, _ in rows)
    for variant, figures, difference in rows:
        seconds, cpu, mib = figures["seconds"], figures["cpu"], figures["mib"]
        table.add_row(
            variant, f"{seconds:.2f}", f"{slowest / seconds:.1f}", f"{cpu:.2f}", f"{mib:.0f}", f"{difference:.1e}"
        )
    Console().print(f"MambaIRv2-light x2, {args.size} x {args.size} image, {args.threads} threads", table)


if __name__ == "__main__":
    main()
