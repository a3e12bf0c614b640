"""Checks of the machine a run needs: loggers, GPUs, a launcher, folders that can be written."""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .cross import get
from .problems import Problem, join, show

_LAUNCHED = {
    "pytorch": (
        ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
        "start with `torchrun --nproc_per_node N -m qmambair_basicsr.{}`",
    ),
    "slurm": (
        ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_NODELIST"),
        "start with `srun python -m qmambair_basicsr.{}` inside a Slurm job",
    ),
}


def launcher(name: str, command: str) -> Iterator[Problem]:
    """Whether the processes were started by the launcher that the command line names."""
    needed, remedy = _LAUNCHED.get(name, ((), ""))
    absent = [variable for variable in needed if variable not in os.environ]
    if absent:
        yield Problem(
            f"--launcher {name}",
            f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not set; {remedy.format(command)}",
        )
        return
    for variable in (
        ("RANK", "WORLD_SIZE") if name == "pytorch" else ("SLURM_PROCID", "SLURM_NTASKS") if name == "slurm" else ()
    ):
        if not os.environ[variable].isdigit():
            yield Problem(f"--launcher {name}", f"{variable} must be a whole number; got {show(os.environ[variable])}")


def processes(name: str) -> int:
    """Number of processes that a launcher has started."""
    value = os.environ.get({"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS"}.get(name, ""), "1")
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
