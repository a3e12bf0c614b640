"""BasicSR's own data sets on LMDBs: the shared environments and whole names of ``lmdb_images``."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from .image_sources import ImageLmdb

__all__ = ["LmdbBackend", "install"]


class LmdbBackend:
    """Takes the place of ``basicsr.utils.file_client.LmdbBackend``.

    Args:
        db_paths (str | list[str]): LMDBs.
        client_keys (str | list[str]): what each is called in :meth:`get`.

    Raises:
        ImageFileError: see ``lmdb_images.LmdbImages``.
    """

    def __init__(self, db_paths: str | Sequence[str], client_keys: str | Sequence[str] = "default", **_options) -> None:
        paths, keys = ([value] if isinstance(value, str) else value for value in (db_paths, client_keys))
        self._sources = {key: ImageLmdb(path) for key, path in zip(keys, paths, strict=True)}

    def get(self, filepath: str, client_key: str = "default") -> bytes:
        """Content of the record that belongs to an image's name."""
        source = self._sources[client_key]
        return source.read(source.find(str(filepath)) or str(filepath))


def paths_from_lmdb(folder: str) -> list[str]:
    """Names of all images of an LMDB."""
    source = ImageLmdb(folder)
    return [source.result_path(image) for image in source.images()]


def paired_paths_from_lmdb(folders: Sequence[str], keys: Sequence[str]) -> list[dict[str, str]]:
    """Names that two LMDBs share, as ``{"<key>_path": name}`` for both keys.

    Raises:
        ValueError: one has names that the other lacks.
    """
    first, second = (set(paths_from_lmdb(folder)) for folder in folders)
    if first != second:
        raise ValueError(
            f"{folders[0]} and {folders[1]} hold different images: {sorted(first ^ second)[0]!r} is in one"
        )
    return [{f"{key}_path": name for key in keys} for name in sorted(first)]


def install() -> bool:
    """Put these in place wherever BasicSR's modules refer to its own.

    Returns:
        True the first time, False when it was done before.
    """
    from basicsr.utils.file_client import FileClient

    if FileClient._backends["lmdb"] is LmdbBackend:
        return False
    FileClient._backends["lmdb"] = LmdbBackend
    for name in ("data_util", "single_image_dataset", "paired_image_dataset", "realesrgan_paired_dataset"):
        module = importlib.import_module(f"basicsr.data.{name}")
        for function in (paths_from_lmdb, paired_paths_from_lmdb):
            if hasattr(module, function.__name__):
                setattr(module, function.__name__, function)
    return True
