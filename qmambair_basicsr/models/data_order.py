"""Which training sample comes next and which random draws it gets, so that a resumed run goes on mid-epoch.

Stock BasicSR 1.4.2 restarts the running epoch when it resumes (``EnlargedSampler`` always begins at its first
index), and its crops and flips depend on how much each worker process has drawn since it started. Here

* every index the sampler yields carries (seed, rank, epoch, position), and a sample is loaded under a random state
  made from these four numbers. Crops and flips no longer depend on the number of workers or on where a run started;
* a resumed run skips the indices that the saved run had consumed.

:func:`install` changes ``EnlargedSampler`` in place, so that it also works under an unmodified BasicSR
``train.py`` that has imported the class before this package. Samplers behave as in stock BasicSR until a
:class:`TrainingOrder` is attached to them, which the models of this package do. Delete when: BasicSR's training
state holds the position within the epoch.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Iterator

from basicsr.data.data_sampler import EnlargedSampler
from torch.utils.data import Dataset

from .random_stream import seeded

SAMPLE_STREAM, STEP_STREAM, VALIDATION_STREAM, CALIBRATION_STREAM = range(4)  # first word of every random key

_last_built: weakref.ref[EnlargedSampler] | None = None


class SampleIndex(int):
    """A data set index that knows the random key of its sample."""

    key: tuple[int, ...]

    def __new__(cls, value: int, key: tuple[int, ...]) -> SampleIndex:
        """An index equal to ``value`` whose sample is drawn under ``key``."""
        index = super().__new__(cls, value)
        index.key = key
        return index

    def __reduce__(self):
        """Worker processes receive indices pickled."""
        return SampleIndex, (int(self), self.key)


class SeededFetch:
    """Loads the samples of a batch, each under the random state of its index.

    An instance is set as ``__getitems__`` of a data set, the method torch's loaders look for (torch 2.0 on) before
    they fetch samples one by one; this needs no wrapper class, so code that reads ``loader.dataset.opt`` still can.
    """

    def __init__(self, dataset: Dataset) -> None:
        """Fetch from ``dataset``."""
        self.dataset = dataset

    def __call__(self, indices: Iterable[int]) -> list:
        """The samples at ``indices``; a plain integer is fetched without touching random state."""
        samples = []
        for index in indices:
            if isinstance(index, SampleIndex):
                with seeded(*index.key):
                    samples.append(self.dataset[int(index)])
            else:
                samples.append(self.dataset[index])
        return samples


class TrainingOrder:
    """The place of a run in its training data.

    Args:
        sampler: the training sampler of the running loop.
        batch_size: samples per batch of this process.
        seed: ``manual_seed`` of the run.

    Attributes:
        batches_per_epoch: whole batches that an epoch gives this process (an incomplete last one is dropped).
    """

    def __init__(self, sampler: EnlargedSampler, batch_size: int, seed: int) -> None:
        self.seed = seed
        self.rank = sampler.rank
        self.batch_size = batch_size
        self.num_samples = sampler.num_samples
        self.batches_per_epoch = sampler.num_samples // batch_size
        self._start_epoch, self._start_batch, self._start_iter = 0, 0, 0
        if getattr(sampler.dataset, "__getitems__", None) is None:
            sampler.dataset.__getitems__ = SeededFetch(sampler.dataset)
        sampler.training_order = self

    def layout(self) -> dict[str, int]:
        """Settings under which a position means the same sample."""
        return {"num_samples": self.num_samples, "batch_size": self.batch_size}

    def position(self, epoch: int, iteration: int) -> dict[str, int]:
        """Entry of a training state: batches of ``epoch`` that ``iteration`` steps have consumed."""
        total = self._start_epoch * self.batches_per_epoch + self._start_batch + iteration - self._start_iter
        return {"batches": total - epoch * self.batches_per_epoch, "seed": self.seed, **self.layout()}

    def resume(self, epoch: int, iteration: int, saved: dict[str, int] | None) -> str | None:
        """Go on where a training state stopped.

        Args:
            epoch: epoch of the state.
            iteration: iteration of the state.
            saved: what :meth:`position` gave; None for a state written by stock BasicSR.

        Returns:
            None, or why the epoch is begun again instead.
        """
        self._start_epoch, self._start_batch, self._start_iter = epoch, 0, iteration
        if saved is None:
            return "the training state does not say how far the epoch was"
        self.seed = saved["seed"]
        changed = [key for key, value in self.layout().items() if saved[key] != value]
        if changed:
            return "; ".join(f"{key} was {saved[key]}, now {self.layout()[key]}" for key in changed)
        self._start_batch = saved["batches"]
        return None

    def iterate(self, epoch: int, indices: Iterator[int]) -> Iterator[SampleIndex]:
        """Indices of an epoch with their random keys, without those consumed before a resume."""
        skipped = self._start_batch * self.batch_size if epoch == self._start_epoch else 0
        for position, index in itertools.islice(enumerate(indices), skipped, None):
            yield SampleIndex(index, (SAMPLE_STREAM, self.seed, self.rank, epoch, position))


def install() -> bool:
    """Let ``EnlargedSampler`` follow an attached :class:`TrainingOrder`.

    Returns:
        True the first time, False when it was done before.
    """
    if hasattr(EnlargedSampler, "training_order"):
        return False
    stock_init, stock_iter = EnlargedSampler.__init__, EnlargedSampler.__iter__

    def remember(self, dataset, num_replicas, rank, ratio=1):
        global _last_built
        stock_init(self, dataset, num_replicas, rank, ratio)
        _last_built = weakref.ref(self)

    def follow(self):
        indices = stock_iter(self)
        return indices if self.training_order is None else self.training_order.iterate(self.epoch, indices)

    EnlargedSampler.training_order = None
    EnlargedSampler.__init__, EnlargedSampler.__iter__ = remember, follow
    return True


def attach(opt: dict) -> TrainingOrder | None:
    """Attach an order to the sampler that the running BasicSR loop has built last.

    Args:
        opt: the run's options.

    Returns:
        The order; None when the model is not built by a training loop.
    """
    sampler = _last_built() if _last_built is not None else None
    data = opt.get("datasets", {}).get("train")
    if sampler is None or data is None:
        return None
    processes = 1 if opt["dist"] else max(1, opt["num_gpu"])  # without DDP one loader feeds every GPU
    return TrainingOrder(sampler, data["batch_size_per_gpu"] * processes, opt["manual_seed"])


install()
