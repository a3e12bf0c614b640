"""One schema of the whole option file, BasicSR's own keys and ours, checked before anything is built.

:func:`check` says everything that is wrong at once; :mod:`.reading` reads files without running anything in them.
What is registered describes itself: arguments come from signatures (:mod:`.signatures`), so networks, losses, metrics
and data sets of other plugins are checked without a line here.
"""

from __future__ import annotations

from collections.abc import Mapping

from . import cross, files, machine
from .files import DATA_HELP, WEIGHTS_HELP
from .problems import OptionError, Problem, error
from .reading import OptionFile, parse, read_file
from .sections import ADDED, ADDED_PATHS, PACKAGE, model_kind, schema

__all__ = [
    "DATA_HELP",
    "PACKAGE",
    "WEIGHTS_HELP",
    "OptionError",
    "OptionFile",
    "Problem",
    "check",
    "error",
    "parse",
    "problems",
    "read_file",
]


def problems(
    opt: Mapping,
    training: bool | None = None,
    *,
    look_at_files: bool = True,
    processes: int = 1,
    root: str | None = None,
) -> list[Problem]:
    """Every mistake of an option file that can be seen without building anything.

    Args:
        opt: options as read from YAML or as ``parse_options`` returns them. Relative paths are looked up from the
            working directory.
        training: True for training, False for testing, None for a tool, which says itself what it needs.
        look_at_files: whether folders, weights and the sizes of images are looked at as well.
        processes: processes that share the training data.
        root: folder below which the results of a run that is about to start go; then GPUs, loggers and that folder
            are looked at as well.

    Returns:
        One entry per mistake.
    """
    plain = {key: value for key, value in opt.items() if key not in ADDED}
    if isinstance(plain.get("path"), Mapping):
        plain["path"] = {key: value for key, value in plain["path"].items() if key not in ADDED_PATHS}
    if training is not None and isinstance(plain.get("datasets"), Mapping) and not training:
        plain["datasets"] = {key: value for key, value in plain["datasets"].items() if key != "train"}
    found = list(schema(plain, training).problems("", plain))
    found += cross.problems(plain, training, model_kind(plain))
    if look_at_files:
        found += files.problems(
            {**plain, "path": opt.get("path"), "auto_resume": opt.get("auto_resume")}, training, processes
        )
    if root is not None and training is not None:
        found += machine.problems(plain, training, root)
    return list(dict.fromkeys(found))


def check(opt: Mapping, source: str = "the option file", training: bool | None = None, **how) -> None:
    """Refuse options with mistakes.

    Args:
        opt, training, how: see :func:`problems`.
        source: what to call the options in the message.

    Raises:
        OptionError: listing every mistake.
    """
    found = problems(opt, training, **how)
    if found:
        raise error(source, found)
