"""Compare quantizer settings after calibration alone, without training, on the network of an option file.

python -m qmambair_basicsr.tools.compare_calibration -opt options/train_QMambaIR_tinySRx2_w4a4.yml \\
    --truth datasets/Set5/HR --calibration datasets/BSDS400T91/HR --bits 4 2

Images of both folders are of high resolution: each is cut to its middle and degraded with MATLAB's bicubic kernel. Each
setting is calibrated afresh, then every image is restored alone and once more in one batch with the others. Printed:
mean PSNR (Y, border of ``scale`` pixels cut) of both, and the largest change of an output value, in 1/255, that the
company of other images causes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import qmambair_basicsr  # noqa: F401  (registers the networks)

from ..cli import run_tool
from ..command_lines.compare_calibration import build_parser
from ..recipes.option_files import read_options
from ..studies import calibration_study as study


def run(args: argparse.Namespace) -> None:
    """Measure what the command line asks for and print it.

    Raises:
        ValueError: options or folders that do not fit.
        CheckpointError: weights that do not fit.
    """
    opt = read_options(args.opt, ("network_g",), quantized=True)
    network = opt["network_g"]
    weights = args.checkpoint or (opt.get("path") or {}).get("pretrain_network_g")
    if weights is None:
        raise ValueError(f"{args.opt}: path has no pretrain_network_g; give --checkpoint FILE")
    low, high = study.load_pairs(args.truth, args.middle, network["upscale"], 100)
    calibration, _ = study.load_pairs(args.calibration, args.middle, network["upscale"], args.count)

    header = ("bits", "setting", "PSNR alone", "PSNR in a batch", "largest change")
    table, console = Table(*header), Console()
    if args.form == "markdown":
        for line in (header, ["---", "---", "---:", "---:", "---:"]):
            console.print(f"| {' | '.join(line)} |", highlight=False, soft_wrap=True)
    full = study.mean_psnr(
        study.restore_alone(study.network_with(network, weights, {}, args.param_key), low), high, network["upscale"]
    )
    baseline = ("32", "full precision", f"{full:.2f}", "", "")
    table.add_row(*baseline)
    if args.form == "markdown":
        console.print(f"| {' | '.join(baseline)} |", highlight=False, soft_wrap=True)
    for bits in args.bits:
        results = study.compare(network, weights, calibration, low, high, bits, args.param_key)
        for name, alone, together, change in tqdm(results, total=len(study.SETTINGS), desc=f"{bits} bits"):
            row = (str(bits), name, f"{alone:.2f}", f"{together:.2f}", f"{change:.2f}")
            table.add_row(*row)
            if args.form == "markdown":
                console.print(f"| {' | '.join(row)} |", highlight=False, soft_wrap=True)
    if args.form != "markdown":
        console.print(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
