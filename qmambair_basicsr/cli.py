"""Shared by the command-line entry points: a mistake of the user ends in one message, not in a traceback."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType

EXIT_MISTAKE = 2


def _raised_here(trace: TracebackType | None) -> bool:
    """Whether the innermost frame of a traceback is code of this package."""
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    # not __name__: that is "__main__" in the module that `python -m` runs
    package = trace.tb_frame.f_globals.get("__package__") if trace is not None else None
    return package is not None and f"{package}.".startswith(f"{__package__}.")


def is_mistake(err: BaseException) -> bool:
    """Whether an error is about what the user asked for, and its message says what to do.

    That holds for the error classes of this package and for built-in ones that its own code raises; what surfaces
    from inside torch, BasicSR or Python is a defect and keeps its traceback.
    """
    ours = type(err).__module__.startswith(f"{__package__}.")
    return ours or (isinstance(err, (ValueError, KeyError, OSError)) and _raised_here(err.__traceback__))


def exit_code(err: BaseException) -> int:
    """Exit code of an error: its own ``exit_code``, or that of a mistake of the user."""
    return getattr(err, "exit_code", EXIT_MISTAKE)


# functions of BasicSR and of its models that build what an option file names
_BUILDERS = {
    "build_dataset": "the data set",
    "build_network": "the network",
    "build_loss": "the loss",
    "setup_optimizers": "the optimizer",
    "setup_schedulers": "the scheduler",
}


_SYSTEM_ADVICE = {
    errno.ENOSPC: "free space on its disk",
    errno.EDQUOT: "free space within the quota",
    errno.EROFS: "choose a place that can be written to",
    errno.EACCES: "permit it, or choose another place",
    errno.EPERM: "permit it, or choose another place",
    errno.EISDIR: "give a file's name",
    errno.ENOTDIR: "a part of this path is a file",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _failed_to_build(err: BaseException) -> str | None:
    """Which named thing an error kept from being built: its options are at fault, whatever the error says."""
    trace, found = err.__traceback__, None
    while trace is not None:
        frame = trace.tb_frame
        if frame.f_globals.get("__name__", "").startswith(("basicsr.", f"{__package__}.")):
            what = _BUILDERS.get(frame.f_code.co_name)
            names = (frame.f_locals.get(name) for name in ("network_type", "loss_type", "scheduler_type"))
            kind = next((name for name in names if name), (frame.f_locals.get("dataset_opt") or {}).get("type", ""))
            found = f"{what} {kind}".strip() if what else found
        trace = trace.tb_next
    return found


def message_of(err: BaseException) -> str | None:
    """Message to the user about an error; None for a defect, which keeps its traceback."""
    if is_mistake(err):
        if isinstance(err, OSError) and err.strerror and err.filename is not None:
            advice = _SYSTEM_ADVICE.get(err.errno)
            return f"{os.fsdecode(err.filename)}: {err.strerror}" + (f"; {advice}" if advice else "")
        return _without_worker(str(err.args[0] if isinstance(err, KeyError) and err.args else err))
    what = _failed_to_build(err)
    if what is None or not isinstance(
        err, (TypeError, ValueError, LookupError, ArithmeticError, AssertionError, RuntimeError)
    ):
        return None
    reason = f"{err.args[0]!r} is missing" if isinstance(err, KeyError) and err.args else " ".join(str(err).split())
    return f"{what} cannot be built with these options: {reason or type(err).__name__}"


def _without_worker(text: str) -> str:
    """The message alone, of an error that a loader's worker process has sent with its whole traceback."""
    head, found, rest = text.partition("Original Traceback (most recent call last):")
    if not found or "worker process" not in head:
        return text
    lines = rest.rstrip().splitlines()
    first = next((n for n, line in enumerate(lines) if line and not line.startswith(" ")), -1)
    return "\n".join([lines[first].partition(": ")[2] or lines[first], *lines[first + 1 :]])


def run_tool(tool: Callable[[], int | None]) -> int:
    """Run the body of a command-line tool.

    Returns:
        What it returned (0 for None); after a mistake of the user, reported in one line, 2 (1 for a failed test).
    """
    try:
        return tool() or 0
    except Exception as err:
        message = message_of(err)
        if message is None:
            raise
        sys.stderr.write(f"error: {message}\n")
        return exit_code(err)


def run_pipeline(pipeline: Callable[[str], None]) -> int:
    """Run a BasicSR pipeline with the working directory as its root.

    Args:
        pipeline: ``train_pipeline`` or ``test_pipeline``; reads ``sys.argv``.

    Returns:
        Exit code: 0; after a mistake of the user, reported in one message (with ``--debug`` on the command line, in a
        traceback), 2, or 1 where a test failed.
    """
    from .preflight import our_command

    if hasattr(sys.stdout, "reconfigure"):  # BasicSR prints names, which the locale may not have letters for
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with our_command():
            pipeline(os.getcwd())
    except Exception as err:
        message = message_of(err)
        if message is None:
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        else:
            text = f"error: {message}\n(--debug shows where this was raised)"
            logger = logging.getLogger("basicsr")
            # once a run has its log file the message belongs in it too
            if logger.hasHandlers() and logger.isEnabledFor(logging.ERROR) and logger.handlers:
                logger.error(text)
            else:
                sys.stderr.write(text + "\n")
        return exit_code(err)
    finally:
        _leave_process_group()
    return 0


def _leave_process_group() -> None:
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
