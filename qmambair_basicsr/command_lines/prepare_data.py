"""The arguments of ``tools.prepare_data``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..arguments import add, positive
from ..data.jpeg_codec import SUBSAMPLING
from . import for_command


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--set", required=True, help="name of the set: the folder below --root")
    common.add_argument("--input", type=Path, nargs="+", help="folders with the images (default: <root>/<set>/HR)")
    add(common, "--root", default=Path("datasets"))
    common.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    common.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="what to do with a bad image")
    common.add_argument("--any-count", action="store_true", help="accept a known set with another number of images")
    common.add_argument(
        "--modcrop",
        type=positive,
        default=1,
        metavar="N",
        help="crop HR images to multiples of N: BasicSR trains only on pairs of exact scale (12 fits x2 to x4)",
    )
    add(common, "--overwrite")
    add(common, "--rerun", "here the same as --overwrite")
    parser = for_command("tools.prepare_data")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, parents=[common], help=text, description=text, allow_abbrev=False)

    sr = command("sr", "HR and bicubic LR images")
    add(sr, "--scales", "none: HR only", default=[2, 3, 4], nargs="*")
    crop = command("crop", "sub-images of HR and LR, which train faster than big files")
    add(crop, "--scales", default=[2, 3, 4], nargs="*")
    add(crop, "--size", default=480)
    add(crop, "--step", default=240)
    jpeg = command("jpeg", "images after baseline JPEG compression, the same on every machine")
    add(jpeg, "--quality", default=[10, 30, 40], nargs="+")
    jpeg.add_argument("--colour", choices=("grey", "rgb"), default="grey", help="grey = Y of MATLAB's rgb2ycbcr")
    jpeg.add_argument("--subsampling", choices=SUBSAMPLING, default=SUBSAMPLING[0], help="chroma of rgb images")
    noise = command("noise", "images with the Gaussian noise of the test protocol")
    noise.add_argument("--sigma", type=float, nargs="+", default=[15, 25, 50], help="default: 15 25 50")
    noise.add_argument("--format", choices=("npy", "png"), default="npy", help="png clips and rounds: not the protocol")
    command("subset", "a published subset of a bigger set: CBSD68 out of B100")
    real = command("sidd", "SIDD: --input SIDD_Medium_Srgb/Data and/or the folder of the two .mat files")
    add(real, "--size", default=512)
    add(real, "--step", default=384)
    lmdb = command("lmdb", "LMDB copies of HR and LR")
    add(lmdb, "--scales", default=[2, 3, 4], nargs="*")
    lmdb.add_argument("--sub", action="store_true", help="pack the sub-images made by crop")
    return parser
