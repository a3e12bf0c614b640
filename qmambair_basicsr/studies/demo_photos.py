"""Small training and test sets cut from the photographs inside scikit-image's wheel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage import data

from ..data import prepare_jobs as jobs
from ..data.batch import run_tasks
from ..data.image_files import list_images, write_image

# (set, loader, side of the squares cut from it, how many at most); training and test photographs are different scenes
PHOTOS = (
    ("PhotosTest", "astronaut", 256, 1),
    ("PhotosTest", "chelsea", 256, 1),
    ("PhotosTest", "coffee", 256, 1),
    ("PhotosTest", "rocket", 256, 1),
    ("Photos", "stereo_motorcycle", 128, 24),
    ("Photos", "camera", 128, 12),
    ("Photos", "brick", 128, 6),
    ("Photos", "gravel", 128, 6),
    ("Photos", "grass", 128, 6),
    ("Photos", "coins", 128, 4),
    ("Photos", "retina", 128, 16),
    ("Photos", "immunohistochemistry", 128, 8),
)


def squares(img: np.ndarray, side: int, count: int) -> list[np.ndarray]:
    """Cut an image into squares and keep those with most structure.

    Args:
        img: (H, W, C).
        side: of a square, in pixels.
        count: how many to keep; one square is cut from the centre.

    Returns:
        Views of ``img``, in reading order.
    """
    height, width = img.shape[:2]
    if count == 1:
        top, left = (height - side) // 2, (width - side) // 2
        return [img[top : top + side, left : left + side]]
    corners = [(y, x) for y in range(0, height - side + 1, side) for x in range(0, width - side + 1, side)]
    cut = [img[y : y + side, x : x + side] for y, x in corners]
    by_structure = sorted(range(len(cut)), key=lambda i: -float(cut[i].std()))
    return [cut[i] for i in sorted(by_structure[:count])]


def prepare(root: Path) -> dict[str, int]:
    """Write the sets ``Photos`` and ``PhotosTest`` below ``root``: HR and MATLAB-bicubic x2.

    Returns:
        Number of images per set.

    Raises:
        OSError: they cannot be written.
    """
    counts: dict[str, int] = {}
    for name, loader, side, count in PHOTOS:
        img = getattr(data, loader)()
        img = img[0] if isinstance(img, tuple) else img  # the motorcycle comes as left, right, disparity
        img = np.repeat(img[..., None], 3, axis=2) if img.ndim == 2 else img[..., :3]
        for i, square in enumerate(squares(img, side, count)):
            # OpenCV's order is BGR
            write_image(jobs.hr_folder(root, name) / f"{loader}{i}.png", np.ascontiguousarray(square[..., ::-1]))
            counts[name] = counts.get(name, 0) + 1
    for name in counts:
        files = list_images(jobs.hr_folder(root, name))
        run_tasks([jobs.lr_task(file, root, name, (2,)) for file in files], jobs.make_lr, title=f"{name} LR")
    return counts
