"""Preparing image sets: a function for each subcommand of ``tools.prepare_data``."""

from __future__ import annotations

import argparse
import logging
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from . import prepare_jobs as jobs
from . import prepare_sidd as sidd
from .batch import Report, run_tasks
from .benchmarks import check_count, subset_ids
from .image_files import list_images
from .ledger import Ledger, Task
from .make_lmdb import make_lmdb

__all__ = ["run"]

logger = logging.getLogger("prepare_data")
Run = Callable[[Sequence[Task], Callable[[Task], None], str], Report]


def _collect(args: argparse.Namespace) -> dict[str, Path]:
    """Images of the ``--input`` folders by stem."""
    files: dict[str, Path] = {}
    for file in (file for folder in args.input for file in list_images(folder)):
        if file.stem in files:
            raise ValueError(f"{file} and {files[file.stem]} would both become {file.stem}.png; rename one")
        files[file.stem] = file
    return files


def _images(args: argparse.Namespace, run: Run, only: frozenset[str] | None = None, least: int = 1) -> list[Path]:
    """Bring ``--input`` into ``<root>/<set>/HR`` where it is given; return the set's images.

    Args:
        args: of the command line.
        run: runs tasks.
        only: names of the images to take, all of which must be there.
        least: side in pixels that an image must have to be of any use.
    """
    target = jobs.hr_folder(args.root, args.set)
    if args.input:
        files = _collect(args)
        if only is not None:
            if missing := sorted(only - files.keys()):
                raise ValueError(
                    f"{', '.join(map(str, args.input))}: lacks {len(missing)} images: {', '.join(missing)}"
                )
            files = {stem: files[stem] for stem in sorted(only)}
        if not args.any_count:
            check_count(args.set, list(files.values()))
        options = {"modcrop": args.modcrop, "least": least}
        tasks = [Task(f, (target / f"{stem}.png",), options, decisive=("modcrop",)) for stem, f in files.items()]
        run(tasks, jobs.import_image, "HR")
        if others := [file.name for file in list_images(target) if file.stem not in files]:
            shown = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
            logger.warning("%s keeps %d images that --input does not have: %s", target, len(others), shown)
    files = list_images(target)
    for stem, number in Counter(file.stem for file in files).items():
        if number > 1:
            raise ValueError(
                f"{target} holds {number} images called {stem}, of which the same files would be made; rename"
            )
    if not args.any_count and args.on_error == "stop":
        check_count(args.set, files)
    return files


def prepare_sr(args: argparse.Namespace, run: Run) -> None:
    """``sr``: bicubic LR images."""
    scales = tuple(sorted(set(args.scales)))
    files = _images(args, run, least=max(scales, default=1))
    tasks = [jobs.lr_task(file, args.root, args.set, scales) for file in files]
    run(tasks, jobs.make_lr, "LR")


def prepare_crop(args: argparse.Namespace, run: Run) -> None:
    """``crop``: sub-images of the HR images and of the LR images made by ``sr``."""
    scales = tuple(sorted(set(args.scales)))
    unit = math.lcm(*scales) if scales else 1
    for key, value in (("--size", args.size), ("--step", args.step)):
        if value < 1 or value % unit:
            raise ValueError(f"{key} must be a positive multiple of {unit} (scales {list(scales)}), got {value}")
    plan = [jobs.sub_image_task(f, args.root, args.set, scales, args.size, args.step) for f in _images(args, run)]
    small = [task.source for task in plan if not task.outputs]
    if small:
        logger.warning("%d images are smaller than %d pixels and give no sub-image", len(small), args.size)
    report = run([task for task in plan if task.outputs], jobs.cut_sub_images, "sub-images")
    redone = {path for path, _ in report.redone}
    for task in plan:
        if task.outputs and task.outputs[0] in redone:
            jobs.remove_other_sub_images(task)


def prepare_jpeg(args: argparse.Namespace, run: Run) -> None:
    """``jpeg``: images after compression."""
    grey = args.colour == "grey"
    options = {"qualities": tuple(args.quality), "grey": grey, "subsampling": args.subsampling}
    tasks = []
    for file in _images(args, run):
        folders = [jobs.jpeg_folder(args.root, args.set, q, args.colour, args.subsampling) for q in args.quality]
        folders += [jobs.grey_folder(args.root, args.set)] if grey else []
        tasks.append(Task(file, tuple(folder / f"{file.stem}.png" for folder in folders), options))
    run(tasks, jobs.make_jpeg, "JPEG")


def prepare_noise(args: argparse.Namespace, run: Run) -> None:
    """``noise``: images with the Gaussian noise of the test protocol."""
    tasks = []
    for file in _images(args, run):
        folders = [jobs.noise_folder(args.root, args.set, sigma, args.format) for sigma in args.sigma]
        outputs = tuple(folder / f"{file.stem}.{args.format}" for folder in folders)
        tasks.append(Task(file, outputs, {"sigmas": tuple(args.sigma)}))
    run(tasks, jobs.make_noise, "noise")


def prepare_subset(args: argparse.Namespace, run: Run) -> None:
    """``subset``: copy the images of a published subset out of the bigger set in ``--input``."""
    if not args.input:
        raise ValueError("subset needs --input, the folder of the bigger set (CBSD68: B100's images)")
    _images(args, run, subset_ids(args.set))


def prepare_sidd(args: argparse.Namespace, run: Run) -> None:
    """``sidd``: training patches and validation blocks of SIDD, whichever ``--input`` holds."""
    if not args.input:
        raise ValueError("sidd needs --input, the folder with the .mat files or SIDD_Medium_Srgb/Data")
    for folder in args.input:
        if any(folder.glob("*.mat")):
            tasks = sidd.validation_tasks(folder, args.root / args.set / "val")
            run(tasks, sidd.unpack_blocks, "validation blocks")
        else:
            tasks = sidd.training_tasks(folder, args.root / args.set / "train", args.size, args.step)
            run(tasks, sidd.cut_pair, "training patches")


def prepare_lmdb(args: argparse.Namespace, run: Run) -> None:
    """``lmdb``: pack the HR images, or their sub-images, and the LR images beside them."""
    _images(args, run)
    sub = args.sub
    hr = jobs.hr_folder(args.root, args.set, sub=sub)
    stems = [file.stem for file in list_images(hr)]
    keep = {"overwrite": args.overwrite or args.rerun, "ledger": Ledger(args.root / args.set)}
    make_lmdb(hr, stems, "{}", **keep)
    for scale in sorted(set(args.scales)):
        make_lmdb(jobs.lr_folder(args.root, args.set, scale, sub=sub), stems, f"{{}}x{scale}", **keep)


_COMMANDS = {
    "sr": prepare_sr,
    "crop": prepare_crop,
    "jpeg": prepare_jpeg,
    "noise": prepare_noise,
    "subset": prepare_subset,
    "sidd": prepare_sidd,
    "lmdb": prepare_lmdb,
}


def run(args: argparse.Namespace) -> int:
    """Do what ``tools.prepare_data`` was asked for; returns 0, or 1 when it stopped at an error, which is logged."""

    def run(tasks: Sequence[Task], function: Callable[[Task], None], title: str) -> Report:
        report = run_tasks(
            tasks,
            function,
            workers=args.workers,
            on_error=args.on_error,
            overwrite=args.overwrite or args.rerun,
            title=f"{args.set} {title}",
            ledger=Ledger(args.root / args.set),
        )
        logger.info("%s %s: %s", args.set, title, report)
        return report

    try:
        _COMMANDS[args.command](args, run)
    except (ValueError, OSError) as err:
        logger.error("%s", err)
        return 1
    return 0
