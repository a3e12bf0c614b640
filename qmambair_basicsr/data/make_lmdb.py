"""Pack a folder of images into an LMDB as BasicSR reads it, whole or not at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from basicsr.utils.lmdb_util import make_lmdb_from_imgs

from qmambair_basicsr.data.image_files import ImageFileError, read_image

from ..files import replaced_folder

__all__ = ["make_lmdb"]

logger = logging.getLogger("prepare_data")


def make_lmdb(folder: Path, stems: Sequence[str], template: str, *, overwrite: bool = False) -> Path:
    """Write ``<folder>.lmdb``; an existing one is kept.

    Args:
        folder: PNG images.
        stems: keys of the records; HR and LR must have the same.
        template: file name, without ending, of a key ``{}``.
        overwrite: make an existing LMDB again.

    Returns:
        The LMDB's folder.

    Raises:
        ImageFileError: a file is missing or damaged; nothing is left behind.
    """
    target = folder.with_name(f"{folder.name}.lmdb")
    if target.is_dir() and not overwrite:
        logger.info("%s: already there", target)
        return target
    files = [folder / f"{template.format(stem)}.png" for stem in stems]
    for file in files:
        if not file.is_file():
            raise ImageFileError(file, "missing", "make it with prepare_data sr")
        read_image(file)
    with replaced_folder(target) as unfinished:
        make_lmdb_from_imgs(str(folder), str(unfinished), [file.name for file in files], list(stems))
    logger.info("%s: %d records", target, len(files))
    return target
