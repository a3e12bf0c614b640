"""Facts about the published image sets: how many images each has, and which of B100's images are CBSD68."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

__all__ = ["IMAGE_COUNTS", "check_count", "subset_ids"]

IMAGE_COUNTS = {
    # super-resolution
    "Set5": 5,
    "Set14": 14,
    "B100": 100,
    "Urban100": 100,
    "Manga109": 109,
    # denoising and JPEG artifacts
    "CBSD68": 68,
    "Kodak24": 24,
    "McMaster": 18,
    "CC15": 15,
    "classic5": 5,
    "LIVE1": 29,
    # training
    "DIV2K": 800,
    "Flickr2K": 2650,
    "DF2K": 3450,
    "WED": 4744,
    "BSD400": 400,
    "BSD500": 500,
    "T91": 91,
}


def check_count(name: str, files: Sequence[Path]) -> None:
    """Compare the number of files with the published size of the set, where one is known.

    Args:
        name: the set's name, as in :data:`IMAGE_COUNTS` (case does not matter); other names pass.
        files: its images.

    Raises:
        ValueError: the numbers differ.
    """
    expected = {known.lower(): count for known, count in IMAGE_COUNTS.items()}.get(name.lower())
    if expected is not None and len(files) != expected:
        where = files[0].parent if files else "its folder"
        raise ValueError(
            f"{name} has {expected} images, but {len(files)} were found in {where}; "
            "complete it, give the set another name, or pass --any-count"
        )


def subset_ids(name: str) -> frozenset[str]:
    """File stems of a set that is a part of a bigger one.

    Args:
        name: ``CBSD68``: the 68 images of B100 (BSDS300's test part) that the denoising literature uses.

    Raises:
        ValueError: unknown subset.
    """
    file = resources.files(__package__).joinpath("files", f"{name.lower()}_ids.txt")
    if not file.is_file():
        raise ValueError(f"no list of ids for {name!r}; known: CBSD68")
    return frozenset(file.read_text().split())
