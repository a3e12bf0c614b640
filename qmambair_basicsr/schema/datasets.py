"""Rules of the sections under ``datasets:``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .problems import UNREADABLE, Problem, join, show
from .registered import find, unregistered
from .rules import (
    ANYTHING,
    NOTHING,
    Choice,
    Either,
    Flag,
    List,
    Name,
    Number,
    Rule,
    Section,
    Text,
    is_number,
    missing,
    optional,
)
from .signatures import documented

MOST_WORKERS = 1024
_SIZE = Number(1, 1_000_000, whole=True)


class Template(Rule):
    """``filename_tmpl``: the input's name for the ground truth's."""

    words = "a name with one {} for the ground truth's name, such as '{}x2'"

    def fits(self, value: Any) -> bool:
        if not isinstance(value, str) or "\0" in value or "/" in value:
            return False
        try:
            return value.count("{}") == 1 and value.format("a") == value.replace("{}", "a")
        except (ValueError, LookupError, AttributeError):
            return False


class Levels(Rule):
    """A strength of degradation: a number, or in training a list of them."""

    def __init__(self, number: Number) -> None:
        self.number = number
        self.words = f"{number.words}, or in training a list of such numbers"

    def fits(self, value: Any) -> bool:
        values = value if isinstance(value, (list, tuple)) else [value]
        return bool(values) and all(map(self.number.fits, values))

    def hint(self, value: Any) -> str:
        return self.number.hint(value)


class Span(Rule):
    """Two ascending positive numbers."""

    words = "a list of two ascending numbers above 0"

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, (list, tuple))
            and len(value) == 2
            and all(map(is_number, value))
            and 0 < value[0] <= value[1]
        )


_PER_CHANNEL = optional(List(Number(), 1, 3))

# keys that BasicSR's loop, loader and sampler read or set in every data set's options
LOOP_KEYS: dict[str, Rule] = {
    "name": Name(),
    "type": ANYTHING,
    "phase": ANYTHING,
    "scale": Number(1, 64, whole=True),
    "io_backend": Section({"type": Choice(("disk", "lmdb", "memcached"))}, ("type",), "misspelt"),
    "use_shuffle": Flag(),
    "num_worker_per_gpu": Number(0, MOST_WORKERS, whole=True),
    "batch_size_per_gpu": Number(1, 1_000_000, whole=True),
    "dataset_enlarge_ratio": Number(0, 1_000_000, above=True),
    "prefetch_mode": Choice((None, "cpu", "cuda")),
    "num_prefetch_queue": Number(1, 10_000, whole=True),
    "pin_memory": Flag(),
    "persistent_workers": Flag(),
}
# keys of BasicSR's image data sets and of ours
IMAGE_KEYS: dict[str, Rule] = {
    "dataroot_gt": Text(called="the path of a folder"),
    "dataroot_lq": Text(called="the path of a folder"),
    "meta_info_file": optional(Text(called="the path of a file")),
    "filename_tmpl": Template(),
    "gt_size": _SIZE,
    "use_hflip": Flag(),
    "use_rot": Flag(),
    "mean": _PER_CHANNEL,
    "std": _PER_CHANNEL,
    "color": optional(Choice(("y",))),
    "channels": Choice((3, 1)),
    "grey": Choice(("y", "luma")),
    "check_files": Flag(),
    "on_error": Choice(("stop", "skip")),
    "min_size": _SIZE,
    "middle": optional(_SIZE),
    "sigma": Levels(Number(0, 1000)),
    "stored": Number(0, 1),
    "quality": Either((Levels(Number(1, 100, whole=True)), NOTHING)),
    "subsampling": Choice(("4:2:0", "4:4:4")),
    "shot": Span(),
    "read": Span(),
}
_STOCK_PAIRED = ("dataroot_gt", "dataroot_lq", "meta_info_file", "filename_tmpl", "gt_size", "use_hflip", "use_rot")
_STOCK: dict[str, tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    # name: keys, required ones, required ones in training
    "PairedImageDataset": (
        (*_STOCK_PAIRED, "mean", "std", "color"),
        ("dataroot_gt", "dataroot_lq", "io_backend"),
        ("gt_size", "use_hflip", "use_rot"),
    ),
    "SingleImageDataset": (
        ("dataroot_lq", "meta_info_file", "mean", "std", "color"),
        ("dataroot_lq", "io_backend"),
        (),
    ),
}
_OURS_REQUIRED = {"GaussianNoiseDataset": ("sigma",), "JPEGDataset": ("quality",)}
WITHOUT_TRUTH = ("SingleImageDataset",)  # data sets that give no ground-truth image


def is_ours(dataset: Any) -> bool:
    """Whether a data set's class checks its keys as :class:`qmambair_basicsr.data.base.RestorationDataset` does."""
    from ..data.base import RestorationDataset

    return isinstance(dataset, type) and issubclass(dataset, RestorationDataset)


