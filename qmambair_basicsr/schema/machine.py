"""Checks of the machine a run needs: loggers, GPUs, a launcher, folders that can be written."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .cross import get
from .problems import Problem, join, show


@dataclass(frozen=True)
class _Launcher:
    """Variables that a launcher leaves in the environment of every process.

    Attributes:
        rank, size: variables with the process's number and the number of processes.
        others: further variables that must be there.
        port: variable with a port, which may be missing for Slurm.
        start: how to start it, with ``{}`` for train or test.
    """

    rank: str
    size: str
    others: tuple[str, ...]
    start: str
    port: str = "MASTER_PORT"


_LAUNCHERS = {
    "pytorch": _Launcher(
        "RANK",
        "WORLD_SIZE",
        ("MASTER_ADDR", "MASTER_PORT"),
        "start with `torchrun --nproc_per_node N -m qmambair_basicsr.{}`",
    ),
    "slurm": _Launcher(
        "SLURM_PROCID",
        "SLURM_NTASKS",
        ("SLURM_NODELIST",),
        "start with `srun python -m qmambair_basicsr.{}` inside a Slurm job",
    ),
}


def launcher(name: str, command: str) -> Iterator[Problem]:
    """Whether the processes were started by the launcher that the command line names.

    Args:
        name: value of ``--launcher``.
        command: ``train`` or ``test``.
    """
    known = _LAUNCHERS.get(name)
    if known is None:
        return
    where, env = f"--launcher {name}", os.environ
    absent = [variable for variable in (known.rank, known.size, *known.others) if variable not in env]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        yield Problem(where, f"{', '.join(absent)} {are} not set; {known.start.format(command)}")
        return
    wrong = [v for v in (known.rank, known.size, known.port) if v in env and not env[v].isdigit()]
    for variable in wrong:
        yield Problem(where, f"{variable} must be a whole number; got {show(env[variable])}")
    if not wrong and int(env[known.rank]) >= int(env[known.size]):
        rank, size = env[known.rank], env[known.size]
        yield Problem(where, f"{known.rank} is {rank}, but {known.size} is {size}; processes are counted from 0")
    if name == "slurm":
        yield from _slurm()


def _slurm() -> Iterator[Problem]:
    import torch

    if shutil.which("scontrol") is None:
        yield Problem("--launcher slurm", "the command scontrol, which names the job's nodes, is not there")
    if not torch.cuda.is_available():
        yield Problem("--launcher slurm", "BasicSR gives every Slurm process a GPU, but torch sees none; use torchrun")


def processes(name: str) -> int:
    """Number of processes that a launcher has started."""
    value = os.environ.get(_LAUNCHERS[name].size, "1") if name in _LAUNCHERS else "1"
    return max(1, int(value)) if value.isdigit() else 1


def _cannot_import(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except Exception as err:  # a broken package raises anything
        return " ".join(str(err).split()) or type(err).__name__
    return None


def loggers(opt: Mapping) -> Iterator[Problem]:
    """TensorBoard and wandb, where they are wanted."""
    if "debug" in str(opt.get("name")):
        return  # BasicSR logs to neither
    if get(opt, "logger.use_tb_logger", bool):
        reason = _cannot_import("torch.utils.tensorboard")
        if reason:
            yield Problem(
                "logger.use_tb_logger",
                f"TensorBoard cannot be used ({reason}); pip install tensorboard, or set use_tb_logger: false",
            )
    if get(opt, "logger.wandb.project", str):
        reason = _cannot_import("wandb")
        if reason:
            yield Problem(
                "logger.wandb.project", f"wandb cannot be used ({reason}); pip install wandb, or set project: ~"
            )


def metrics(opt: Mapping) -> Iterator[Problem]:
    """Packages and weights behind LPIPS and ST-LPIPS, which a training would ask for at its first validation."""
    from ..metrics.perceptual import MetricError, trunk_file

    for name, metric in (get(opt, "val.metrics", Mapping) or {}).items():
        kind = get(metric, "type", str)
        package = {"calculate_lpips": "lpips", "calculate_st_lpips": "stlpips_pytorch"}.get(kind)
        if package is None:
            continue
        where = join("val.metrics", name)
        if importlib.util.find_spec(package) is None:
            yield Problem(where, f"the package {package} is not installed; pip install 'qmambair_basicsr[metrics]'")
        elif package == "lpips" and metric.get("net", "alex") in ["alex", "vgg"]:
            try:
                trunk_file(metric.get("net", "alex"))
            except MetricError as err:
                yield Problem(where, str(err))


def devices(opt: Mapping) -> Iterator[Problem]:
    """GPUs that the options ask for."""
    import torch

    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = get(opt, "num_gpu", int)
    if wanted and wanted > available:
        seen = f"torch sees {available} CUDA devices" if available else "torch sees no CUDA device"
        yield Problem("num_gpu", f"is {wanted}, but {seen}; set num_gpu: {available} (or auto)")
    if get(opt, "datasets.train.prefetch_mode", str) == "cuda" and (not available or wanted == 0):
        yield Problem("datasets.train.prefetch_mode", "cuda needs a GPU; use cpu or nothing (~)")


def folders(opt: Mapping, training: bool, root: str) -> Iterator[Problem]:
    """Places where results will be written, below ``root``."""
    name = opt.get("name")
    wanted = ["experiments" if training else "results"]
    if training and get(opt, "logger.use_tb_logger", bool):
        wanted.append("tb_logger")
    for top in wanted:
        place = Path(root) / top / (name if isinstance(name, str) else "")
        try:
            yield from _writable(place)
        except (OSError, ValueError) as err:
            yield Problem(
                "name", f"no folder {str(place)!r} can be made here ({getattr(err, 'strerror', None) or err})"
            )


def _writable(place: Path) -> Iterator[Problem]:
    for part in (place, *place.parents):
        if part.is_symlink() and not part.exists():
            yield Problem("name", f"{part} is a link to nothing; remove it")
            return
        if part.exists() and not part.is_dir():
            yield Problem("name", f"results go to the folder {place}, but {part} is a file; move it away")
            return
    # an older folder of the run is renamed, so its parent must be writable too
    there = next(part for part in place.parents if part.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        yield Problem(
            "name",
            f"results go to the folder {place}, but {there.resolve()} cannot be written; start from another folder",
        )


def problems(opt: Mapping, training: bool, root: str) -> Iterator[Problem]:
    """All of the above that the options decide."""
    yield from devices(opt)
    yield from metrics(opt)
    yield from folders(opt, training, root)
    if training:
        yield from loggers(opt)
