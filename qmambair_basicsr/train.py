"""Train with BasicSR's own loop, from any folder that holds ``datasets/`` and the like.

    python -m qmambair_basicsr.train -opt options/train_QMambaIR_SRx2_w2a2.yml [--auto_resume]
        [--launcher pytorch] [--force_yml train:total_iter=100 ...] [--debug]

Results go to ``experiments/<name>`` and ``tb_logger/<name>`` below the working directory.
"""

from __future__ import annotations

import sys

from basicsr.train import train_pipeline

from .cli import run_pipeline


def main() -> int:
    """Command line; returns the exit code."""
    return run_pipeline(train_pipeline)


if __name__ == "__main__":
    sys.exit(main())
