"""The batches a network is calibrated on: the same images and crops at every start, whatever the loader."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from basicsr.data import build_dataset
from torch import Tensor
from torch.utils.data import default_collate

from .data_order import CALIBRATION_STREAM
from .random_stream import seeded


def calibration_batches(dataset_opt: dict, batches: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Low-quality training batches drawn with a fixed seed, without worker processes.

    Args:
        dataset_opt: ``datasets: train`` of the options.
        batches: how many batches.
        batch_size: images in each; images repeat when the data set is smaller than all of them.
        seed: which images, crops and flips.

    Yields:
        Images, (batch_size, C, h, w), on the CPU.

    Raises:
        ValueError: the data set is empty.
    """
    dataset = build_dataset(dataset_opt)
    if len(dataset) == 0:
        raise ValueError(f"datasets: train: {dataset_opt.get('name')} has no images to calibrate on")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed)).tolist()
    for batch in range(batches):
        samples = []
        for position in range(batch * batch_size, (batch + 1) * batch_size):
            with seeded(CALIBRATION_STREAM, seed, position):
                samples.append(dataset[order[position % len(order)]]["lq"])
        yield default_collate(samples)
