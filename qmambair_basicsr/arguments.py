"""The vocabulary of the commands: a flag means the same, and takes the same kind of value, in every one of them.

``VOCABULARY`` says what a flag means; :func:`add` puts it on a command line, with the command's own default. What one
command alone has may be declared there. Imports nothing but the standard library, so that ``--help`` is quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["VOCABULARY", "add", "add_formats", "command_line", "natural", "positive"]


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def natural(text: str) -> int:
    """A whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def quality(text: str) -> int:
    """1 to 100, as JPEG counts."""
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is no quality from 1 to 100")
    return int(text)


def key_or_none(text: str) -> str | None:
    """A key; ``~`` and ``null``, as YAML writes it, stand for none."""
    return None if text in ("~", "null", "None", "") else text


@dataclass(frozen=True)
class Flag:
    """The meaning of a flag wherever it occurs.

    Attributes:
        meaning: one line, the beginning of its help.
        type: turns the text into a value; None for a switch.
        metavar: what the value is called.
        choices: the only values it takes.
    """

    meaning: str
    type: Callable[[str], Any] | None = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None


VOCABULARY = {
    # networks
    "-opt": Flag("option file (.yml)", Path, "FILE"),
    "--checkpoint": Flag("weights: a BasicSR checkpoint (.pth)", Path, "FILE"),
    "--param-key": Flag("which weights of a .pth: params, params_ema, or ~ for a bare state_dict", key_or_none, "KEY"),
    "--bits": Flag("bits of weights and activations", positive, "N"),
    "--height": Flag("height of the network's input in pixels", positive, "N"),
    "--width": Flag("width of the network's input in pixels", positive, "N"),
    "--iterations": Flag("training iterations", positive, "N"),
    "--model": Flag("network that runs", str, "FILE"),
    "--backend": Flag("what computes", str, "NAME"),
    "--device": Flag("where it is computed: cpu, cuda, cuda:1, mps", str, "NAME"),
    "--threads": Flag("threads that compute", positive, "N"),
    "--jobs": Flag("pieces of work at the same time", positive, "N"),
    "--seed": Flag("seed of random numbers", natural, "N"),
    "--force_yml": Flag("changes to the option file, as train and test take them", str, "KEY:KEY=VALUE"),
    # images
    "--networks": Flag("networks to work on", str, "NAME"),
    "--source": Flag("folder with train/ and test/", Path, "FOLDER"),
    "--images": Flag("folder of the network's input images", Path, "FOLDER"),
    "--truth": Flag("folder of ground-truth images", Path, "FOLDER"),
    "--samples": Flag("values kept of each site", positive, "N"),
    "--calibration": Flag("folder of calibration images", Path, "FOLDER"),
    "--count": Flag("images to use, the first by name", positive, "N"),
    "--middle": Flag("use only the middle N x N pixels of every image", positive, "N"),
    "--overlap": Flag("pixels that neighbouring tiles share", natural, "N"),
    "--crop": Flag("pixels along the border left out of PSNR", natural, "N"),
    "--channel": Flag("channel of PSNR", str, None, ("y", "rgb")),
    "--sets": Flag("test sets, by name", str, "NAME"),
    "--root": Flag("folder of the image sets", Path, "FOLDER"),
    "--scales": Flag("factors of super-resolution", positive, "N"),
    "--quality": Flag("quality on JPEG's scale, 1 to 100", quality, "N"),
    "--size": Flag("side of the pieces, in pixels", int, "N"),
    "--step": Flag("distance between the pieces, in pixels", int, "N"),
    # results
    "--out": Flag("folder to write to", Path, "FOLDER"),
    "--output": Flag("file to write", Path, "FILE"),
    "--page": Flag("write an HTML page to look at"),
    "--dry-run": Flag("say what would be done and do nothing"),
    "--overwrite": Flag("replace files that exist"),
    "--rerun": Flag("make everything again, whatever is finished"),
    "--any-code": Flag("keep results though this package, torch or BasicSR has changed since"),
    "--read-only": Flag("run nothing; tables of what is finished"),
    "--list": Flag("list what there is and stop"),
    "--full": Flag("one row per module; without, equal blocks share one"),
    "--csv": Flag("print CSV instead of a table"),
    "--markdown": Flag("print Markdown instead of a table"),
    "--json": Flag("print JSON instead of a table"),
}


def command_line(description: str, module: str) -> argparse.ArgumentParser:
    """An empty command line.

    Flags cannot be abbreviated: ``--out`` would mean ``--output`` where a command has only the latter.

    Args:
        description: the command's docstring.
        module: its dotted name, ``__spec__.name``.
    """
    return argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add(
    parser: argparse._ActionsContainer,
    name: str,
    note: str = "",
    *,
    default: Any = None,
    required: bool = False,
    nargs: str | None = None,
    choices: Sequence | None = None,
    short: str | None = None,
    repeated: bool = False,
) -> None:
    """Add a flag of the vocabulary.

    Args:
        parser: command line, or a group of it.
        name: key of ``VOCABULARY``.
        note: what the command has to add to the meaning; names the default where its value would not say it.
        default: value without the flag; shown in the help.
        required: whether it must be given.
        nargs: ``+`` or ``*`` for several values.
        choices: where the command takes only some of the values.
        short: one-letter form that the command has besides.
        repeated: the flag may be given several times; the value is a list.
    """
    flag = VOCABULARY[name]
    text = flag.meaning + (f"; {note}" if note else "")
    if flag.type is None:
        parser.add_argument(name, action="store_true", help=text)
        return
    if default not in (None, []) and "default" not in note:
        shown = " ".join(map(str, default)) if isinstance(default, (list, tuple)) else default
        text += f" (default: {shown})"
    kinds = {"type": flag.type, "metavar": flag.metavar, "choices": choices or flag.choices}
    names = [name] if short is None else [short, name]
    if repeated:
        parser.add_argument(*names, action="append", help=text, default=default, required=required, **kinds)
        return
    parser.add_argument(*names, help=text, default=default, required=required, nargs=nargs, **kinds)


def add_formats(parser: argparse.ArgumentParser, *names: str) -> None:
    """Add ``--csv``, ``--markdown``, ``--json`` as asked; ``args.form`` is one of the names, or ``table``."""
    group = parser.add_mutually_exclusive_group()
    for name in names:
        flag = VOCABULARY[f"--{name}"]
        group.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=flag.meaning)
    parser.set_defaults(form="table")
