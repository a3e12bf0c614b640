"""The arguments of every command, apart from what the command does, so that they are read before torch is imported.

``python -m qmambair_basicsr.tools.NAME`` imports this package first, which registers everything and so imports torch and
BasicSR: seconds. :func:`answer_at_once` therefore reads the arguments before that; ``--help`` and mistakes in them end
the process there. The modules here import nothing heavy.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from ..arguments import command_line

PACKAGE = __package__.rpartition(".")[0]
# command -> module here that has its ``build_parser``; those of tools/ have the same name in both places
_OTHERS = {"train": "train", "test": "test", "ops.build": "ops_build", "ops": "ops"}
SCRIPTS = {"qmambair": "tools.inference", "qmambair-train": "train", "qmambair-test": "test"}
"""Console script -> command."""


def for_command(module: str) -> argparse.ArgumentParser:
    """An empty command line whose description is the docstring of the command's module, which is not imported.

    Args:
        module: below this package, for example ``tools.verify``.
    """
    spec = importlib.util.find_spec(f"{PACKAGE}.{module}")
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8")))
    return command_line(text, f"{PACKAGE}.{module}".removesuffix(".__main__"))


def parser_of(command: str) -> argparse.ArgumentParser | None:
    """The command line of a command.

    Args:
        command: its module below this package, for example ``tools.verify``, ``train`` or ``ops.build``.

    Returns:
        None where there is no such command.
    """
    folder, _, name = command.rpartition(".")
    name = name if folder == "tools" else _OTHERS.get(command)
    if name is None or importlib.util.find_spec(f"{__package__}.{name}") is None:
        return None
    return importlib.import_module(f"{__package__}.{name}").build_parser()


def answer_at_once() -> None:
    """Read the arguments of ``python -m qmambair_basicsr...``, or of a console script, when that started this process.

    Raises:
        SystemExit: after ``--help``, or with a message about a mistake in the arguments.
    """
    script = SCRIPTS.get(Path(sys.argv[0]).name.removesuffix(".exe")) if sys.argv else None
    if script is not None:
        parser_of(script).parse_args()
    if sys.argv[:1] != ["-m"]:  # what Python sets while it looks for the module to run
        return
    module = sys.orig_argv[-len(sys.argv)].removeprefix("-m")
    if module == PACKAGE or not module.startswith(f"{PACKAGE}."):
        return
    parser = parser_of(module.removeprefix(f"{PACKAGE}."))
    if parser is not None:
        parser.parse_args()
