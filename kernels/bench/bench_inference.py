"""One image through a network in full precision, fake-quantized and on integer kernels; with onnxruntime where it is installed.

    python kernels/bench/bench_inference.py --network light --bits 4 --size 96 --threads 1

All variants of one run take turns; seconds are the smallest of all rounds, of the clock (``--clock cpu`` on a busy machine).
Networks are those of the option files, of random weights calibrated on the image, or of ``--checkpoint``; the integer one
is read from a packed file. Peak memory is the growth of the peak resident set over the network at rest, a process for each
variant (Linux). There are no figures unless every code of the integer network is that of the value it was made of, and its output is as near
to fake quantization's as rounding lets it be (``tools.verify``).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import qmambair_basicsr  # noqa: F401  (before torch, whose threads it tells how to wait)

# isort: split
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {
    "light": "QMambaIR_lightSRx2",
    "v2light": "QMambaIRv2Light_lightSRx2",
    "classic": "QMambaIR_SRx2",
    "tiny": "QMambaIR_tinySRx2",
}
VARIANTS = ("full precision", "fake-quantized", "integer", "ONNX FP32", "ONNX INT8")
LEAST_PSNR = 50.0
PROBE = 48


def image_of(size: int) -> Tensor:
    """An image with large and small structures, (1, 3, size, size)."""
    generator = torch.Generator().manual_seed(0)
    layers = [torch.rand(1, 3, n, n, generator=generator) for n in (4, 16, size)]
    smooth = [nn.functional.interpolate(t, (size, size), mode="bicubic", align_corners=False) for t in layers]
    return (0.6 * smooth[0] + 0.3 * smooth[1] + 0.1 * smooth[2]).clamp(0, 1)


def block_of(network: str, bits: int) -> dict:
    """The ``network_g`` block of an option file."""
    from qmambair_basicsr.inference.networks import read_network

    return dict(read_network(ROOT / "options" / f"test_{OPTIONS[network]}_w{bits}a{bits}.yml"))


def quantized(args: argparse.Namespace, folder: Path) -> None:
    """Write the quantized network, packed."""
    from basicsr.archs import build_network

    from qmambair_basicsr.artifacts.packed import save_packed
    from qmambair_basicsr.calibration import calibrate
    from qmambair_basicsr.inference.networks import load_network

    block = block_of(args.network, args.bits)
    if args.checkpoint:
        net = load_network(block, args.checkpoint)
    else:
        torch.manual_seed(0)
        net = build_network(dict(block)).eval()
        calibrate(net, [image_of(PROBE)])
    save_packed(net, block, folder / "net.safetensors")


def variant_of(name: str, args: argparse.Namespace, folder: Path):
    """A function of an image."""
    from basicsr.archs import build_network

    from qmambair_basicsr.artifacts.packed import load_packed
    from qmambair_basicsr.layers.info import full_precision_twin
    from qmambair_basicsr.runtime import native_network

    if name == "integer":
        return native_network(load_packed(folder / "net.safetensors"))
    if name == "fake-quantized":
        return load_packed(folder / "net.safetensors")
    if name == "full precision":
        block = block_of(args.network, args.bits)
        block.pop("quant")
        torch.manual_seed(0)
        return build_network(block | {"type": full_precision_twin(block["type"])}).eval()
    from qmambair_basicsr.artifacts.onnx.runtime import OnnxNetwork

    return OnnxNetwork(folder / f"{name}.onnx", args.threads)


def write_onnx(args: argparse.Namespace, folder: Path) -> list[str]:
    """Write ONNX files of this size; names of the variants there are."""
    try:
        import onnxruntime  # noqa: F401

        from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx
    except ImportError:
        return []
    from qmambair_basicsr.layers.convert import freeze_dls

    written = []
    for name, source in (("ONNX FP32", "full precision"), ("ONNX INT8", "fake-quantized")):
        net = variant_of(source, args, folder)
        if name == "ONNX INT8":
            freeze_dls(net, [image_of(PROBE)])
        export_onnx(net, folder / f"{name}.onnx", ExportSettings(args.size, args.size))
        written.append(name)
    return written


def prove(native: nn.Module, fake: nn.Module, size: int) -> str | None:
    """What is wrong with the integer network; None for nothing."""
    from qmambair_basicsr.artifacts.verification import with_rounding
    from qmambair_basicsr.artifacts.verify import MARGIN, ROUNDING
    from qmambair_basicsr.inference.image_sets import psnr_between
    from qmambair_basicsr.lowering import captured_codes, lower
    from qmambair_basicsr.runtime.observation import observed

    image = image_of(min(size, PROBE))
    wanted, got = captured_codes(lower(fake), image), observed(native, image)
    if wanted.keys() != got.keys():
        return f"quantizers are missing: {sorted(wanted.keys() ^ got.keys())[:3]}"
    for site, calls in wanted.items():
        own, total = sum(seen.equal for seen in got[site]), sum(codes.size for codes in calls)
        if own != total:
            return f"{site}: {total - own} of {total} codes differ for the same input"
    exact = fake(image)
    found = psnr_between(native(image), exact)
    least = min(LEAST_PSNR, psnr_between(with_rounding(fake, ROUNDING["fp32"])(image), exact) - MARGIN)
    return (
        None if found >= least else f"the output is {found:.1f} dB from the network's, rounding explains {least:.1f} dB"
    )


def measured(networks: dict[str, object], args: argparse.Namespace) -> dict[str, float]:
    """Smallest seconds of each, taking turns."""
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    image, best = image_of(args.size), {}
    for _ in range(args.rounds + 1):  # the first is a warm-up
        for name, network in networks.items():
            if name.startswith("ONNX") and len(best.get(name, ())) > 1:
                continue  # several times as long as all others together
            start = clock()
            network(image)
            best.setdefault(name, []).append(clock() - start)
    return {name: min(seconds[1:]) for name, seconds in best.items()}


def resident_mib(name: str) -> float:
    """A line of /proc/self/status in MiB: VmRSS, the resident set, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def memory_child(args: argparse.Namespace) -> None:
    """Child process: the growth of the peak memory over the network at rest."""
    folder = Path(args.folder)
    network = variant_of(args.memory_of, args, folder)
    small, image = image_of(16), image_of(args.memory_size)
    with torch.inference_mode():
        network(small)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        rest = resident_mib("VmRSS")
        network(image)
    json.dump(resident_mib("VmHWM") - rest, sys.stdout)


