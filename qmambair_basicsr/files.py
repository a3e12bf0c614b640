"""Files and folders that are written whole or not at all, and the hashes by which a result remembers its inputs.

The content goes to a hidden neighbour of the destination, which is renamed over it in one step. Whatever happens
before that (a full disk, an exception, Ctrl-C), the neighbour is removed and what was at the destination is untouched.
Only a killed process can leave one behind; the next process that writes to the folder removes it.
Imports nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["hash_file", "remove_leftovers", "replaced", "replaced_folder", "write_bytes", "write_text"]

_BLOCK = 1 << 20  # bytes read at once
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_NEIGHBOUR = re.compile(rf"\.{_HOST}-(?P<pid>\d+)-[0-9a-f]{{8}}\.(?P<old>old\.)?(?P<name>.+)")
_tidied: set[Path] = set()  # folders that this process has freed of leftovers


def _neighbour(path: Path, name: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent.absolute()
    if folder not in _tidied:
        _tidied.add(folder)
        remove_leftovers(folder)
    # two processes may write the same destination; host and process tell whether the writer still lives
    return path.with_name(f".{_HOST}-{os.getpid()}-{secrets.token_hex(4)}.{name}")


def remove_leftovers(folder: str | os.PathLike) -> list[str]:
    """Remove what killed processes of this machine left half-written in a folder; what they had moved away comes back.

    Nothing happens where it cannot be told whether a process lives (Windows), or in a folder that cannot be read.

    Args:
        folder: where to look, not in the folders below it.

    Returns:
        Names of what was removed or brought back.
    """
    if os.name != "posix":
        return []
    done = []
    with contextlib.suppress(OSError):
        for entry in sorted(Path(folder).iterdir()):
            match = _NEIGHBOUR.fullmatch(entry.name)
            if match is None or _lives(int(match["pid"])):
                continue
            with contextlib.suppress(OSError):
                if match["old"] and not entry.with_name(match["name"]).exists():
                    os.replace(entry, entry.with_name(match["name"]))
                elif entry.is_dir():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
                done.append(entry.name)
    return done


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's process
        return True
    return True


@contextlib.contextmanager
def _named(path: Path, *parts: Path) -> Iterator[None]:
    """Errors of the operating system about the neighbours, or about no file at all, name the destination."""
    try:
        yield
    except OSError as err:
        if err.errno is not None and (err.filename is None or str(err.filename) in map(str, parts)):
            raise OSError(err.errno, err.strerror, str(path)) from err
        raise


@contextlib.contextmanager
def replaced(path: str | os.PathLike, durable: bool = False) -> Iterator[Path]:
    """A path to write to that becomes ``path`` when the block ends without an exception.

    A destination that is no regular file (``/dev/stdout``, a pipe) is written to as it is.

    Args:
        path: destination; missing folders are made.
        durable: wait until the content is on the disk, so that a loss of power cannot leave an empty file.

    Yields:
        Path of a file that does not exist yet, in the same folder, hidden and ending in ``.part``.

    Raises:
        OSError: it cannot be written; the message names ``path``.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with _named(path):
            yield path
        return
    part = _neighbour(path, f"{path.name[:40]}.part")
    with _named(path, part):
        try:
            yield part
            if durable:
                with open(part, "rb+") as file:
                    os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def replaced_folder(path: str | os.PathLike) -> Iterator[Path]:
    """The same for a folder: the block makes the folder it is given, which then takes the place of an older one.

    Yields:
        Path that does not exist yet, in the same folder, hidden, with the ending of ``path``.

    Raises:
        OSError: it cannot be written; the message names ``path``.
    """
    path = Path(path)
    part, old = _neighbour(path, path.name), _neighbour(path, f"old.{path.name}")
    with _named(path, part, old):
        try:
            yield part
            if path.is_dir():
                os.replace(path, old)  # a folder cannot be renamed over one that has content
            try:
                os.replace(part, path)
            except BaseException:
                if old.is_dir():
                    os.replace(old, path)
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def write_bytes(path: str | os.PathLike, content: bytes | memoryview, durable: bool = False) -> None:
    """Write a file whole or not at all; arguments and errors as :func:`replaced`."""
    with replaced(path, durable) as part, open(part, "wb") as file:
        file.write(content)


def write_text(path: str | os.PathLike, text: str, durable: bool = False) -> None:
    """Write a text file, UTF-8 with the line ends of ``text``, whole or not at all; see :func:`replaced`."""
    write_bytes(path, text.encode("utf-8"), durable)


def read_record(path: str | os.PathLike, mappings: Iterable[str] = ()) -> dict | None:
    """What an earlier run wrote down about itself, a JSON mapping; None where there is no file.

    Args:
        path: the file.
        mappings: keys that must hold mappings, too.

    Raises:
        ValueError: the file holds something else, or is cut off.
    """
    path = Path(path)
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or not all(isinstance(record.get(key), dict) for key in mappings):
        raise ValueError(f"{path} is damaged: it is no record of an earlier run; delete it, and the run is made again")
    return record


def hash_file(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content as 64 hexadecimal digits, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
