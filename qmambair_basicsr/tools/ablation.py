"""Run the ablation studies of the Q-MambaIR paper on the network of a training option file.

    python -m qmambair_basicsr.tools.ablation -opt options/train_QMambaIR_tinySRx2_w4a4.yml [--studies components]
        [--variants LSQ* QuantSR] [--bits 4 2] [--seeds 0 1 2] [--iterations 200] [--sets Set5 Set14] [--root FOLDER] [--out ablation]
        [--force_yml datasets:train:gt_size=64 ...] [--checkpoint FILE] [--middle 192] [--any-code] [--list] [--rerun]

Every variant is trained and tested by the stock pipelines with the file's options; only the quantizers, the seed and the
name differ. --checkpoint is what all of them start from, in place of the file's weights; --middle tests only the middle of
the images. What several studies share is trained once. All runs share one process and decoded images. Results are
kept one file a run, so an interrupted command goes on where it stopped, inside a training too if that had saved a state;
sets can be added later without training again. A run whose initial weights, teacher, training data, options or versions of
torch and BasicSR have changed is trained anew, one whose weights, test options, images or code have changed is tested
anew, and the reason is said; --any-code keeps what other versions and other code have made, --rerun begins all anew. The
command may be started several times on one folder, for several cores or GPUs: each takes runs that no other has. A run
that fails is reported and tried again by the next call. Written to ``--out``: ``ablation.md``, ``summary.csv``,
``runs.csv``, ``ablation.png`` and ``.pdf``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..cli import run_tool
from ..command_lines.ablation import build_parser
from ..studies import ablation


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 1 when a run failed, 2 after a mistake."""
    args = build_parser().parse_args(argv)
    return run_tool(lambda: 1 if ablation.run(args) else 0)


if __name__ == "__main__":
    sys.exit(main())
