"""Samples and their random draws depend on the place in the epoch alone."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest
import torch
from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import DataLoader, Dataset

from qmambair_basicsr.models.data_order import SampleIndex, TrainingOrder
from qmambair_basicsr.models.random_stream import seeded


class Draws(Dataset):
    """Every sample is its index and one draw from each generator."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        assert type(index) is int
        return torch.tensor([index, random.random(), np.random.rand(), torch.rand(()).item()], dtype=torch.float64)


def batches(epoch, workers=0, resume=None, rank=0, world=1, seed=5):
    data = Draws()
    sampler = EnlargedSampler(data, world, rank, 2)
    order = TrainingOrder(sampler, 3, seed)
    if resume is not None:
        assert order.resume(*resume) is None
    loader = DataLoader(data, 3, sampler=sampler, num_workers=workers, drop_last=True)
    sampler.set_epoch(epoch)
    return list(loader), order


def equal(left, right):
    return len(left) == len(right) and all(map(torch.equal, left, right))


def test_workers_do_not_matter_but_epoch_rank_and_seed_do():
    base, _ = batches(1)
    assert equal(base, batches(1)[0])
    assert equal(base, batches(1, workers=2)[0])
    draws = [base, batches(2)[0], batches(1, rank=1, world=2)[0], batches(1, seed=6)[0]]
    values = [tuple(batch[0][0, 1:].tolist()) for batch in draws]
    assert len(set(values)) == len(values)
    assert len(set(values[0])) == 3


@pytest.mark.parametrize("iteration", [0, 1, 3, 4, 7, 8])
def test_resume_continues_after_the_consumed_batches(iteration):
    """14 samples in batches of 3: 4 batches an epoch; the loop stores the epoch that is running."""
    epoch = max(iteration - 1, 0) // 4
    _, order = batches(0)
    assert order.batches_per_epoch == 4
    saved = pickle.loads(pickle.dumps(order.position(epoch, iteration)))
    rest, resumed = batches(epoch, resume=(epoch, iteration, saved))
    assert equal(rest, batches(epoch)[0][iteration - 4 * epoch :])
    following, _ = batches(epoch + 1, resume=(epoch, iteration, saved))
    assert equal(following, batches(epoch + 1)[0])
    assert resumed.position(3, 13) == order.position(3, 13)


def test_another_layout_begins_the_epoch_again():
    _, order = batches(0)
    saved = order.position(0, 2)
    other = TrainingOrder(EnlargedSampler(Draws(), 1, 0, 1), 3, 5)
    assert other.resume(0, 2, saved) == "num_samples was 14, now 7"
    assert other.position(0, 3)["batches"] == 1
    assert "does not say" in other.resume(0, 2, None)


def test_sampler_without_order_is_stock():
    sampler = EnlargedSampler(Draws(), 1, 0, 1)
    generator = torch.Generator().manual_seed(0)
    assert list(sampler) == torch.randperm(7, generator=generator).tolist()
    assert all(type(index) is int for index in sampler)


def test_index_survives_pickling():
    index = pickle.loads(pickle.dumps(SampleIndex(3, (0, 1, 2))))
    assert index == 3
    assert index.key == (0, 1, 2)


def test_seeded_restores_every_generator():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    first, second = draw(), draw()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert draw() == first
    with seeded(1, 2):
        inside = draw()
    assert draw() == second
    with seeded(1, 2):
        assert draw() == inside
    with seeded(2, 1):
        assert not set(draw()) & set(inside)
