"""The arguments of ``train`` and ``test``."""

from __future__ import annotations

import argparse

from . import for_command


def pipeline_parser(command: str) -> argparse.ArgumentParser:
    """The arguments of ``train`` and ``test``: those of BasicSR, and ``--local-rank`` as torch now spells it.

    Args:
        command: ``train`` or ``test``.
    """
    parser = for_command(command)
    parser.add_argument("-opt", required=True, metavar="FILE", help="option file (.yml)")
    parser.add_argument(
        "--launcher", choices=["none", "pytorch", "slurm"], default="none", help="what started the processes"
    )
    parser.add_argument("--auto_resume", action="store_true", help="go on from the newest training state")
    parser.add_argument("--debug", action="store_true", help="tracebacks of mistakes, and BasicSR's debug mode")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch.distributed.launch")
    parser.add_argument(
        "--force_yml", nargs="+", metavar="KEY:KEY=VALUE", help="change options, for example train:total_iter=100"
    )
    return parser
