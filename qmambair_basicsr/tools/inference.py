"""Restore photographs: enlarge them, or remove noise or the traces of JPEG.

    qmambair -i PHOTOS -o RESULTS                                   # twice as large
    qmambair -i holiday/*.jpg old/ -o RESULTS --task denoise
    python -m qmambair_basicsr.tools.inference -i PHOTOS -o RESULTS --scale 4 --outscale 3 --ext png --recursive

Pictures are read as people have them (8 and 16 bits, grey, palette, transparent, CMYK, turned by EXIF) and keep their
EXIF, colour profile and resolution. Large ones are restored in tiles and written as these come. A result is there whole
or not at all; a second run leaves finished ones alone, so an interrupted one goes on where it stopped. A picture that
fails is named at the end and costs no other; the exit code is then 1.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.inference import build_parser
from ..inference import batch


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 when a picture failed, 2 after a mistake in the arguments."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: batch.run(args))


if __name__ == "__main__":
    sys.exit(main())
