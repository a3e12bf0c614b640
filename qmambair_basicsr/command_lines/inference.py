"""The arguments of ``tools.inference``."""

from __future__ import annotations

import argparse

from ..arguments import add
from . import for_command

TASKS = ("sr", "denoise", "jpeg", "realdenoise")
BACKENDS = ("auto", "integer", "float", "onnx")


def tile(text: str) -> int | str:
    """A number of pixels, ``auto`` or ``off``."""
    if text in ("auto", "off"):
        return text
    if not text.isdecimal() or int(text) < 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no tile: give a number of pixels (at least 16), auto or off")
    return int(text)


def factor(text: str) -> float:
    """A number above 0 and at most 16."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 16:
        raise argparse.ArgumentTypeError(f"{text!r} is no factor between 0 and 16")
    return value


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = for_command("tools.inference")
    parser.add_argument(
        "-i",
        dest="inputs",
        nargs="+",
        required=True,
        metavar="PHOTOS",
        help="pictures, folders, or patterns such as '*.jpg'",
    )
    add(parser, "--out", "results", short="-o", required=True)
    parser.add_argument("--recursive", action="store_true", help="with the sub-folders of folders, which are kept")
    model = parser.add_argument_group("network")
    choice = model.add_mutually_exclusive_group()
    choice.add_argument("--task", choices=TASKS, help="which of the shipped networks (default: sr)")
    add(choice, "--model", "a file of weights, or the name of a shipped one", repeated=True)
    add(model, "-opt", "of a --model whose keys do not say what it is")
    add(model, "--bits", "of a --model whose keys do not say it")
    model.add_argument("--scale", type=int, choices=(2, 3, 4), help="of the shipped network for sr (default: 2)")
    model.add_argument(
        "--outscale", type=factor, metavar="FACTOR", help="resize the results to this multiple (default: the network's)"
    )
    add(model, "--backend", default="auto", choices=BACKENDS)
    add(model, "--device", default="auto")
    model.add_argument("--half", action="store_true", help="compute in half precision (GPUs)")
    add(model, "--threads", "default: all")
    model.add_argument(
        "--tta", action="store_true", help="mean of eight mirrored and turned forms: eight times the time"
    )
    model.add_argument(
        "--tile",
        type=tile,
        default="auto",
        metavar="SIZE|auto|off",
        help="longest side of a tile in pixels (default: auto)",
    )
    add(model, "--overlap", "default: 32, or half of a smaller tile")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--ext", metavar="EXT", help="ending of the results: png, jpg, tif ... (default: that of the picture)"
    )
    add(files, "--quality", "of JPEG, WebP, AVIF and HEIF; default: 95")
    files.add_argument("--suffix", default="", help="put behind the names of the results")
    existing = files.add_mutually_exclusive_group()
    existing.add_argument(
        "--skip-existing",
        action="store_true",
        help="leave every result that is there, whatever it was made from (default: those made from the same)",
    )
    add(existing, "--overwrite")
    work = parser.add_argument_group("besides")
    add(work, "--dry-run")
    work.add_argument(
        "--self-check", action="store_true", help="measure what backend, bits and tiles change, on each picture"
    )
    add(work, "--page")
    add(work, "--truth", "for PSNR")
    work.add_argument("--debug", action="store_true", help="show where an error was raised")
    return parser
