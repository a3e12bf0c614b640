"""Records of what results were made from, so that none is repeated for other weights, options, data or code.

A record is plain data: names of inputs and digests of their content. Where a new record differs from that of a result,
the result is stale, and the names say why. Content decides, not dates: a file that is replaced by one of the same name
and size is noticed. Files that the system reports unchanged since their last digest are not read again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from .files import hash_file

__all__ = [
    "code",
    "data_of",
    "differences",
    "digest_of",
    "file_digest",
    "file_state",
    "log_line",
    "of_test",
    "of_training",
    "parse_log_line",
    "reason",
    "weights_of",
]

_PACKAGES = ("torch", "basicsr")
# of this package: what figures depend on
_CODE = ("archs", "calibration", "data", "inference", "layers", "metrics", "models", "ops", "quantizers")
_HERE = Path()
_ROOTS = ("dataroot", "meta_info")  # beginnings of the keys of a data set's files
# keys of a data set's section that do not decide about its samples, or repeat another key
_PASSED_OVER = ("name", "phase", "scale", "io_backend", "num_worker_per_gpu", "prefetch_mode", "num_prefetch_queue",
                "pin_memory", "persistent_workers", "check_files", "use_shuffle")  # fmt: skip


def file_state(path: str | os.PathLike) -> tuple[int, ...]:
    """Properties that change whenever a file is written or replaced: size, times in ns, inode and device."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino, state.st_dev


@functools.lru_cache(maxsize=1 << 16)
def _digest(path: str, state: tuple[int, ...]) -> str:
    return hash_file(path)


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file; read once in this process while it stays as it is.

    Raises:
        OSError: it cannot be read.
    """
    return _digest(os.path.realpath(path), file_state(path))


def digest_of(value: object) -> str:
    """Short digest of plain data; the order of keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _files(root: Path, nested: bool) -> Iterator[Path]:
    """The files of a data set: an LMDB's two, those of a folder that are not hidden, or a list."""
    if root.is_file():
        yield root
    elif (root / "data.mdb").is_file():
        yield from (root / name for name in ("data.mdb", "meta_info.txt") if (root / name).is_file())
    else:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(name for name in folders if nested and not name.startswith("."))
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _content(file: Path) -> str:
    try:
        return file_digest(file)
    except OSError:  # the data set will name it, or leave it out
        return "unreadable"


def data_of(section: Mapping, folder: Path = _HERE) -> str | None:
    """Digest of a data set's section and of the names and contents of all its files; None where they are gone.

    Where the files lie does not matter.

    Args:
        section: entry of ``datasets``.
        folder: where relative paths begin.
    """
    contents = {}
    for key, value in section.items():
        if key.startswith(_ROOTS) and value is not None:
            root = folder / Path(value).expanduser()
            if not root.exists():
                return None
            inside = root.parent if root.is_file() else root
            # only a list of names reaches into folders of a folder
            files = _files(root, nested=bool(section.get("meta_info_file")))
            contents[key] = [(str(f.relative_to(inside)), _content(f)) for f in files]
    options = {k: v for k, v in section.items() if not k.startswith(_ROOTS) and k not in _PASSED_OVER}
    return digest_of([options, contents])


def weights_of(path: str | os.PathLike | None, folder: Path = _HERE) -> str | None:
    """Digest of a checkpoint; ``random`` for None, None where the file is gone."""
    if path is None:
        return "random"
    path = folder / Path(path).expanduser()
    return file_digest(path)[:16] if path.is_file() else None


@functools.lru_cache(maxsize=1)
def code() -> str:
    """Digest of what computes figures: this package's modules, torch's and BasicSR's version."""
    root = Path(__file__).parent
    files = [(str(f.relative_to(root)), hash_file(f)) for part in _CODE for f in sorted((root / part).rglob("*.py"))]
    return digest_of([[version(name) for name in _PACKAGES], files])


def of_test(opt: Mapping, folder: Path = _HERE) -> dict[str, str | None]:
    """The record of a test.

    Args:
        opt: options of a test file, as read or as ``parse_options`` returns them.
        folder: where relative paths begin.

    Returns:
        Digests of weights, network, settings, seed, code, each metric's options, and each set's options and files. None
        for weights or files that are gone.
    """
    path, val = opt.get("path") or {}, opt.get("val") or {}
    settings = [
        *(opt.get("model_type"), opt.get("scale"), val.get("tile", opt.get("tile"))),
        *(path.get("param_key_g", "params"), path.get("strict_load_g", True), path.get("skip_keys_g") or []),
    ]
    record = {
        "weights": weights_of(path.get("pretrain_network_g"), folder),
        "network": digest_of(opt.get("network_g")),
        "settings": digest_of(settings),
        "code": code(),
    }
    if opt.get("manual_seed") is not None:
        record["seed"] = digest_of(opt["manual_seed"])
    metrics = val.get("metrics") or {}
    record |= {f"metric {name}": digest_of(options) for name, options in metrics.items()}
    return record | {f"set {section['name']}": data_of(section, folder) for section in opt["datasets"].values()}


def of_training(opt: Mapping, folder: Path = _HERE) -> dict[str, str | None]:
    """The record of a training: initial weights, teacher, training data, options and versions.

    Other code of this package does not make a training stale, which may have cost days.

    Args:
        opt: options of a training file.
        folder: where relative paths begin.
    """
    path, teacher = opt.get("path") or {}, (opt.get("quant_train") or {}).get("teacher")
    kept = ("model_type", "scale", "network_g", "manual_seed", "train", "quant_train")
    data = opt["datasets"]["train"]
    sampling = [data.get(key) for key in ("batch_size_per_gpu", "dataset_enlarge_ratio")]
    method = [opt["ptq"]] if "ptq" in opt else []  # absent, the digest is that of trainings without one
    return {
        "initial weights": weights_of(path.get("pretrain_network_g"), folder),
        "teacher": weights_of(teacher.get("path") if isinstance(teacher, Mapping) else None, folder),
        "training data": data_of(data, folder),
        "options": digest_of([*({key: opt.get(key) for key in kept}.items()), sampling, *method]),
        "versions": digest_of([version(name) for name in _PACKAGES]),
    }


def differences(before: Mapping[str, str | None] | None, now: Mapping[str, str | None]) -> list[str]:
    """Names of the inputs in which a result differs from what it would be made from now.

    Args:
        before: the result's record; None where it has none.
        now: the record it should have. What is gone (None) cannot be compared and does not count.
    """
    if before is None:
        return ["it does not say what it was made from"]
    return [name for name, digest in now.items() if digest is not None and before.get(name) != digest]


def reason(names: Iterable[str]) -> str:
    """Words for :func:`differences`: ``other weights, set Set5``."""
    names = list(names)
    return names[0] if names and names[0].startswith("it ") else f"other {', '.join(names)}"


_LOGGED = "Made from: "


def log_line(record: Mapping[str, str | None]) -> str:
    """A record as a test's log holds it."""
    return _LOGGED + json.dumps(record)


def parse_log_line(line: str) -> dict[str, str | None] | None:
    """The record in a line of a log; None in other lines."""
    _, found, text = line.partition(_LOGGED)
    if not found:
        return None
    try:
        record = json.loads(text)
    except ValueError:  # cut off
        return None
    return record if isinstance(record, dict) else None
