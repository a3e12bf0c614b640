"""Images in LMDBs: one environment for each file and process, whole names as keys, one message for what is wrong.

LMDB allows an environment to be open once in a process, and not to be used in a process forked from the one that opened
it. :func:`environment` keeps the open ones, so any number of data sets and sections read one LMDB, and forgets them in
a forked process, which opens its own; nothing open is ever pickled for a spawned one.

An LMDB is a folder ``<name>.lmdb`` with ``data.mdb`` and ``meta_info.txt``, whose lines begin with the file names of its
records (BasicSR's layout). A record's key is the whole name without the image's ending. BasicSR itself cuts names at
their first dot: its keys are understood too, unless two names share one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .image_files import ImageFileError
from .name_lists import list_lines, without_ending

__all__ = ["KEY_BYTES", "LmdbImages", "environment"]

KEY_BYTES = 511  # LMDB's longest key
_SHOWN = 5  # names listed in one message
_REMAKE = "pack it again (python -m qmambair_basicsr.tools.prepare_data lmdb --overwrite)"

_environments: dict[
    str, tuple[tuple[int, int], object]
] = {}  # real path -> (device and inode of data.mdb, environment)


def _close_all() -> None:
    while _environments:
        _environments.popitem()[1][1].close()


if hasattr(os, "register_at_fork"):
    # closing what the parent opened frees this process's copy only; its next read opens an environment of its own
    os.register_at_fork(after_in_child=_close_all)


def environment(path: str | os.PathLike):
    """The open ``lmdb.Environment`` of a folder, read-only, shared by all its readers in this process.

    An LMDB that was made again since it was opened is opened anew.

    Raises:
        ImageFileError: the folder is no LMDB, a damaged one, or the package lmdb is missing.
    """
    try:
        import lmdb
    except ImportError as err:
        raise ImageFileError(path, "the package lmdb, which reads it, is not installed", "pip install lmdb") from err
    data, real = os.path.join(path, "data.mdb"), os.path.realpath(path)
    try:
        state = os.stat(data)
    except OSError as err:
        raise ImageFileError(path, "no LMDB (it holds no data.mdb)", "set io_backend: {type: disk} for images") from err
    identity, opened = _environments.get(real, (None, None))
    if identity == (state.st_dev, state.st_ino):
        return opened
    if opened is not None:
        opened.close()
        del _environments[real]
    try:
        opened = lmdb.open(real, readonly=True, lock=False, readahead=False, meminit=False)
        pages = opened.info()["last_pgno"] + 1
        whole = pages * opened.stat()["psize"] <= state.st_size
    except lmdb.Error as err:
        raise ImageFileError(path, f"damaged LMDB, or none ({err})", _REMAKE) from err
    if not whole:  # reading behind the end of the file would end the process
        opened.close()
        raise ImageFileError(path, f"truncated LMDB (data.mdb has {state.st_size} bytes, {pages} pages)", _REMAKE)
    _environments[real] = (state.st_dev, state.st_ino), opened
    return opened


class LmdbImages:
    """The records of an LMDB.

    Args:
        path: folder ``<name>.lmdb``.

    Attributes:
        keys: name of an image, without its ending, to the key of its record; in the order of ``meta_info.txt``.

    Raises:
        ImageFileError: no LMDB, no ``meta_info.txt``, a listed record is missing, or two names share a record.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = str(path)
        environment(path)  # first: what is no LMDB is said to be none
        meta = Path(path) / "meta_info.txt"
        if not meta.is_file():
            raise ImageFileError(path, "meta_info.txt, the list of its images, is missing", _REMAKE)
        self.keys: dict[str, str] = {}
        owners: dict[str, str] = {}
        missing = []
        for name, key in self._listed(meta):
            if key is None:
                missing.append(name)
            elif key in owners:
                raise ImageFileError(
                    path,
                    f"{owners[key]} and {name} share the record {key!r}, so one of the two images is lost",
                    _REMAKE,
                )
            else:
                owners[key] = name
                self.keys[without_ending(name)] = key
        if missing:
            more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
            raise ImageFileError(path, f"lacks records of {', '.join(missing[:_SHOWN])}{more}", _REMAKE)

    def _listed(self, meta: Path) -> Iterator[tuple[str, str | None]]:
        """Listed names and their records' keys: the whole name, or cut as some programs do; None where there is none."""
        names = [line.file() for _, line in list_lines(meta)]
        with environment(self.path).begin(buffers=True) as transaction:
            for name in names:
                keys = dict.fromkeys((without_ending(name), name, name.split(".")[0]))
                usable = (key for key in keys if 0 < len(key.encode()) <= KEY_BYTES)
                yield name, next((key for key in usable if transaction.get(key.encode()) is not None), None)

    def read(self, key: str) -> bytes:
        """Content of a record.

        Raises:
            ImageFileError: there is none of this key.
        """
        import lmdb

        try:
            with environment(self.path).begin() as transaction:
                content = transaction.get(key.encode())
        except lmdb.Error as err:
            raise ImageFileError(f"{self.path}[{key}]", f"damaged LMDB ({err})", _REMAKE) from err
        if content is None:
            raise ImageFileError(f"{self.path}[{key}]", "no such record in the LMDB", _REMAKE)
        return content
