"""Writing the artifacts of a quantized network; ``tools.export`` is its command."""

from __future__ import annotations

import argparse

from rich.console import Console
from torch import nn

from ..inference.image_sets import middles
from ..inference.networks import is_packed, load_network, read_network
from ..layers.info import network_info
from ..layers.sites import activation_sites
from .packed import load_packed, save_packed


def run(args: argparse.Namespace, console: Console) -> None:
    """Write what ``tools.export`` was asked for; ``args`` are its arguments.

    Raises:
        ValueError: arguments that do not fit together.
    """
    if not (args.packed or args.onnx or args.onnx_fp64):
        raise ValueError("nothing to write: give --packed FILE, --onnx FILE, --onnx-fp64 FILE, or several of them")
    if is_packed(args.checkpoint):
        if args.packed:
            raise ValueError("--checkpoint is a packed checkpoint already; --packed needs a BasicSR .pth")
        net = load_packed(args.checkpoint)
    else:
        if not args.opt:
            raise ValueError("-opt is needed to build the network of a .pth checkpoint")
        network = read_network(args.opt)
        net = load_network(network, args.checkpoint, args.param_key)
    if args.packed:
        report = save_packed(net, network, args.packed)
        console.print(
            f"{args.packed}: {report.file / 1024:,.1f} KiB (codes {report.codes / 1024:,.1f}, quantizers "
            f"{report.quantizers / 1024:,.1f}, full precision {report.full_precision / 1024:,.1f}); FP32 "
            f"{report.fp32 / 1024:,.1f} KiB, {report.ratio:.2f} times smaller",
            highlight=False,
            soft_wrap=True,
        )
    if args.onnx or args.onnx_fp64:
        write_onnx(net, args, console)


def write_onnx(net: nn.Module, args: argparse.Namespace, console: Console) -> None:
    """Write the ONNX files that the command line asks for; freezes DLS in ``net`` for ``--dls frozen``.

    Raises:
        ValueError: no calibration images where they are needed.
    """
    from ..layers.convert import freeze_dls
    from .onnx.file import ExportSettings, export_onnx

    if args.dls == "frozen" and any(placed.quantizer.dynamic for placed in activation_sites(net)):
        if not args.calibration:
            raise ValueError("--dls frozen needs --calibration FOLDER (images the constants are taken from)")
        size = args.height, args.width, args.count
        with console.status("freezing DLS grids"):
            replaced = freeze_dls(net, middles(args.calibration, network_info(net).channels, *size))
        console.print(f"{len(replaced)} DLS quantizers frozen", highlight=False)
    # onnxruntime, which alone runs the FP64 file, has no plugin
    wanted = (args.onnx, args.scan, "fp16" if args.fp16 else "fp32"), (args.onnx_fp64, "onnx", "fp64")
    for path, scan, precision in wanted:
        if path:
            sizes = args.height, args.width, args.dynamic
            settings = ExportSettings(*sizes, scan, args.scan_chunk, precision, args.scan_table)
            with console.status("") as status:
                model = export_onnx(net, path, settings, progress=status.update)
            facts = ", ".join(f"{p.key} {p.value}" for p in model.metadata_props if p.key != "grids")
            console.print(f"{path}: {len(model.graph.node)} nodes; {facts}", highlight=False, soft_wrap=True)