def memory_of(name: str, args: argparse.Namespace, folder: Path) -> float:
    """Peak memory of a variant, from a process of its own."""
    words = ["--memory-of", name, "--folder", str(folder), "--memory-size", str(args.memory_size)]
    words += ["--network", args.network, "--bits", str(args.bits), "--threads", str(args.threads)]
    command = [sys.executable, "-W", "ignore", __file__, *words]
    environment = os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=tuple(OPTIONS), default="light")
    parser.add_argument("--bits", type=int, choices=(2, 4), default=4, help="of weights and activations (default 4)")
    parser.add_argument("--size", type=int, default=96, help="side of the image (default 96)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each variant (ONNX: one)")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--checkpoint", help="trained weights of the quantized network (.pth)")
    parser.add_argument(
        "--memory-size", type=int, help="side of the image that memory is measured on (default: --size)"
    )
    parser.add_argument("--no-onnx", action="store_true", help="leave onnxruntime out")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    return parser


def main() -> None:
    """Command line."""
    args = build_parser().parse_args()
    args.memory_size = args.memory_size or args.size
    torch.set_num_threads(args.threads)
    if args.memory_of:
        memory_child(args)
        return
    console = Console()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        with torch.inference_mode(False):
            quantized(args, folder)
            onnx = [] if args.no_onnx else write_onnx(args, folder)
            networks = {name: variant_of(name, args, folder) for name in (*VARIANTS[:3], *onnx)}
            fault = prove(networks["integer"], networks["fake-quantized"], args.size)
        if fault:
            raise SystemExit(f"no figures: {fault}")
        seconds = measured(networks, args)
        first = seconds["full precision"]
        unit = "seconds" if args.clock == "wall" else "CPU seconds"
        side = args.memory_size
        columns = ["variant", unit, "times full precision"]
        columns += [] if args.no_memory else [f"peak MiB, {side} x {side}"]
        table = Table(*columns)
        for variant, value in seconds.items():
            row = [variant, f"{value:.3f}", f"{first / value:.2f}"]
            if not args.no_memory:  # ONNX files are for one size of image
                row.append("-" if variant in onnx else f"{memory_of(variant, args, folder):.0f}")
            table.add_row(*row)
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    console.print(f"{args.network}, {args.bits} bits, {args.size} x {args.size}, {threads}", table)
    integer = seconds["integer"]
    for other in onnx:
        sys.stdout.write(f"integer {seconds[other] / integer:.2f} times {other} ({seconds[other]:.3f} seconds)\n")
    sys.stdout.write(f"integer {first / integer:.2f} times FP ({integer:.3f} against {first:.3f}), codes equal\n")


if __name__ == "__main__":
    main()
