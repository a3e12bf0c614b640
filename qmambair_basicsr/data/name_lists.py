"""Lists of file names (``meta_info_file``, the ``meta_info.txt`` of an LMDB): one image a line, as people write them.

A line is ``name.png`` or BasicSR's ``name.png (480,480,3)``. Names may hold spaces and dots; what follows a name behind a
tab, comma, semicolon or space is passed over, and so are empty lines, comments (``#``), a byte order mark and the
line ends of other systems.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .image_files import IMAGE_SUFFIXES, ImageFileError

__all__ = ["Line", "list_lines", "names_in", "without_ending"]

_ENDING = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_FILE = re.compile(rf"^(.+?\.(?:{_ENDING}))(?=$|[\s,;(\"'])", re.IGNORECASE)
_ANY_FILE = re.compile(rf"\.(?:{_ENDING})(?=$|[\s,;\"'])", re.IGNORECASE)
_SHAPE = re.compile(r"\s*\(\s*\d+\s*,\s*\d+\s*(?:,\s*\d+\s*)?\).*$")
_SHOWN = 5  # names listed in one message


def without_ending(name: str) -> str:
    """A file name without the ending of an image file; other dots belong to the name."""
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in IMAGE_SUFFIXES else name


@dataclass(frozen=True)
class Line:
    """A line of a list.

    Attributes:
        text: without surrounding blanks.
    """

    text: str

    def candidates(self) -> list[str]:
        """Candidates for the name, the likeliest first: names may hold blanks, and blanks may end names."""
        plain = _SHAPE.sub("", self.text)
        uncommented = re.split(r"\s#", plain)[0].strip()
        found = [plain, uncommented]
        for text in (uncommented, uncommented.strip("\"'")):
            if match := _FILE.match(text):
                found.append(match[1])
        found += [uncommented.strip("\"'"), uncommented.split("\t")[0].strip(), *uncommented.split()[:1]]
        return list(dict.fromkeys(name for name in found if name))

    def file(self) -> str:
        """The name where nothing is known about the files: up to the first ending of an image."""
        plain = _SHAPE.sub("", self.text)
        match = _FILE.match(plain)
        return match[1] if match else plain

    def names_more_than(self, name: str) -> bool:
        """Whether a file is named behind ``name`` as well."""
        behind = self.text[self.text.find(name) + len(name) :]
        return _ANY_FILE.search(re.split(r"\s#", behind)[0]) is not None


def list_lines(file: str | os.PathLike) -> list[tuple[int, Line]]:
    """The lines of a list that are not empty, with their numbers.

    Raises:
        ImageFileError: the file cannot be read, or is not UTF-8 text.
    """
    try:
        content = Path(file).read_bytes()
    except OSError as err:
        raise ImageFileError(file, err.strerror or str(err), "give a text file, one image name a line") from err
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ImageFileError(file, f"not UTF-8 text (byte {err.start})", "save the list as UTF-8") from err
    lines = re.split(r"\r\n|\n|\r", text)
    return [(number, Line(line.strip())) for number, line in enumerate(lines, 1) if line.strip()]


def names_in(file: str | os.PathLike, find: Callable[[str], str | None], where: str, unique: bool) -> list[str]:
    """The images that a list selects.

    Args:
        file: the list.
        find: gives an image of the set by its name, None where there is none.
        where: the set, for messages.
        unique: refuse an image that is listed twice.

    Returns:
        What ``find`` gave, in the list's order.

    Raises:
        ImageFileError: unreadable or empty list, names that the set does not have, two names in a line, or an image
            listed twice.
    """
    found: dict[str, int] = {}
    order, unknown, listed = [], [], 0
    for number, line in list_lines(file):
        name, image = next(((n, image) for n in line.candidates() if (image := find(n)) is not None), (None, None))
        if image is None and line.text.startswith("#"):
            continue
        listed += 1
        if image is None:
            unknown.append(f"{line.file()} (line {number})")
            continue
        if line.names_more_than(name):
            raise ImageFileError(
                file,
                f"line {number} names more than one file: {line.text}",
                "list one image of the ground truth a line",
            )
        if unique and image in found:
            raise ImageFileError(
                file, f"{name} is listed twice (lines {found[image]} and {number})", "remove one of the lines"
            )
        found.setdefault(image, number)
        order.append(image)
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        raise ImageFileError(
            file,
            f"{len(unknown)} of {listed} listed images are not in {where}: {', '.join(unknown[:_SHOWN])}{more}",
            "correct the names, or give the list of this set",
        )
    if not order:
        raise ImageFileError(file, "lists no image", "write one image name a line")
    return order
