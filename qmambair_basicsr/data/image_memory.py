"""Decoded images kept in memory, for tools that read the same data sets many times in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["ImageMemory", "images_in_memory"]


class ImageMemory:
    """Images by name, up to a number of bytes; what no longer fits is read again each time.

    Args:
        limit: bytes of decoded images that may be kept, at least 0.

    Attributes:
        used: bytes kept.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._images: dict[str, np.ndarray] = {}

    def get(self, name: str, read: Callable[[], np.ndarray]) -> np.ndarray:
        """The image called ``name``, read-only where it is kept; ``read`` is called when it is not known yet."""
        image = self._images.get(name)
        if image is None:
            image = read()
            if self.used + image.nbytes <= self.limit:
                image.flags.writeable = False
                self._images[name] = image
                self.used += image.nbytes
        return image


@contextlib.contextmanager
def images_in_memory(limit: int) -> Iterator[ImageMemory]:
    """Inside, the data sets of this package decode every file once.

    Loader processes have a memory of their own that ends with them: worth it with ``num_worker_per_gpu: 0``. Files
    must not change meanwhile.

    Args:
        limit: bytes of decoded images to keep.
    """
    from .base import RestorationDataset

    before = RestorationDataset.memory
    RestorationDataset.memory = ImageMemory(limit)
    try:
        yield RestorationDataset.memory
    finally:
        RestorationDataset.memory = before
