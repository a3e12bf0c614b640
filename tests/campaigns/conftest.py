"""The small training runs of ``training_runs``."""

from __future__ import annotations

from training_runs import fp_checkpoint, loop, pairs, qat_options, train_options

__all__ = ["fp_checkpoint", "loop", "pairs", "qat_options", "train_options"]
