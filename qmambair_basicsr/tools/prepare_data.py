"""Prepare image sets in the folder layout that the option files expect.

    python -m qmambair_basicsr.tools.prepare_data sr --input FOLDER --set Set5 --scales 2 3 4

writes, below ``--root`` (default ``datasets``)::

    Set5/HR/baby.png                     the images, as PNG
    Set5/LR_bicubic/X2/babyx2.png        sr: MATLAB's bicubic, bit for bit, of the modcropped image

Without ``--input`` the images are those already in ``<root>/<set>/HR``. Every command can be interrupted and run
again: finished files are skipped, unfinished ones are never left behind.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from qmambair_basicsr.data.benchmarks import check_count
from qmambair_basicsr.data.image_files import list_images, read_image, write_atomically, write_image
from qmambair_basicsr.data.matlab_resize import bicubic_downscale, modcrop
from qmambair_basicsr.tools.batch import Report, Task, run_tasks

__all__ = ["main"]

logger = logging.getLogger("prepare_data")


def hr_folder(root: Path, name: str) -> Path:
    """Where the images of a set are."""
    return root / name / "HR"


def lr_folder(root: Path, name: str, scale: int) -> Path:
    """Where the bicubic LR images of a set are; files are named ``<stem>x<scale>.png``."""
    return root / name / "LR_bicubic" / f"X{scale}"


def import_image(task: Task) -> None:
    """Copy a PNG byte for byte once it is known to decode; store any other format, or a cropped image, as PNG."""
    img = read_image(task.source)
    multiple = task.options.get("modcrop", 1)
    if multiple > 1:
        write_image(task.outputs[0], modcrop(img, multiple))
    elif task.source.suffix.lower() == ".png":
        write_atomically(task.outputs[0], task.source.read_bytes())
    else:
        write_image(task.outputs[0], img)


def make_lr(task: Task) -> None:
    """Write the bicubic LR images of one HR image, one per scale."""
    img = read_image(task.source)
    for scale, path in zip(task.options["scales"], task.outputs, strict=True):
        write_image(path, bicubic_downscale(img, scale))


def _import(args: argparse.Namespace, run) -> list[Path]:
    """Bring ``--input`` into ``<root>/<set>/HR`` where it is given; return the set's images."""
    target = hr_folder(args.root, args.set)
    if args.input:
        files = {}
        for file in (file for folder in args.input for file in list_images(folder)):
            if file.stem in files:
                raise ValueError(f"{file} and {files[file.stem]} would both become {file.stem}.png; rename one")
            files[file.stem] = file
        if not args.any_count:
            check_count(args.set, list(files.values()))
        crop = {"modcrop": args.modcrop}
        run([Task(file, (target / f"{stem}.png",), crop) for stem, file in files.items()], import_image, "HR")
    files = list_images(target)
    if not args.any_count and args.on_error == "stop":
        check_count(args.set, files)
    return files


def prepare_sr(args: argparse.Namespace, run) -> None:
    """The ``sr`` command."""
    scales = tuple(sorted(set(args.scales)))
    tasks = []
    for file in _import(args, run):
        outputs = tuple(lr_folder(args.root, args.set, s) / f"{file.stem}x{s}.png" for s in scales)
        tasks.append(Task(file, outputs, {"scales": scales}))
    run(tasks, make_lr, "LR")


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--set", required=True, help="name of the set: the folder below --root")
    common.add_argument("--input", type=Path, nargs="+", help="folders with the images (default: <root>/<set>/HR)")
    common.add_argument("--root", type=Path, default=Path("datasets"), help="where image sets live (default: datasets)")
    common.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (default: one per core)")
    common.add_argument("--on-error", choices=("stop", "skip"), default="stop", help="what to do with a bad image")
    common.add_argument("--any-count", action="store_true", help="accept a known set with another number of images")
    common.add_argument(
        "--modcrop",
        type=int,
        default=1,
        metavar="N",
        help="crop HR images to multiples of N: BasicSR trains only on pairs of exact scale (12 fits x2 to x4)",
    )
    common.add_argument("--overwrite", action="store_true", help="redo files that exist")
    parser = argparse.ArgumentParser(
        prog="python -m qmambair_basicsr.tools.prepare_data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    sr = commands.add_parser("sr", parents=[common], help="HR and bicubic LR images")
    sr.add_argument("--scales", type=int, nargs="+", default=[2, 3, 4], help="default: 2 3 4")
    sr.set_defaults(function=prepare_sr)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry point.

    Returns:
        0; 1 when the command stopped at an error, which is logged.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    args = _parser().parse_args(argv)

    def run(tasks, function, title) -> Report:
        report = run_tasks(
            tasks,
            function,
            workers=args.workers,
            on_error=args.on_error,
            overwrite=args.overwrite,
            title=f"{args.set} {title}",
        )
        logger.info("%s %s: %s", args.set, title, report)
        return report

    try:
        args.function(args, run)
    except (ValueError, OSError) as err:
        logger.error("%s", err)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