def _section(dataset: Any, training: bool) -> Section:
    """The keys of one data set's class."""
    needed: tuple[str, ...] = ("name",) + (("num_worker_per_gpu", "batch_size_per_gpu") if training else ())
    title = f"the data set {dataset.__name__}"
    if is_ours(dataset):
        keys = {key: {**LOOP_KEYS, **IMAGE_KEYS}.get(key, ANYTHING) for key in sorted(dataset.option_keys())}
        required = (*needed, *dataset.roots.values(), *_OURS_REQUIRED.get(dataset.__name__, ()))
        return Section(keys, required + (("gt_size",) if training else ()), title=title)
    if dataset.__name__ in _STOCK and dataset.__module__.startswith("basicsr."):
        names, always, in_training = _STOCK[dataset.__name__]
        keys = LOOP_KEYS | {name: IMAGE_KEYS[name] for name in names}
        return Section(keys, (*needed, *always, *(in_training if training else ())), "misspelt", title)
    known = dict.fromkeys(documented(dataset) - {"opt"}, ANYTHING)
    return Section(known | LOOP_KEYS, needed, "misspelt", title)


@dataclass(frozen=True)
class DataSet(Rule):
    """One section of ``datasets:``.

    Attributes:
        training: whether it is the training set.
    """

    training: bool = False
    kind = Mapping
    words = "a section with the type of a data set and its keys"

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE:
            return
        if not isinstance(value, Mapping):
            yield Problem(where, f"must be {self.words}; got {show(value)}")
            return
        kind = value.get("type")
        if "type" not in value:
            yield missing(f"{where}.type", Text(called="the name of a data set"))
            kind = UNREADABLE
        found = find("dataset", kind)
        if found is None and kind is not UNREADABLE:
            yield unregistered(f"{where}.type", "dataset", kind)
        rest = {key: entry for key, entry in value.items() if key != "type"}
        if found is None:
            yield from Section(LOOP_KEYS, ("name",), "misspelt").problems(where, rest)
            return
        yield from _section(found, self.training).problems(where, rest)
        yield from self._strengths(where, value)

    def _strengths(self, where: str, value: Mapping) -> Iterator[Problem]:
        if not self.training:
            for key in ("sigma", "quality"):
                if isinstance(value.get(key), (list, tuple)):
                    yield Problem(join(where, key), f"a test needs one number; got {show(value[key])}")


class DataSets(Rule):
    """``datasets:``.

    Args:
        training: True for training, False for testing, None where a file may be for either.
    """

    words = "a section with one section per data set"
    kind = Mapping

    def __init__(self, training: bool | None) -> None:
        self.training = training

    def problems(self, where: str, value: Any) -> Iterator[Problem]:
        if value is UNREADABLE:
            return
        allowed = "train, val, val_1 ..." if self.training else "test_1, test_2 ..., val"
        if not isinstance(value, Mapping) or (not value and self.training is not None):
            yield Problem(where, f"must be {self.words} ({allowed}); got {show(value)}")
            return
        for key, section in value.items():
            if key is UNREADABLE:
                continue
            phase = key.split("_")[0] if isinstance(key, str) else None
            known = ("val",) if self.training else ("val", "test")
            if not (key == "train" or phase in known or (self.training is None and phase in ("val", "test"))):
                yield Problem(join(where, key), f"unknown phase; allowed: {allowed}")
                continue
            yield from DataSet(training=key == "train").problems(join(where, key), section)
        if self.training and "train" not in value:
            yield missing(join(where, "train"), DataSet(training=True))
        if self.training is False and not any(key != "train" for key in value):
            yield missing(join(where, "test_1"), DataSet())
