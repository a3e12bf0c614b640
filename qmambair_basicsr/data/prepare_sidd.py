"""The SIDD benchmark in the layout of the RealDN option files.

Training: ``SIDD_Medium_Srgb/Data/<scene>/*_GT_SRGB_*.PNG`` with their ``NOISY`` partners are cut into patches.
Validation: ``ValidationNoisyBlocksSrgb.mat`` and ``ValidationGtBlocksSrgb.mat`` hold 40 x 32 blocks of 256 x 256.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.io import loadmat

from .batch import Task
from .image_files import ImageFileError, read_image, write_image
from .prepare_jobs import windows

__all__ = ["VALIDATION_FILES", "cut_pair", "training_tasks", "unpack_blocks", "validation_tasks"]

VALIDATION_FILES = {"GT": "ValidationGtBlocksSrgb.mat", "LQ": "ValidationNoisyBlocksSrgb.mat"}


def training_tasks(folder: Path, target: Path, size: int, step: int) -> list[Task]:
    """One task per photographed pair below ``folder``; patches go to ``target/{GT,LQ}``.

    Args:
        folder: ``SIDD_Medium_Srgb/Data``.
        target: ``datasets/SIDD/train``.
        size: side of a patch in pixels.
        step: distance between two patches.

    Raises:
        ImageFileError: no pair, or a ground truth without its noisy partner.
    """
    tasks = []
    for gt in sorted(folder.rglob("*GT_SRGB_*.PNG")):
        noisy = gt.with_name(gt.name.replace("GT_SRGB", "NOISY_SRGB"))
        if not noisy.is_file():
            raise ImageFileError(gt, f"its noisy partner {noisy.name} is missing", "unpack the archive again")
        # the number of patches follows from the image's size: the marker is written last
        options = {"noisy": noisy, "target": target, "size": size, "step": step}
        outputs = tuple(target / kind / f"{gt.stem}_s001.png" for kind in ("GT", "LQ"))
        tasks.append(Task(gt, outputs, options, (noisy,), ("size", "step"), comparable=False))
    if not tasks:
        raise ImageFileError(folder, "no *GT_SRGB_*.PNG below it", "give the folder Data of SIDD_Medium_Srgb")
    return tasks


def cut_pair(task: Task) -> None:
    """Cut one pair; the first patch, which marks the task as done, is written last."""
    options = task.options
    gt, noisy = read_image(task.source), read_image(options["noisy"])
    if gt.shape != noisy.shape:
        raise ImageFileError(options["noisy"], f"measures {noisy.shape[:2]}, its ground truth {gt.shape[:2]}")
    size, stem = options["size"], task.source.stem
    corners = list(windows(*gt.shape[:2], size, options["step"], 1))
    if not corners:
        raise ImageFileError(task.source, f"{gt.shape[0]} x {gt.shape[1]} pixels are less than a patch of {size}")
    for index, (top, left) in reversed(list(enumerate(corners, start=1))):
        for kind, img in (("LQ", noisy), ("GT", gt)):
            patch = img[top : top + size, left : left + size]
            write_image(options["target"] / kind / f"{stem}_s{index:03d}.png", patch)


def validation_tasks(folder: Path, target: Path) -> list[Task]:
    """One task per ``.mat`` file in ``folder``; blocks go to ``target/{GT,LQ}/<scene>_<block>.png``.

    Raises:
        ImageFileError: a file is missing.
    """
    tasks = []
    for kind, name in VALIDATION_FILES.items():
        if not (folder / name).is_file():
            raise ImageFileError(folder / name, "missing", "download it from the SIDD benchmark page")
        # blocks are written in order, so the last one marks the file as done
        tasks.append(Task(folder / name, (target / kind / "39_31.png",), {"target": target / kind}, comparable=False))
    return tasks


def unpack_blocks(task: Task) -> None:
    """Write every block of a ``.mat`` file as PNG."""
    try:
        content = loadmat(task.source)
    except (ValueError, TypeError, NotImplementedError) as err:
        raise ImageFileError(task.source, f"not a MATLAB file ({err})", "download it again") from err
    blocks = content.get(task.source.stem)
    if blocks is None or blocks.ndim != 5 or blocks.shape[4] != 3 or blocks.dtype != np.uint8:
        raise ImageFileError(
            task.source, f"holds no uint8 array {task.source.stem} (scenes, blocks, H, W, 3)", "download it again"
        )
    for scene, row in enumerate(blocks):
        for index, block in enumerate(row):
            img = np.ascontiguousarray(block[..., ::-1])
            write_image(task.options["target"] / f"{scene:02d}_{index:02d}.png", img)
