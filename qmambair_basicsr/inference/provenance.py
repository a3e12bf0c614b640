"""What a result was made from, kept inside the result: a restored picture says which picture, weights and settings it is of.

The record is one line of JSON in an XMP packet (ISO 16684-1), for which PNG, TIFF, JPEG, WebP, AVIF and HEIF have a place;
a PPM holds it as a comment, a BMP behind its pixels. It comes into being in the same step as the result, moves along with it,
and nothing lies beside the pictures. Digests are of contents: a file's name and dates do not matter.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Mapping

from ..made_from import file_digest

__all__ = ["Record", "as_text", "as_xmp", "is_of", "of_picture", "record_in", "settings_of"]

Record = Mapping[str, str]
"""Names of what decides about a result, in words, to digests or values."""

_BEGIN, _END = "<qmambair:madeFrom>", "</qmambair:madeFrom>"
_LONGEST = 4096  # bytes of a record
_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_PACKET = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}">'
    '<rdf:Description rdf:about="" xmlns:qmambair="urn:qmambair_basicsr">{}</rdf:Description>'
    '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)


def settings_of(weights: str | os.PathLike, opt: str | os.PathLike | None, **settings: object) -> dict[str, str]:
    """The part of a record that all pictures of a run share.

    Args:
        weights: file of the network.
        opt: option file that describes it; None without.
        **settings: what else decides about results.

    Raises:
        OSError: a file cannot be read.
    """
    options = "" if opt is None else file_digest(opt)[:16]
    return {"weights": file_digest(weights)[:16], "option file": options} | {
        name.replace("_", " "): str(value) for name, value in settings.items()
    }


def as_text(record: Record) -> str:
    """A record as it stands in a file: ASCII, one line, without the characters that XML reserves."""
    text = json.dumps(record, sort_keys=True)
    for character in "&<>":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f"{_BEGIN}{text}{_END}"


def as_xmp(record: Record) -> bytes:
    """A record as an XMP packet."""
    return _PACKET.format(as_text(record)).encode()


def record_in(path: str | os.PathLike) -> dict[str, str] | None:
    """The record of a result; None where a file has none, or cannot be read."""
    with contextlib.suppress(OSError, ValueError), open(path, "rb") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(_BEGIN.encode())
            found = content[start + len(_BEGIN) : start + _LONGEST] if start >= 0 else b""
        record = json.loads(found.partition(_END.encode())[0])
        return record if isinstance(record, dict) else None
    return None


def of_picture(settings: Record, source: str | os.PathLike, quality: int | None) -> dict[str, str]:
    """The record of a result.

    Args:
        settings: of the run, see :func:`settings_of`.
        source: the picture.
        quality: of the result's format, where it loses something.

    Raises:
        OSError: the picture cannot be read.
    """
    return {"picture": file_digest(source)[:16], **settings, "quality": "" if quality is None else str(quality)}


def is_of(record: Record | None, source: str | os.PathLike) -> bool:
    """Whether a record is of a picture as it is now."""
    with contextlib.suppress(OSError):
        return record is not None and record.get("picture") == file_digest(source)[:16]
    return False
