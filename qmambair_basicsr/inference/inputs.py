"""Which pictures are restored, and what their results are called."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.image_files import IMAGE_SUFFIXES
from .picture_files import ENDINGS, can_write, format_of

__all__ = ["READABLE", "Job", "find_jobs"]

READABLE = frozenset(IMAGE_SUFFIXES) | frozenset(ENDINGS) | {".gif", ".jp2", ".tga", ".mpo"}
"""Endings that are looked for in folders; a file that is named is tried whatever its ending."""


@dataclass(frozen=True)
class Job:
    """One picture.

    Attributes:
        source: file to read.
        target: file to write.
    """

    source: Path
    target: Path

    @property
    def finished(self) -> bool:
        """Whether the result is there and is not older than the picture."""
        try:
            result = self.target.stat()
            return (
                stat.S_ISREG(result.st_mode) and result.st_size > 0 and result.st_mtime >= self.source.stat().st_mtime
            )
        except OSError:
            return False


def find_jobs(
    inputs: Sequence[str], out: Path, recursive: bool = False, ending: str | None = None, suffix: str = ""
) -> list[Job]:
    """The pictures that inputs stand for, each once, in their order, and their results.

    Args:
        inputs: files, folders and patterns (``*``, ``?``, ``[...]``, ``**``).
        out: folder of the results; those of a folder's sub-folders keep their place in it.
        recursive: take the sub-folders of folders as well.
        ending: of the results; None for that of each picture, or ``png`` where it cannot be written.
        suffix: put behind the name.

    Raises:
        FileNotFoundError: an input stands for nothing.
        ValueError: a result would replace its picture, or two pictures would have the same result.
    """
    if ending is not None:
        format_of(ending)
    if "\0" in suffix or any(mark and mark in suffix for mark in (os.sep, os.altsep)):
        raise ValueError(f"--suffix {suffix!r} is no part of a file's name; use -o for another folder")
    found: dict[Path, Path] = {}
    for given in inputs:
        before = len(found)
        for file, place in _files(given, recursive, out):
            found.setdefault(Path(os.path.abspath(file)), place)
        if len(found) == before and not any(True for _ in _files(given, recursive, out)):
            kind = (
                "no picture in it" if Path(given).is_dir() else "no such file or folder, and no pattern that fits one"
            )
            deeper = "; --recursive looks into its sub-folders" if Path(given).is_dir() and not recursive else ""
            raise FileNotFoundError(f"{given}: {kind}{deeper}")
    targets = {file: place.with_name(place.stem + suffix + _ending_of(file, ending)) for file, place in found.items()}
    twice = {name for name, count in Counter(map(_key, targets.values())).items() if count > 1}
    for file, target in targets.items():  # photo.jpg and photo.png, both as .png: the whole name stays
        if _key(target) in twice:
            targets[file] = target.with_name(file.name + suffix + _ending_of(file, ending))
    seen: dict[str, Path] = {}
    for file, target in targets.items():
        other = seen.setdefault(_key(target), file)
        if other != file:
            raise ValueError(
                f"{other} and {file} would both become {out / target}; give the folder that holds both with --recursive, "
                "or restore them into different folders"
            )
        if (out / target).absolute() in found or (out / target).resolve() == file.resolve():
            raise ValueError(
                f"{out / target} is a picture to restore and would be replaced; use another folder or --suffix"
            )
    return [Job(file, out / target) for file, target in targets.items()]


def _key(target: Path) -> str:
    """Names that some file systems do not tell apart are one."""
    return str(target).casefold()


def _ending_of(file: Path, ending: str | None) -> str:
    if ending is not None:
        return f".{ending.lower().removeprefix('.')}"
    kind = ENDINGS.get(file.suffix.lower())
    return file.suffix if kind is not None and can_write(kind) else ".png"


def _files(given: str, recursive: bool, out: Path) -> Iterator[tuple[Path, Path]]:
    """(file, place below the folder of results) of what one input stands for."""
    if not str(given).strip():
        raise ValueError("-i: an empty name; give pictures, folders or patterns")
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError as err:  # a name longer than the system allows
        raise ValueError(f"-i: {str(given)[:80]}...: {err.strerror}") from err
    if is_file:
        yield path, Path(path.name)
    elif path.is_dir():
        yield from _in_folder(path, recursive, out)
    else:
        for name in sorted(glob.glob(str(given), recursive=True)):
            if Path(name).is_dir():
                yield from _in_folder(Path(name), recursive, out)
            elif _wanted(Path(name)):
                yield Path(name), Path(os.path.relpath(name, _fixed_part(given)))


def _fixed_part(pattern: str) -> Path:
    """The folder in front of a pattern's first wildcard."""
    parts = Path(pattern).parts
    count = next((i for i, part in enumerate(parts) if glob.has_magic(part)), len(parts) - 1)
    return Path(*parts[:count]) if count else Path()


def _in_folder(folder: Path, recursive: bool, out: Path) -> Iterator[tuple[Path, Path]]:
    results = out.resolve()
    for root, folders, files in os.walk(folder):
        # results of an earlier run in a folder below are no pictures to restore
        folders[:] = sorted(f for f in folders if not f.startswith(".") and (Path(root) / f).resolve() != results)
        for name in sorted(files):
            if _wanted(Path(name)):
                yield Path(root) / name, Path(os.path.relpath(root, folder)) / name
        if not recursive:
            return


def _wanted(file: Path) -> bool:
    return file.suffix.lower() in READABLE and not file.name.startswith(".")
