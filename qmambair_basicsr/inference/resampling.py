"""Resizing a picture while its rows come, to any size (``--outscale``): bicubic with antialiasing, as MATLAB's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ..data.matlab_resize import taps

__all__ = ["resized_strips"]


def resized_strips(
    strips: Iterable[np.ndarray], size: tuple[int, int], wanted: tuple[int, int]
) -> Iterator[np.ndarray]:
    """The rows of a resized picture.

    Args:
        strips: (h, width, channels) of one type, from top to bottom.
        size: (height, width) of all of them together.
        wanted: (height, width) of the result.

    Yields:
        (h, width, channels) of the type of the strips; integers rounded and clipped.
    """
    if size == wanted:
        yield from strips
        return
    index, weight = taps(size[0], wanted[0], wanted[0] / size[0])  # (taps, rows of the result)
    across = taps(size[1], wanted[1], wanted[1] / size[1])
    last = np.maximum.accumulate(index.max(0))
    first = np.minimum.accumulate(index.min(0)[::-1])[::-1]
    held: np.ndarray | None = None
    start = done = 0  # picture row of held[0]; rows of the result that are finished
    for strip in strips:
        rows = _across(strip, across)
        held = rows if held is None else np.concatenate((held, rows))
        until = int(np.searchsorted(last, start + len(held)))
        if until > done:
            part = np.zeros((until - done, *held.shape[1:]), np.float32)
            for i, w in zip(index[:, done:until], weight[:, done:until].astype(np.float32), strict=True):
                part += w[:, None, None] * held[i - start]
            done = until
            yield _as(part, strip.dtype)
        if done < wanted[0]:
            spent = int(first[done]) - start
            held, start = held[spent:], start + spent


def _across(strip: np.ndarray, across: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Each row resized, float32."""
    pixels = strip.astype(np.float32)
    out = np.zeros((len(strip), across[0].shape[1], strip.shape[2]), np.float32)
    for i, w in zip(across[0], across[1].astype(np.float32), strict=True):
        out += w[:, None] * pixels[:, i]
    return out


def _as(part: np.ndarray, kind: np.dtype) -> np.ndarray:
    if kind.kind != "u":
        return part.astype(kind)
    return np.rint(part.clip(0, np.iinfo(kind).max)).astype(kind)
