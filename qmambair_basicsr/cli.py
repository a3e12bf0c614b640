"""Shared by the command-line entry points: a mistake of the user ends in one message, not in a traceback."""

from __future__ import annotations

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


def run_tool(tool: Callable[[], int | None]) -> int:
    """Run the body of a command-line tool.

    Returns:
        What it returned (0 for None); after a mistake of the user, reported in one line, 2 (1 for a failed test).
    """
    try:
        return tool() or 0
    except Exception as err:
        if not is_mistake(err):
            raise
        sys.stderr.write(f"error: {err}\n")
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

    try:
        with our_command():
            pipeline(os.getcwd())
    except Exception as err:
        if not is_mistake(err):
            raise
        if "--debug" in sys.argv:
            traceback.print_exc()
        else:
            message = err.args[0] if isinstance(err, KeyError) and err.args else err
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
