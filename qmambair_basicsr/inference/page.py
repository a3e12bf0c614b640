"""One HTML file to look at results: pictures inside it, nothing from the network, no framework.

``page.html`` beside this file is the frame: a slider between before and after, one zoom for both, keyboard and touch.
"""

from __future__ import annotations

import base64
import html
import io
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image, features

from ..files import write_text

__all__ = ["Comparison", "Detail", "collecting", "data_uri", "detail_of", "figure", "write_page"]

LARGEST = 1600, 1200  # pixels of a result that are shown; of larger ones the part with most structure
_NARROWEST = 320  # pixels on the screen: smaller results are shown at a multiple of their size
_QUALITY = 92


@dataclass(frozen=True)
class Detail:
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int

    def times(self, factor: float) -> Detail:
        """The same part of a picture that is so many times as large."""
        return Detail(*(round(n * factor) for n in (self.top, self.left, self.height, self.width)))

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """This part of (H, W, ...)."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Comparison:
    """One picture of a page.

    Attributes:
        name: heading.
        before, after: (h, w, 1 to 4) uint8, the same part of picture and result; ``before`` is enlarged by the browser.
        facts: numbers, in words.
    """

    name: str
    before: np.ndarray
    after: np.ndarray
    facts: Sequence[str] = ()


def detail_of(pixels: np.ndarray, factor: float) -> Detail:
    """The part of a picture that is shown: all of it where its result is small, else that with most structure.

    Args:
        pixels: (H, W, C), the picture.
        factor: size of the result over that of the picture.
    """
    height, width = (
        min(n, max(1, int(most / factor))) for n, most in zip(pixels.shape[:2], LARGEST[::-1], strict=True)
    )
    if (height, width) == pixels.shape[:2]:
        return Detail(0, 0, height, width)
    step = max(1, min(height, width) // 4)
    grey = pixels[..., 0].astype(np.float32)
    tops = range(0, pixels.shape[0] - height + 1, step)
    lefts = range(0, pixels.shape[1] - width + 1, step)
    # a few thousand pixels of each are enough to tell which has structure
    return max(
        (Detail(top, left, height, width) for top in tops for left in lefts),
        key=lambda d: float(np.abs(np.diff(d.of(grey)[::7], axis=1)).mean()),
    )


def collecting(strips: Iterable[np.ndarray], detail: Detail, found: list[np.ndarray]) -> Iterator[np.ndarray]:
    """The strips of a picture as they pass by; the rows of a part of it are put into ``found``."""
    top = 0
    for strip in strips:
        rows = strip[max(detail.top - top, 0) : max(detail.top + detail.height - top, 0)]
        if len(rows):
            found.append(rows[:, detail.left : detail.left + detail.width].copy())
        top += len(strip)
        yield strip


def data_uri(pixels: np.ndarray, exact: bool = False) -> str:
    """A picture as text for ``src``: WebP where Pillow writes it, else JPEG or, with transparency, PNG.

    Args:
        pixels: (h, w, 1 to 4) uint8.
        exact: without loss, as PNG.
    """
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    kind = "PNG" if exact else "WEBP" if features.check("webp") else "PNG" if pixels.shape[2] in (2, 4) else "JPEG"
    image = image.convert("RGBA") if pixels.shape[2] == 2 else image
    content = io.BytesIO()
    image.save(content, format=kind, **({} if kind == "PNG" else {"quality": _QUALITY}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def figure(entry: Comparison) -> str:
    """The HTML of one comparison."""
    name = html.escape(entry.name)
    facts = "".join(f"<span>{html.escape(fact)}</span>" for fact in entry.facts)
    height, width = entry.after.shape[:2]
    width, height = (n * max(1, -(-_NARROWEST // width)) for n in (width, height))
    return f"""<figure class="compare">
<figcaption><h2>{name}</h2>{facts}</figcaption>
<div class="tools"><input type="range" min="0" max="100" step="0.5" value="50" aria-label="between before and after, {name}">
<button class="out" title="smaller (-)">&minus;</button><button class="in" title="larger (+)">+</button><button class="whole" title="whole (0)">1:1</button></div>
<div class="view" tabindex="0" role="group" aria-label="{name}" style="aspect-ratio:{width}/{height};width:{width}px">
<div class="side"><img alt="before" src="{data_uri(entry.before)}"></div>
<div class="side after"><img alt="after" src="{data_uri(entry.after)}"></div>
<div class="bar"></div><span class="tag left">before</span><span class="tag right">after</span></div>
</figure>"""


def write_page(path: str | Path, title: str, lead: str, parts: Iterable[str]) -> None:
    """Write the page.

    Args:
        path: HTML file; replaced in one step.
        title: heading.
        lead: a sentence below it.
        parts: HTML of its parts, for example of :func:`figure`.

    Raises:
        OSError: it cannot be written.
    """
    frame = string.Template(resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    text = frame.substitute(title=html.escape(title), lead=html.escape(lead), body="\n".join(parts))
    # names of files need not be text in any encoding
    write_text(path, text.encode("utf-8", "backslashreplace").decode("utf-8"))
