"""Checks of the files that an option file names: folders, lists and weights that must exist, and sizes of images."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .cross import get, sets, whole
from .datasets import is_ours
from .problems import Problem, join, show
from .registered import find
from .rules import is_number
from .sizes import list_names, smallest

DATA_HELP = 'README, section "Data", says how to get it'
WEIGHTS_HELP = 'README, section "Weights", says how to get it'

# least side that must be left of an image after crop_border: one pixel, SSIM's window, NIQE's block
_LEAST_SIDE = {
    "calculate_psnr": 1,
    "calculate_psnr_pt": 1,
    "calculate_ssim": 11,
    "calculate_ssim_pt": 11,
    "calculate_niqe": 96,
}


def expand(path: str) -> str:
    """The path with ``~`` written out."""
    try:
        return os.path.expanduser(path)
    except (RuntimeError, ValueError):
        return path


def _test(test, path: str) -> bool:
    """``os.path`` tests that answer False for what cannot be a path here (too long, not in the locale's encoding)."""
    try:
        return test(expand(path))
    except (OSError, ValueError):
        return False


def is_file(path: str) -> bool:
    """Whether there is a file of this name."""
    return _test(os.path.isfile, path)


def is_folder(path: str) -> bool:
    """Whether there is a folder of this name."""
    return _test(os.path.isdir, path)


def _expressible(path: str) -> bool:
    try:
        os.fsencode(path)
    except UnicodeError:
        return False
    return True


def _absent(what: str, path: str, remedy: str) -> str:
    if not _expressible(path):
        return f"{what} {path!a} cannot be named in this locale; set LC_ALL=C.UTF-8 or PYTHONUTF8=1"
    return f"{what} {path} does not exist; {remedy}"


def wanted_paths(opt: Mapping) -> Iterator[tuple[str, Mapping, str]]:
    """Path, section and key of every option that names a file or folder to read."""
    for where, section, _ in sets(opt, "train", "val", "test"):
        for key in section:
            if isinstance(key, str) and (key.startswith("dataroot") or key.startswith("meta_info")):
                yield join(where, key), section, key
    path = get(opt, "path", Mapping) or {}
    for key in path:
        if isinstance(key, str) and (key.startswith("pretrain_network") or key == "resume_state"):
            yield f"path.{key}", path, key
    teacher = get(opt, "quant_train.teacher", Mapping)
    if teacher is not None and "path" in teacher:
        yield "quant_train.teacher.path", teacher, "path"


def data_folders(opt: Mapping) -> Iterator[Problem]:
    """Folders and list files of the data sets."""
    for where, section, key in wanted_paths(opt):
        value = section[key]
        if not where.startswith("datasets.") or not isinstance(value, str) or not value:
            continue
        if key.startswith("meta_info"):
            if not is_file(value):
                yield Problem(where, _absent("file", value, DATA_HELP))
        elif not is_folder(value):
            if is_file(value):
                yield Problem(where, f"{value} is a file; give a folder")
            else:
                yield Problem(where, _absent("folder", value, DATA_HELP))
        elif not _has_entries(expand(value)):
            yield Problem(where, f"folder {value} is empty; {DATA_HELP}")
        elif get(section, "io_backend.type") == "lmdb" and not is_file(f"{value}/meta_info.txt"):
            yield Problem(where, f"{value} is no LMDB of BasicSR (it has no meta_info.txt), but io_backend is lmdb")


def _has_entries(folder: str) -> bool:
    try:
        with os.scandir(folder) as entries:
            return any(True for _ in entries)
    except OSError:
        return True  # not to be listed, which the data set reports


def weights(opt: Mapping) -> Iterator[Problem]:
    """Checkpoints that will be read; those of a run that resumes come from its own folder."""
    path = get(opt, "path", Mapping) or {}
    resuming = path.get("resume_state") is not None
    if opt.get("auto_resume"):
        states = get(opt, "path.training_states", str)
        resuming = resuming or bool(states and any(Path(states).glob("*.state")))
    for where, section, key in wanted_paths(opt):
        value = section[key]
        if where.startswith("datasets.") or not isinstance(value, str) or not value:
            continue
        if (key.startswith("pretrain_network") and resuming) or (key == "resume_state" and opt.get("auto_resume")):
            continue
        if not is_file(value):
            if is_folder(value):
                yield Problem(where, f"{value} is a folder; give a file")
            else:
                yield Problem(where, _absent("file", value, WEIGHTS_HELP))


# -- images ------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=64)
def _smallest_in(folder: str, names: tuple[str, ...], stamp: int) -> tuple[int, str] | None:
    return smallest(folder, names)


class Images:
    """The ground-truth images of a data set, as far as folders and headers show them.

    Args:
        section: the data set's options.
        dataset: its class.

    Attributes:
        folder: where they are; None where it cannot be told (LMDB, another plugin's data set, no such folder).
        names: their file names.
    """

    def __init__(self, section: Mapping, dataset: Any) -> None:
        self.folder: str | None = None
        self.names: tuple[str, ...] = ()
        root, backend = section.get("dataroot_gt"), get(section, "io_backend.type")
        known = is_ours(dataset) or getattr(dataset, "__name__", "") == "PairedImageDataset"
        if not known or not isinstance(root, str) or backend not in (None, "disk") or not is_folder(root):
            return
        names = list_names(expand(root))
        listed = section.get("meta_info_file")
        if isinstance(listed, str) and listed:
            names = _listed(listed, set(names))
        if names:
            self.folder, self.names = expand(root), tuple(names)

    def smallest(self) -> tuple[int, str] | None:
        """The shortest side in pixels, and the image that has it."""
        if self.folder is None:
            return None
        return _smallest_in(self.folder, self.names, os.stat(self.folder).st_mtime_ns)


def _listed(file: str, names: set[str]) -> list[str]:
    """The lines of a list that name an image of the folder."""
    try:
        lines = Path(expand(file)).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except (OSError, ValueError):
        return []
    found = []
    for line in map(str.strip, lines):
        parts = (line, line.split(" (")[0], line.split("\t")[0].strip(), line.split(" ")[0])
        found.extend([part for part in parts if part in names][:1])
    return found


def training_data(opt: Mapping, processes: int) -> Iterator[Problem]:
    """The training images against the patch and the batch."""
    for where, section, dataset in sets(opt, "train"):
        images = Images(section, dataset)
        size, shortest = get(section, "gt_size", int), images.smallest()
        if size and shortest and shortest[0] < size and section.get("on_error") != "skip":
            yield Problem(
                f"{where}.gt_size",
                f"is {size}, but the smallest image, {shortest[1]}, has a side of {shortest[0]} pixels",
            )
        batch, ratio = get(section, "batch_size_per_gpu", int), section.get("dataset_enlarge_ratio", 1)
        if images.folder is None or not batch or batch < 1 or not is_number(ratio) or ratio <= 0:
            continue
        gpus = 1 if opt.get("dist") else max(1, get(opt, "num_gpu", int) or 1)
        samples = math.ceil(len(images.names) * ratio / processes)
        if samples < batch * gpus:
            shown = f"{len(images.names)} images x dataset_enlarge_ratio {ratio}"
            shared = f" / {processes} processes" if processes > 1 else ""
            times = f" x {gpus} GPUs" if gpus > 1 else ""
            yield Problem(
                f"{where}.batch_size_per_gpu",
                f"is {batch}{times}, but an epoch has {samples} samples ({shown}{shared}), so there would be no "
                "iteration; take a smaller batch or a larger dataset_enlarge_ratio",
            )


def borders(opt: Mapping) -> Iterator[Problem]:
    """Check that ``crop_border`` leaves something of the smallest image of every validation and test set."""
    metrics = get(opt, "val.metrics", Mapping) or {}
    scale = whole(opt, "scale") or 1
    for where, section, dataset in sets(opt, "val", "test") if metrics else ():
        shortest = Images(section, dataset).smallest()
        for name, metric in metrics.items() if shortest else ():
            found = find("metric", metric.get("type")) if isinstance(metric, Mapping) else None
            border = metric.get("crop_border", 0) if found is not None else None
            least = _LEAST_SIDE.get(getattr(found, "__name__", ""))
            if least is None or not isinstance(border, int) or isinstance(border, bool) or border < 0:
                continue
            side = shortest[0] - shortest[0] % scale
            if side - 2 * border < least:
                yield Problem(
                    join("val.metrics", name),
                    f"crop_border {border} leaves {max(side - 2 * border, 0)} pixels of {shortest[1]} ({where}, shortest "
                    f"side {shortest[0]}); {show(metric['type'])} needs at least {least}",
                )


def problems(opt: Mapping, training: bool | None, processes: int = 1) -> Iterator[Problem]:
    """All of the above that concern a run.

    Args:
        opt: the options; relative paths are looked up from the working directory.
        training: True for training, False for testing.
        processes: processes that share the training data.
    """
    yield from data_folders(opt)
    yield from weights(opt)
    if training:
        yield from training_data(opt, processes)
    yield from borders(opt)
