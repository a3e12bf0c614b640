"""Which pictures are restored, and what their results are called."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.image_files import IMAGE_SUFFIXES
from .picture_files import ENDINGS, can_write, format_of
from .provenance import is_of, record_in

__all__ = ["READABLE", "Job", "find_jobs", "require_folder", "require_place"]

READABLE = frozenset(IMAGE_SUFFIXES) | frozenset(ENDINGS) | {".gif", ".jp2", ".tga", ".mpo"}
"""Endings that are looked for in folders; a file that is named is tried whatever its ending."""


@dataclass(frozen=True)
class Job:
    """One picture.

    Attributes:
        source: file to read.
        target: file to write.
        problem: why it cannot be restored whatever it holds; empty where it can.
    """

    source: Path
    target: Path
    problem: str = ""


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

    Results of an earlier run that lie among the pictures are none of them. Names that differ in case alone are one to some
    file systems: the second gets ``-2`` behind it.

    Raises:
        FileNotFoundError: an input stands for nothing.
        ValueError: every result would replace a picture, or be that of two; where others remain, it is a job's ``problem``.
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
            raise FileNotFoundError(f"{given}: {_nothing(Path(given), recursive)}")
    results = _results_among(found, out, ending, suffix)
    targets = _targets({file: place for file, place in found.items() if file not in results}, ending, suffix)
    held = {os.path.realpath(file) for file in targets}
    shared = _shared(targets)
    jobs = []
    for file, target in targets.items():
        problem = ""
        if file in shared:
            problem = (
                f"{shared[file]} would become {out / target} as well; give the folder that holds both with --recursive, or "
                "restore them into different folders"
            )
        elif os.path.realpath(out / target) in held:
            problem = f"{out / target} is a picture to restore and would be replaced; use another folder or --suffix"
        jobs.append(Job(file, out / target, problem))
    if all(job.problem for job in jobs):
        raise ValueError(f"{jobs[0].source}: {jobs[0].problem}")
    return jobs


def require_folder(out: Path, files: Sequence[str] = (), dry: bool = False) -> None:
    """Make the folder of results, and see that it takes files, before work is put into them.

    Args:
        out: folder.
        files: names of files that will be written into it besides results.
        dry: write nothing: look only at what is there.

    Raises:
        ValueError: something that is no folder has this name, or a folder that of a file.
        OSError: nothing can be written there; the message names it.
    """
    there = next(path for path in (out, *out.absolute().parents) if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ValueError(f"-o {out}: {there} is no folder")
    for name in files:
        if (out / name).is_dir():
            raise ValueError(f"{out / name} is a folder, and the name of a file that is to be written; move it")
    if not dry:
        try:
            out.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out):
                pass
        except OSError as err:
            raise OSError(err.errno, err.strerror, str(out)) from err


def require_place(target: Path) -> None:
    """See that a result can be written before it is made.

    Raises:
        ValueError: a folder has its name, or what is no folder that of its folder; or nobody may write there.
    """
    if target.is_dir():
        raise ValueError(f"{target} is a folder; move it, or use another -o or --suffix")
    there = next(path for path in target.absolute().parents if path.exists() or path.is_symlink())
    if not there.is_dir():
        raise ValueError(f"{target} cannot be written: {there} is no folder")
    if not os.access(there, os.W_OK):
        raise ValueError(f"{target} cannot be written: {there} is not ours to write to; permit it, or use another -o")


def _nothing(given: Path, recursive: bool) -> str:
    """Why an input stands for nothing."""
    if given.is_dir():
        return "no picture in it" + ("" if recursive else "; --recursive looks into its sub-folders")
    if given.is_symlink() and not given.exists():
        return "a link to nothing"
    if given.exists():
        return "neither a file nor a folder (a pipe or a device?)"
    return "no such file or folder, and no pattern that fits one"


def _results_among(found: Mapping[Path, Path], out: Path, ending: str | None, suffix: str) -> set[Path]:
    """Which of the files are results of others beside them, as their names and records say; arguments as :func:`_targets`."""
    held = {os.path.realpath(file): file for file in found}
    results = set()
    plain = ((file, _plain(file, place, ending, suffix)) for file, place in found.items())
    for file, target in (*plain, *_targets(found, ending, suffix).items()):
        result = held.get(os.path.realpath(out / target), file)
        if result != file and result.parent == file.parent:
            record = record_in(result)
            # where only the ending differs, the name says too little
            if record is not None and (suffix or is_of(record, file)):
                results.add(result)
    return results


def _plain(file: Path, place: Path, ending: str | None, suffix: str) -> Path:
    return place.with_name(place.stem + suffix + _ending_of(file, ending))


def _targets(found: Mapping[Path, Path], ending: str | None, suffix: str) -> dict[Path, Path]:
    """What each result is called, below the folder of results; pictures of one folder get names of their own.

    Args:
        found: picture -> its place below that folder.
        ending, suffix: see :func:`find_jobs`.
    """
    targets = {file: _plain(file, place, ending, suffix) for file, place in found.items()}
    names: dict[str, set[str]] = {}
    for file, target in targets.items():
        names.setdefault(_key(target), set()).add(file.name.casefold())
    for file, target in targets.items():  # photo.jpg and photo.png, both as .png: the whole name stays
        if len(names[_key(target)]) > 1:
            targets[file] = target.with_name(file.name + suffix + _ending_of(file, ending))
    taken: dict[str, Path] = {}
    for file, target in targets.items():  # photo.png and photo.PNG
        number, name = 1, target
        while taken.get(_key(name), file).parent == file.parent and taken.get(_key(name), file) != file:
            number += 1
            name = target.with_name(f"{target.stem}-{number}{target.suffix}")
        taken.setdefault(_key(name), file)
        targets[file] = name
    return targets


def _shared(targets: Mapping[Path, Path]) -> dict[Path, Path]:
    """Pictures of different folders that have the same result: each, and another of them."""
    groups: dict[str, list[Path]] = {}
    for file, target in targets.items():
        groups.setdefault(_key(target), []).append(file)
    return {file: files[files[0] == file] for files in groups.values() if len(files) > 1 for file in files}


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
            elif Path(name).is_file() and _wanted(Path(name)):
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
