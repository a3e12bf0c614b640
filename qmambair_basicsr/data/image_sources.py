"""Sources of a data set's images, a folder of files or an LMDB, behind one interface."""

from __future__ import annotations

import os
from pathlib import Path

from .image_files import ImageFileError, list_images
from .lmdb_images import LmdbImages
from .name_lists import without_ending

__all__ = ["BACKENDS", "ImageFolder", "ImageLmdb", "open_source"]

BACKENDS = ("disk", "lmdb")


class ImageFolder:
    """Image files of a folder; an image is known by its path.

    Args:
        root: the folder.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = Path(root)
        if (self.root / "data.mdb").is_file():
            raise ImageFileError(root, "an LMDB, read as a folder of images", "set io_backend: {type: lmdb}")

    def images(self) -> list[str]:
        """All images, sorted by name."""
        return [str(file) for file in list_images(self.root)]

    def find(self, name: str) -> str | None:
        """The image called ``name``, ending included; None where there is none."""
        path = os.path.join(self.root, name)
        return str(Path(path)) if os.path.isfile(path) else None

    def stem(self, image: str) -> str:
        """Name of an image without its ending."""
        return Path(image).stem

    def label(self, image: str) -> str:
        """Name of an image in messages."""
        return image

    def result_path(self, image: str) -> str:
        """A path from whose last part, without ending, results take their name."""
        return image

    def read(self, image: str) -> bytes:
        """The file's content.

        Raises:
            ImageFileError: it cannot be read.
        """
        try:
            return Path(image).read_bytes()
        except OSError as err:
            raise ImageFileError(image, err.strerror or str(err), "check the path and its permissions") from err


class ImageLmdb:
    """Images of an LMDB; an image is known by its record's key.

    Args:
        root: folder ``<name>.lmdb``.
    """

    def __init__(self, root: str | os.PathLike) -> None:
        self.root = root
        self._records = LmdbImages(root)
        self._stems = {key: name for name, key in self._records.keys.items()}

    def images(self) -> list[str]:
        """All keys, in the order in which the LMDB lists them."""
        return list(self._stems)

    def find(self, name: str) -> str | None:
        """The key of the image called ``name``, with or without ending; None where there is none."""
        keys = self._records.keys
        return keys.get(without_ending(name), keys.get(name))

    def stem(self, image: str) -> str:
        """Name of an image, whatever its key is."""
        return self._stems[image]

    def label(self, image: str) -> str:
        """Name of an image in messages."""
        return f"{self.root}[{image}]"

    def result_path(self, image: str) -> str:
        """The name; with an ending where it has a dot, as whoever names a result after it cuts an ending off."""
        stem = self._stems[image]
        return f"{stem}.png" if "." in stem else stem

    def read(self, image: str) -> bytes:
        """The record's content; see :meth:`LmdbImages.read`."""
        return self._records.read(image)


def open_source(root: str | os.PathLike, backend: str) -> ImageFolder | ImageLmdb:
    """The images below ``root``.

    Args:
        root: folder of images, or LMDB.
        backend: one of :data:`BACKENDS`.

    Raises:
        ImageFileError: the folder is not what ``backend`` says.
    """
    return ImageLmdb(root) if backend == "lmdb" else ImageFolder(root)
