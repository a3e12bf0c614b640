"""Pack a folder of images into an LMDB in BasicSR's layout, whole or not at all."""

from __future__ import annotations

import glob
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import cv2

from ..files import replaced_folder
from .image_files import ImageFileError, read_image
from .ledger import Ledger, Task, sources_of
from .lmdb_images import KEY_BYTES

__all__ = ["make_lmdb"]

logger = logging.getLogger("prepare_data")

_COMPRESSION = 1  # of PNG: big files that decode fast, as BasicSR packs them
_BATCH = 64  # records of one transaction
_FIRST_MAP = 64 * 2**20  # bytes; doubled whenever a batch does not fit


def make_lmdb(
    folder: Path, stems: Sequence[str], template: str, *, overwrite: bool = False, ledger: Ledger | None = None
) -> Path:
    """Write ``<folder>.lmdb``; an existing one is kept while it holds what the files hold.

    Args:
        folder: PNG images.
        stems: keys of the records, the whole names of the images; HR and LR must have the same.
        template: file name, without ending, of a key ``{}``.
        overwrite: make an existing LMDB again.
        ledger: what the existing one was made from; without, it is kept whatever it holds.

    Returns:
        The LMDB's folder.

    Raises:
        ImageFileError: a file is missing or damaged, a name does not fit a record, or there is no space; nothing is left
            behind, and an existing LMDB is as it was.
    """
    target = folder.with_name(f"{folder.name}.lmdb")
    files = {stem: folder / f"{template.format(stem)}.png" for stem in stems}
    for stem, file in files.items():
        if not file.is_file():
            raise ImageFileError(file, "missing", "make it with prepare_data sr")
        if not stem.isprintable() or stem != stem.strip() or len(stem.encode()) > KEY_BYTES:
            why = f"its name does not fit a record (printable UTF-8 of at most {KEY_BYTES} bytes, no blanks around it)"
            raise ImageFileError(file, why, "rename it")
    first, *others = files.values()
    names = {"names": list(files)}
    task = Task(first, (target / "data.mdb",), names, tuple(others), ("names",))
    if target.is_dir() and not overwrite:
        reason = None if ledger is None else ledger.judge(task)
        if reason is None:
            logger.info("%s: already there", target)
            return target
        logger.warning("%s: made again: %s", target, reason)
    sources = sources_of(task)
    try:
        import lmdb
    except ImportError as err:
        raise ImageFileError(target, "the package lmdb, which writes it, is not installed", "pip install lmdb") from err
    for left in folder.parent.glob(f".*.{glob.escape(target.name)}"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        with replaced_folder(target) as unfinished:
            _pack(files, unfinished)
    except (OSError, lmdb.Error) as err:
        why = getattr(err, "strerror", None) or str(err)
        raise ImageFileError(target, f"cannot be written ({why})", "free space or permit writing") from err
    if ledger is not None:
        ledger.keep(task, sources)
        ledger.save()
    logger.info("%s: %d records", target, len(files))
    return target


def _pack(files: dict[str, Path], target: Path) -> None:
    """Write the records and their list."""
    import lmdb

    target.mkdir(parents=True)
    names, lines = list(files), []
    with lmdb.open(str(target), map_size=_FIRST_MAP) as environment:
        for start in range(0, len(names), _BATCH):
            records = {}
            for name in names[start : start + _BATCH]:
                image = read_image(files[name])
                _, content = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, _COMPRESSION])
                records[name.encode()] = content.tobytes()
                height, width, channels = image.shape
                lines.append(f"{name}.png ({height},{width},{channels}) {_COMPRESSION}\n")
            _put(environment, records)
    (target / "meta_info.txt").write_text("".join(lines), encoding="utf-8")


def _put(environment, records: dict[bytes, bytes]) -> None:
    """Write records in one transaction, in a bigger map where they do not fit."""
    import lmdb

    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, content in records.items():
                    transaction.put(key, content)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])
