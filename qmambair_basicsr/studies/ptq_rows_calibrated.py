"""Starting values of methods that train end to end, worked out before the training, on any machine.

A search for the bounds of a thousand sites takes a CPU minutes and a GPU that others use hardly less: ``ptq_rows --only calibrate``
keeps what it changes in a network, and whoever trains the row begins there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .. import checkpoints
from ..made_from import digest_of, weights_of
from ..models.ptq_model import cpu_state
from ..ptq.training import OptimizedMethod
from .ablation_studies import Run
from .study_runs import Store

__all__ = ["calibrated_file", "load_calibration", "save_calibration"]

_GREY = 1.01 / 255  # by how much patches may differ: photographs scaled elsewhere round otherwise here and there
_OF_TRAINING = (
    "routing",
    "lr",
    "schedule",
    "loss",
    "feature_weight",
    "features",
    "bound_steps",
)  # options that come later


def calibrated_file(run: Run, store: Store) -> Path:
    """Where the starting values of a row are kept."""
    return store.root / "calibrated" / f"{run.name}.pth"


def _made_from(method: OptimizedMethod, opt: Mapping) -> str:
    """Digest of what starting values depend on, beyond the images."""
    settings = {k: v for k, v in method.settings.items() if k not in _OF_TRAINING}
    return digest_of([type(method).__name__, settings, opt["network_g"], weights_of(opt["path"]["pretrain_network_g"])])


def save_calibration(
    method: OptimizedMethod,
    before: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    run: Run,
    store: Store,
    seconds: float,
) -> None:
    """Keep what a calibration changed.

    Args:
        method: calibrated.
        before: state of its network when it was opened.
        batches: what it was calibrated on.
        run: the row.
        store: where it is kept.
        seconds: that it took (:func:`ptq_rows_quantize.clock`).
    """
    after = cpu_state(method.net)
    content = {
        "made_from": _made_from(method, run.opt),
        "images": [batch.cpu() for batch in batches],
        "changed": {key: value for key, value in after.items() if not torch.equal(before[key], value)},
        "seconds": seconds,
    }
    checkpoints.write_file(content, calibrated_file(run, store))


def load_calibration(method: OptimizedMethod, batches: Sequence[Tensor], run: Run, store: Store) -> tuple[float, str]:
    """Put kept starting values into a method that has been opened.

    Args:
        method: as it was before its calibration.
        batches: what it would be calibrated on.
        run: the row.
        store: where they are kept.

    Returns:
        The seconds that they took, and nothing; or 0 and why they are not used (empty where there are none).

    Raises:
        CheckpointError: the file is damaged.
    """
    file = calibrated_file(run, store)
    if not file.is_file():
        return 0.0, ""
    kept = checkpoints.read_file(file, "starting values")
    if not isinstance(kept, dict) or not {"made_from", "images", "changed", "seconds"} <= kept.keys():
        raise checkpoints.CheckpointError(f"{file} holds no starting values of ptq_rows; delete it and calibrate again")
    if kept["made_from"] != _made_from(method, run.opt):
        return 0.0, "other options or weights"
    theirs, ours = torch.cat(kept["images"]), torch.cat([batch.cpu() for batch in batches])
    if theirs.shape != ours.shape or (theirs - ours).abs().max() > _GREY:
        return 0.0, "other images"
    checkpoints.load_state(method.net, {**method.net.state_dict(), **kept["changed"]}, file)
    return float(kept["seconds"]), ""
