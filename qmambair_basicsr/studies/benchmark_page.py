"""The pictures of a benchmark as one HTML file: methods below each other, details beside each other, errors as heat maps."""

from __future__ import annotations

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from ..data.image_files import ImageFileError, list_images, match_channels, read_image
from ..inference.page import Detail, data_uri, write_page
from .benchmark_table import Entry

__all__ = ["write_benchmark_page"]

PER_SET = 2  # images of a set that are shown
SIDE = 96  # pixels of a detail
BRIGHTEST = 32  # error, in 1/255, that the heat map shows brightest

Test = tuple[Mapping, Entry]
"""Options of a test file, and its row of the table."""


def most_structure(image: np.ndarray, side: int = SIDE) -> Detail:
    """The square of an image with the largest differences between neighbours; all of a smaller image."""
    height, width = min(side, image.shape[0]), min(side, image.shape[1])
    grey = image.astype(np.float32).mean(2)
    change = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    sums = cv2.integral(change)
    totals = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(totals.argmax()), totals.shape)
    return Detail(int(top), int(left), height, width)


def heat_map(result: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean error over the channels, black to bright, (h, w, 3) RGB."""
    error = np.abs(result.astype(np.float32) - truth.astype(np.float32)).mean(2)
    level = np.clip(error * (255 / BRIGHTEST), 0, 255).astype(np.uint8)
    return cv2.applyColorMap(level, cv2.COLORMAP_INFERNO)[..., ::-1]


def result_of(opt: Mapping, results: Path, name: str, stem: str) -> Path | None:
    """The image that a test left of an image of a set; None where there is none."""
    suffix = (opt.get("val") or {}).get("suffix") or opt["name"]
    folder = results / opt["name"] / "visualization" / name
    stems = (stem, f"{stem}x{opt.get('scale', 1)}")
    return next((file for file in (folder / f"{s}_{suffix}.png" for s in stems) if file.is_file()), None)


def shown_images(opt: Mapping) -> Iterator[tuple[str, Path]]:
    """(set, ground truth) of what is shown: the first images of every set that has ground truth."""
    for section in opt["datasets"].values():
        root = section.get("dataroot_gt")
        if root and Path(root).is_dir():
            for file in list_images(root)[:PER_SET]:
                yield section["name"], file


def _cell(image: np.ndarray, text: str, heat: np.ndarray | None = None) -> str:
    pictures = [image[..., ::-1] if image.shape[2] == 3 else image, *([] if heat is None else [heat])]
    tags = "".join(f'<img alt="{html.escape(text)}" src="{data_uri(np.ascontiguousarray(p), True)}">' for p in pictures)
    return f"<td>{tags}{html.escape(text)}</td>"


def _compared(file: Path | None, truth: np.ndarray, shown: Detail) -> str:
    """The cell of one method and one detail."""
    if file is None:
        return "<td>no image: the test file has save_img: false, or its images are gone</td>"
    try:
        result = read_image(file)
    except ImageFileError as err:
        return f"<td>{html.escape(str(err))}</td>"
    same = match_channels(truth, result.shape[2])[: result.shape[0], : result.shape[1]]
    part, wanted = shown.of(result), shown.of(same)
    if part.shape != wanted.shape:
        return "<td>of another size than its ground truth</td>"
    error = float(np.square(part.astype(np.float64) - wanted).mean())
    text = "equal" if error == 0 else f"{10 * math.log10(255**2 / error):.2f} dB"
    return _cell(part, text, heat_map(part, wanted))


def task_table(task: str, tests: Sequence[Test], results: Path) -> str:
    """The HTML of one task."""
    columns = list(dict.fromkeys(image for opt, _ in tests for image in shown_images(opt)))
    truths = {file: read_image(file) for _, file in columns}
    details = {file: most_structure(truth) for file, truth in truths.items()}
    head = "".join(f"<th>{html.escape(f'{name}: {file.stem}')}</th>" for name, file in columns)
    first = "".join(_cell(details[file].of(truths[file]), "ground truth") for _, file in columns)
    rows = [f"<tr><th>ground truth</th>{first}</tr>"]
    for opt, entry in tests:
        label = f"{entry.model} {entry.method} {entry.bits[0]}/{entry.bits[1]}"
        cells = (
            _compared(result_of(opt, results, name, file.stem), truths[file], details[file]) for name, file in columns
        )
        rows.append(f"<tr><th>{html.escape(label)}</th>{''.join(cells)}</tr>")
    return (
        f"<h2>{html.escape(task)}</h2>\n<div class='scroll'><table><tr><th></th>{head}</tr>\n"
        + "\n".join(rows)
        + "</table></div>"
    )


def write_benchmark_page(path: Path, tests: Sequence[Test], results: Path) -> None:
    """Write the page.

    Args:
        path: HTML file.
        tests: test files with their rows.
        results: folder of BasicSR's results, where each test left its images.

    Raises:
        OSError: it cannot be written.
    """
    tasks = dict.fromkeys(entry.task for _, entry in tests)
    parts = (task_table(task, [test for test in tests if test[1].task == task], results) for task in tasks)
    lead = (
        f"The {SIDE} x {SIDE} pixels with most structure of the first images of each set; below each its error, "
        f"brightest at {BRIGHTEST}/255; PSNR of this detail over all channels."
    )
    write_page(path, "Benchmark", lead, parts)
