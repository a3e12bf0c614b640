"""Puts the schema behind BasicSR's own ``parse_options``, so that a mistake costs seconds and one clear message.

``python -m qmambair_basicsr.train`` and ``test`` pass through it, and so does an unmodified BasicSR ``train.py`` that
imports ``qmambair_basicsr.compat`` before it imports basicsr. Where only the plugin line of an option file imports this
package, the file is checked in that moment, while BasicSR is still reading it.

The option file is read here, as UTF-8 and without running anything in it; BasicSR gets it as plain data.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType

import yaml

from . import schema
from .command_lines.pipelines import pipeline_parser
from .schema import OptionError, forced, machine
from .schema.files import expand, wanted_paths

__all__ = ["OptionError", "checked", "concerns_us", "install"]


def concerns_us(opt: Mapping) -> bool:
    """Whether the options name a model or a network of this package, or load it as their plugin."""
    from .schema.registered import find

    network = opt.get("network_g")
    named = (
        find("model", opt.get("model_type")),
        find("arch", network.get("type")) if isinstance(network, dict) else None,
    )
    return "plugin" in opt or any(
        found is not None and found.__module__.startswith(f"{__package__}.") for found in named
    )


def read_and_check(arguments: argparse.Namespace, root: str, training: bool) -> dict:
    """The options of a run.

    Args:
        arguments: the command line, see :func:`~qmambair_basicsr.command_lines.pipelines.pipeline_parser`.
        root: folder below which results go.
        training: whether the run trains.

    Raises:
        OptionError: the file cannot be read, or listing every mistake of the file, of ``--force_yml`` and of the
            launcher.
    """
    file = schema.read_file(arguments.opt)
    opt = file.data
    found = [*file.problems, *forced.apply(opt, arguments.force_yml or ())]
    if arguments.checks_all or concerns_us(opt) or found:
        found += machine.launcher(arguments.launcher, "train" if training else "test")
        processes = machine.processes(arguments.launcher)
        name = opt.get("name")
        whole = {**opt, "auto_resume": arguments.auto_resume, "dist": arguments.launcher != "none"}
        if training and isinstance(name, str) and isinstance(opt.get("path"), dict):
            whole["path"] = {
                **opt["path"],
                "training_states": os.path.join(root, "experiments", name, "training_states"),
            }
        found += schema.problems(whole, training, processes=processes, root=root)
    if found:
        raise schema.error(arguments.opt, found, file.lines)
    return opt


def checked(parse_options: Callable) -> Callable:
    """BasicSR's ``parse_options`` behind the schema.

    It takes the same command line and returns the same options, except that ``~`` is written out in every path, that a
    test leaves the training set of a training file out, and that ``--force_yml`` runs nothing as code.
    """

    def parse_and_check(root_path, is_train=True):
        arguments = pipeline_parser("train" if is_train else "test").parse_args()
        arguments.checks_all = _from_our_command
        opt = read_and_check(arguments, root_path, is_train)
        if not is_train and isinstance(opt.get("datasets"), dict):
            opt["datasets"].pop("train", None)
        for _, section, key in wanted_paths(opt):
            if isinstance(section[key], str):
                section[key] = expand(section[key])
        with _plain_data(parse_options, opt), _command_line(arguments):
            return parse_options(root_path, is_train)

    parse_and_check.__wrapped__ = parse_options
    return parse_and_check


_from_our_command = False


@contextmanager
def our_command() -> Iterator[None]:
    """Inside, options are checked whoever's model they name."""
    global _from_our_command
    before, _from_our_command = _from_our_command, True
    try:
        yield
    finally:
        _from_our_command = before


@contextmanager
def _plain_data(parse_options: Callable, opt: Mapping) -> Iterator[None]:
    """Inside, ``parse_options`` reads these options, in whatever file and encoding they came."""
    text = yaml.dump(opt, Dumper=yaml.SafeDumper, sort_keys=False, allow_unicode=True)
    names = parse_options.__globals__
    names["open"] = lambda file, mode="r": io.StringIO(text)
    try:
        yield
    finally:
        del names["open"]


@contextmanager
def _command_line(arguments: argparse.Namespace) -> Iterator[None]:
    """Inside, ``sys.argv`` holds what stock BasicSR understands; ``--force_yml`` is done already."""
    before = sys.argv
    flags = [f"--{name}" for name in ("auto_resume", "debug") if getattr(arguments, name)]
    rank = ["--local_rank", str(arguments.local_rank)]
    sys.argv = [before[0], "-opt", expand(arguments.opt), "--launcher", arguments.launcher, *rank, *flags]
    try:
        yield
    finally:
        sys.argv = before


# -- installing --------------------------------------------------------------------------------------------------


def install() -> None:
    """Put the check behind ``parse_options`` wherever BasicSR's own modules refer to it. Once is enough.

    Raises:
        OptionError: BasicSR is just reading an option file whose plugin line has imported this package, and that file
            has mistakes.
    """
    from basicsr import test, train
    from basicsr.utils import options

    if not hasattr(options.parse_options, "__wrapped__"):
        options.parse_options = train.parse_options = test.parse_options = checked(options.parse_options)
        sys.excepthook = _one_message(sys.excepthook)
        frame = _reading_options()
        if frame is not None:
            arguments = frame.f_locals["args"]
            arguments.checks_all = True
            read_and_check(arguments, frame.f_locals["root_path"], frame.f_locals["is_train"])


def _reading_options() -> FrameType | None:
    """The frame of BasicSR's ``parse_options`` when it is this package's importer."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "parse_options" and frame.f_globals.get("__name__") == "basicsr.utils.options":
            return frame
        frame = frame.f_back
    return None


def _one_message(hook: Callable) -> Callable:
    """An exception hook that prints mistakes in options as one message, also in scripts that are not ours."""

    def report(kind: type[BaseException], err: BaseException, trace: TracebackType | None) -> None:
        if isinstance(err, OptionError) and "--debug" not in sys.argv:
            sys.stderr.write(f"error: {err}\n")
        else:
            hook(kind, err, trace)

    return report
