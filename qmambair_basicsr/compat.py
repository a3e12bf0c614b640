"""Work-arounds that let BasicSR 1.4.2 run on current torch, torchvision, SciPy, OpenCV and Python.

Importing :mod:`qmambair_basicsr` (or this module, which imports the package first) applies them. Every function
names the symptom it cures and when it can be deleted; each returns True when there was something to cure.

BasicSR 1.4.2 itself needs nothing for numpy 2: it uses none of the aliases that numpy 1.24 and 2.0 removed.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path

from . import lazy_packages
from .compat_files import copy_options_as_utf8, log_as_utf8, make_folders_of_the_run_only
from .compat_networks import swinir_without_values

# -- before basicsr is imported ------------------------------------------------------------------------------


def lazy_torchvision() -> bool:
    """Leave ``torchvision.models`` and ``torchvision.ops`` unimported until they are used.

    Symptom: ``import basicsr`` takes two seconds longer, for ``torch._dynamo``, which nothing here uses.
    Delete when: ``import torchvision`` no longer imports ``torch._dynamo``.

    Returns:
        True when stand-ins were put in their place.
    """
    return lazy_packages.install()


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
    lazy_torchvision()
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


def _absent(name: str) -> bool:
    if name in sys.modules:
        return False
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:  # a parent package is absent
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
    if not _absent(name):
        return False
    from torchvision.transforms.functional import rgb_to_grayscale

    module = types.ModuleType(name)
    module.rgb_to_grayscale = rgb_to_grayscale
    sys.modules[name] = module
    return True


def provide_loose_version() -> bool:
    """Provide ``distutils.version.LooseVersion``, which left Python with 3.12.

    Symptom: ``ModuleNotFoundError: No module named 'distutils'`` from ``basicsr.archs.arch_util`` on Python 3.12
    in an environment without setuptools (which brings a copy of distutils).
    Delete when: a BasicSR release compares versions with ``packaging``.

    Returns:
        True when the module had to be provided.
    """
    if not _absent("distutils.version"):
        return False
    from packaging.version import Version

    version = types.ModuleType("distutils.version")
    version.LooseVersion = Version
    package = sys.modules.setdefault("distutils", types.ModuleType("distutils"))
    package.version = version
    sys.modules["distutils.version"] = version
    return True


def alias_scipy_filters() -> bool:
    """Provide ``scipy.ndimage.filters``, a deprecated name that SciPy 2.0 removes.

    Symptom: ``ModuleNotFoundError: No module named 'scipy.ndimage.filters'`` from ``basicsr.metrics.niqe``.
    Delete when: a BasicSR release imports from ``scipy.ndimage``.

    Returns:
        True when the module had to be provided.
    """
    name = "scipy.ndimage.filters"
    if not _absent(name):
        return False
    from scipy import ndimage

    module = types.ModuleType(name)
    module.convolve, module.gaussian_filter = ndimage.convolve, ndimage.gaussian_filter
    ndimage.filters = module
    sys.modules[name] = module
    return True


# -- after basicsr is imported -------------------------------------------------------------------------------


def whole_jpeg_quality() -> bool:
    """Pass OpenCV a whole number as JPEG quality.

    Symptom: ``cv2.error: ... Can't parse 'params'`` from ``basicsr.data.degradations.random_add_jpg_compression``,
    which draws the quality with ``numpy.random.uniform``; OpenCV 4.9 and later refuse a float there.
    Delete when: a BasicSR release converts the drawn quality.

    Returns:
        True when the function was wrapped, False when it had been before.
    """
    from basicsr.data import degradations

    stock = degradations.add_jpg_compression
    if hasattr(stock, "__wrapped__"):
        return False

    def add_jpg_compression(img, quality=90):
        return stock(img, int(quality))

    add_jpg_compression.__wrapped__ = stock
    degradations.add_jpg_compression = add_jpg_compression
    return True


def sqrtm_without_disp() -> bool:
    """Give ``basicsr.metrics.fid`` a matrix square root that still takes ``disp``.

    Symptom: ``TypeError: sqrtm() got an unexpected keyword argument 'disp'`` from ``calculate_fid`` with
    SciPy 1.18 and later.
    Delete when: a BasicSR release calls ``scipy.linalg.sqrtm`` without ``disp``.

    Returns:
        True when the function had to be provided.
    """
    import inspect

    from scipy import linalg

    if "disp" in inspect.signature(linalg.sqrtm).parameters:
        return False
    from basicsr.metrics import fid  # after the test above: it brings torchvision.models

    if fid.linalg is not linalg:
        return False

    def sqrtm(matrix, disp=True):
        root = linalg.sqrtm(matrix)
        # the second value was an error estimate, which calculate_fid drops
        return root if disp else (root, None)

    fid.linalg = types.SimpleNamespace(sqrtm=sqrtm)
    return True


def gloo_without_cuda() -> bool:
    """Let ``--launcher pytorch`` run on machines without a GPU.

    Symptom: ``ZeroDivisionError`` (rank modulo the number of GPUs) from ``basicsr.utils.dist_util``, which also
    asks for NCCL, which needs GPUs.
    Delete when: a BasicSR release chooses the process-group backend by device.

    Returns:
        True when the function was wrapped, False when it had been before.
    """
    import torch
    from basicsr.utils import dist_util

    stock = dist_util._init_dist_pytorch
    if hasattr(stock, "__wrapped__"):
        return False

    def init_dist_pytorch(backend, **kwargs):
        if torch.cuda.is_available():
            stock(backend, **kwargs)
        else:
            torch.distributed.init_process_group(backend="gloo", **kwargs)

    init_dist_pytorch.__wrapped__ = stock
    dist_util._init_dist_pytorch = init_dist_pytorch
    return True


def load_resume_state(opt: dict) -> dict | None:
    """The training state that ``--auto_resume`` or ``path: resume_state`` names, read without running code.

    Takes the place of ``basicsr.train.load_resume_state``: tensors arrive on the CPU (``load_state_dict`` moves
    them), and files that are not ``<iteration>.state`` are passed over.

    Args:
        opt: options as ``parse_options`` returns them; ``path`` is updated for resuming.

    Returns:
        The state, or None when there is nothing to resume from.

    Raises:
        qmambair_basicsr.checkpoints.CheckpointError: the file cannot be read or could run code.
    """
    from basicsr.utils import check_resume

    from .checkpoints import load_training_state

    path = opt["path"].get("resume_state")
    if opt["auto_resume"]:
        states = [p for p in Path(opt["path"]["training_states"]).glob("*.state") if p.stem.isdigit()]
        path = str(max(states, key=lambda p: int(p.stem))) if states else None
    if path is None:
        opt["path"].pop("resume_state", None)
        return None
    opt["path"]["resume_state"] = path
    state = load_training_state(path)
    check_resume(opt, state["iter"])
    if Path(path).resolve().parent != Path(opt["path"]["training_states"]).resolve():
        _continue_another_run(opt, Path(path))
    return state


def _continue_another_run(opt: dict, state: Path) -> None:
    """Folders of a run that goes on from another run's state, and that run's networks, which lie beside the state.

    BasicSR makes no folders when it resumes and looks for the networks in the new run's.
    """
    from .checkpoints import CheckpointError

    for key in ("experiments_root", "models", "training_states", "log", "visualization"):
        Path(opt["path"][key]).mkdir(parents=True, exist_ok=True)
    ignored = opt["path"].get("ignore_resume_networks") or ()
    for network in (key for key in opt if key.startswith("network_") and key not in ignored):
        own = Path(opt["path"][f"pretrain_{network}"])
        other = state.parent.parent / "models" / own.name
        if not own.is_file():
            if not other.is_file():
                raise CheckpointError(
                    f"path: resume_state: {state} needs {own.name} of the same run: there is neither {other} nor {own}"
                )
            opt["path"][f"pretrain_{network}"] = str(other)


def resume_without_cuda() -> bool:
    """Let ``basicsr.train`` resume on a CPU, and read training states with ``weights_only=True``.

    Symptom: ``AssertionError: Torch not compiled with CUDA enabled`` from ``load_resume_state``; on torch older
    than 2.6 it would also run code that a state file carries. A BasicSR checkout's own ``train.py`` holds its own
    copy of the function, which this cannot reach: resume on a CPU with ``python -m qmambair_basicsr.train``.
    Delete when: a BasicSR release loads the state to the CPU with ``weights_only=True``.

    Returns:
        True when the function was replaced, False when it had been before.
    """
    from basicsr import train

    if train.load_resume_state is load_resume_state:
        return False
    train.load_resume_state = load_resume_state
    return True


def share_lmdbs() -> bool:
    """Let BasicSR's own data sets read an LMDB that another one has open, and every image under its whole name.

    Symptom: ``lmdb.Error: The environment ... is already open in this process`` when two sections read one LMDB; one
    image for both ``photo.png`` and ``photo.v2.png``.
    Delete when: a BasicSR release shares environments and does not cut names at their first dot.

    Returns:
        True when the functions were replaced, False when they had been before.
    """
    from .data import stock_lmdb

    return stock_lmdb.install()


BEFORE = (
    lazy_torchvision,
    declare_torchvision_ops,
    alias_functional_tensor,
    provide_loose_version,
    alias_scipy_filters,
)
AFTER = (
    whole_jpeg_quality,
    sqrtm_without_disp,
    gloo_without_cuda,
    resume_without_cuda,
    share_lmdbs,
    copy_options_as_utf8,
    log_as_utf8,
    make_folders_of_the_run_only,
    swinir_without_values,
)


def apply() -> None:
    """Apply every work-around, in order.

    Raises:
        ImportError: BasicSR is not installed.
    """
    for cure in BEFORE:
        cure()
    if _absent("basicsr"):
        raise ImportError(
            "qmambair_basicsr needs BasicSR 1.4.2, which is not installed: "
            "pip install --no-build-isolation basicsr==1.4.2 (README, section Installation)"
        )
    for cure in AFTER:
        cure()
    lazy_packages.withdraw()
