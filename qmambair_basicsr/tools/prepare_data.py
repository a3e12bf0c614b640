"""Prepare image sets in the folder layout that the option files expect.

    python -m qmambair_basicsr.tools.prepare_data sr --set Set5 --input FOLDER --scales 2 3 4

Everything is written below ``--root`` (default ``datasets``)::

    Set5/HR/baby.png                          every command with --input: the images, as PNG
    Set5/LR_bicubic/X2/babyx2.png             sr: MATLAB's bicubic, bit for bit, of the modcropped image
    DF2K/HR_sub/0001_s001.png                 crop: sub-images, and LR_bicubic_sub/X2/0001_s001x2.png beside them
    LIVE1/JPEG_grey/q30/bikes.png             jpeg: after compression; ground truth in LIVE1/HR_grey
    CBSD68/HR/101085.png                      subset: those images of B100
    CBSD68/noise_npy/s25/101085.npy           noise: float32 BGR, neither clipped nor rounded
    DF2K/HR.lmdb, DF2K/LR_bicubic/X2.lmdb     lmdb: as BasicSR reads it
    SIDD/train/{GT,LQ}, SIDD/val/{GT,LQ}      sidd: patches of the photographed pairs, validation blocks

Without ``--input`` the images are those already in ``<root>/<set>/HR``. Every command can be interrupted and run
again: finished files are skipped while their sources and options are those they were made with (``.made_from.json`` in
the set's folder remembers), unfinished ones are never left behind. The test options for JPEG and Gaussian
noise make the same pairs on the fly and need ``HR`` only.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from ..command_lines.prepare_data import build_parser
from ..data import preparation


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 1 when the command stopped at an error, which is logged."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return preparation.run(build_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
