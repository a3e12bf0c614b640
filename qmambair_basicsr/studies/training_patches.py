"""Training patches that all rows of a study share: drawn once, kept where they are used."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from ..made_from import digest_of
from ..models.calibration_data import calibration_batches

__all__ = ["TrainingPatches", "patches_kept", "shared_patches"]


class TrainingPatches:
    """Batches by number, the same ones for whoever asks for them.

    Args:
        data: ``datasets: train`` as BasicSR hands it to a data set.
        size: images of a batch.
        seed: of the draw.
        most: batches that can be asked for.
        device: where they are kept; 0.1 MB each for eight patches of 32 x 32.
    """

    def __init__(self, data: Mapping, size: int, seed: int, most: int, device: torch.device) -> None:
        self._drawn = calibration_batches(dict(data), most, size, seed)
        self._device = device
        self._kept: list[Tensor] = []

    def __len__(self) -> int:
        """Batches that have been drawn."""
        return len(self._kept)

    def draw(self, count: int) -> None:
        """Have this many batches drawn, or all that can be asked for."""
        for batch in itertools.islice(self._drawn, max(0, count - len(self._kept))):
            self._kept.append(batch.to(self._device))

    def __getitem__(self, number: int) -> Tensor:
        """A batch, (size, C, h, w), on the device, from 0 on; not to be changed."""
        self.draw(number + 1)
        return self._kept[number]


MOST = 4  # kept at a time: two scales with two budgets
_shared: dict[str, TrainingPatches] = {}


def shared_patches(data: Mapping, size: int, seed: int, most: int, device: torch.device) -> TrainingPatches:
    """The ones of this process for these arguments; the oldest of several are let go."""
    key = digest_of([dict(data), size, seed, most, str(device)])
    if key not in _shared:
        while len(_shared) >= MOST:
            del _shared[next(iter(_shared))]
        _shared[key] = TrainingPatches(data, size, seed, most, device)
    return _shared[key]


@contextmanager
def patches_kept() -> Iterator[None]:
    """Inside, nothing changes the images; behind it, patches are let go."""
    try:
        yield
    finally:
        _shared.clear()
