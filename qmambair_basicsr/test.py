"""Test with BasicSR's own pipeline, from any folder that holds ``datasets/`` and the like.

    python -m qmambair_basicsr.test -opt options/test_QMambaIR_SRx2_w2a2.yml [--launcher pytorch]
        [--force_yml val:save_img=false ...] [--debug]

Images and the log go to ``results/<name>`` below the working directory.
"""

from __future__ import annotations

import sys

from basicsr.test import test_pipeline

from .cli import run_pipeline


def main() -> int:
    """Command line; returns the exit code."""
    return run_pipeline(test_pipeline)


if __name__ == "__main__":
    sys.exit(main())
