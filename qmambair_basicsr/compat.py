"""Work-arounds that let BasicSR 1.4.2 run on current torch, torchvision and numpy.

Importing this module applies them; it must happen before ``basicsr`` is imported, which
``import qmambair_basicsr`` sees to. Every function names the symptom it cures and when it can be deleted.
"""

from __future__ import annotations

import importlib.util
import sys
import types


def declare_torchvision_ops() -> bool:
    """Declare the operators ``torchvision`` registers shapes for when its compiled library cannot load.

    Symptom: ``RuntimeError: operator torchvision::nms does not exist`` on ``import torchvision`` when a
    torchvision built for CUDA stands beside a CPU-only torch.
    Delete when: PyPI offers a CPU torchvision, or torchvision guards its fake kernels.

    Returns:
        True when the operators had to be declared.
    """
    if "torchvision" in sys.modules:
        return False
    try:
        import torchvision

        return False
    except RuntimeError as err:
        if "torchvision::" not in str(err):
            raise
    for name in [m for m in sys.modules if m == "torchvision" or m.startswith("torchvision.")]:
        del sys.modules[name]
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(schema)
    declare_torchvision_ops.library = library  # the declarations live as long as the Library object
    import torchvision  # noqa: F401

    return True


def alias_functional_tensor() -> bool:
    """Provide ``torchvision.transforms.functional_tensor``, removed in torchvision 0.17.

    Symptom: ``ModuleNotFoundError: torchvision.transforms.functional_tensor`` from
    ``basicsr.data.degradations``.
    Delete when: a BasicSR release imports ``torchvision.transforms.functional`` instead.

    Returns:
        True when the module had to be provided.
    """
    name = "torchvision.transforms.functional_tensor"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        return False
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name)
    module.rgb_to_grayscale = rgb_to_grayscale
    sys.modules[name] = module
    return True


def use_gloo_without_cuda() -> bool:
    """Let ``--launcher pytorch`` start on machines without a CUDA device.

    Symptom: ``ZeroDivisionError`` in ``basicsr.utils.dist_util._init_dist_pytorch`` (rank modulo 0 GPUs), after which
    NCCL would be asked for in any case.
    Delete when: BasicSR chooses the backend by the devices there are.

    Returns:
        True when the function had to be replaced.
    """
    import torch
    from basicsr.utils import dist_util

    if torch.cuda.is_available() or dist_util._init_dist_pytorch.__module__ == __name__:
        return False

    def init_gloo(backend: str) -> None:
        torch.distributed.init_process_group(backend="gloo")

    dist_util._init_dist_pytorch = init_gloo
    return True


def resume_anywhere() -> bool:
    """Let ``--auto_resume`` and ``path: resume_state`` work without CUDA and without running code from the state.

    Symptom: ``AssertionError: Torch not compiled with CUDA enabled`` from ``basicsr.train.load_resume_state``, which
    also unpickles the state with whatever ``torch.load`` allows by default in the torch at hand. A BasicSR checkout's
    own ``train.py`` holds its own copy of that function, which this cannot reach: resume with
    ``python -m qmambair_basicsr.train``.
    Delete when: BasicSR loads training states on the CPU with ``weights_only=True``.

    Returns:
        True when the function had to be replaced.
    """
    import basicsr.train

    if basicsr.train.load_resume_state.__module__ == __name__:
        return False
    basicsr.train.load_resume_state = load_resume_state
    return True


def load_resume_state(opt: dict) -> dict | None:
    """The training state a run goes on from, on the CPU; None for a new run.

    Args:
        opt: options; ``path`` is completed with where the state and its network are.

    Raises:
        CheckpointError: the state cannot be read; the file is named.
    """
    from pathlib import Path

    from basicsr.utils import check_resume

    from .models.checkpoint_io import load_training_state

    if opt["auto_resume"]:
        # ITERATION.state; anything else in the folder is not ours
        states = [p for p in Path(opt["path"]["training_states"]).glob("*.state") if p.stem.isdecimal()]
        if states:
            opt["path"]["resume_state"] = str(max(states, key=lambda p: int(p.stem)))
        else:
            opt["path"].pop("resume_state", None)
    if not opt["path"].get("resume_state"):
        return None
    state = load_training_state(opt["path"]["resume_state"])
    check_resume(opt, state["iter"])
    return state


def apply() -> None:
    """Apply every work-around once, in order."""
    declare_torchvision_ops()
    alias_functional_tensor()
    use_gloo_without_cuda()
    resume_anywhere()


apply()
