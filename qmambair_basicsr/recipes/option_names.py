"""Names of option files: what a name means, which names there are, and whether the files of a folder are as made.

A name is ``{train|test}_{network}_{task}`` for full precision and
``{train|test}_Q{network}_{task}_w{bits of weights}a{bits of activations}[_{method}]`` for a quantized network;
``{ptq|test}_Q{network}_{task}_w..a.._{method}`` with a post-training method (``ptq_contents``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..strict import nearest
from .option_contents import Bits, methods, network_options, render, stem, test_options, train_options
from .option_networks import WITH_ATTENTION
from .option_table import CONV_FP, DISTILL, PAIRS, PUBLISHED, TASKS
from .ptq_contents import METHODS as PTQ_METHODS
from .ptq_contents import ptq_options, ptq_rows, ptq_test_options, quant_options

PHASES = ("train", "test")
WIDTHS = (8, 4, 2)  # that :func:`names` lists; others from 1 to 8 can be made where the quantizers have them
_NAME = re.compile(r"(train|test|ptq)_(\w+?)_([A-Za-z]+\d*(?:x\d|q\d+)?)(?:_w(\d+)a(\d+)(?:_(\w+))?)?")


class OptionNameError(ValueError):
    """No option file of that name can be made; the message says why and names the nearest."""


@dataclass(frozen=True)
class Row:
    """One option file.

    Attributes:
        phase: ``train``, ``test``, or ``ptq`` for post-training quantization.
        family: full-precision network, ``MambaIR`` ...
        task: key of ``TASKS``.
        bits: of weights and activations; 32 for the full-precision network.
        method: see ``option_contents.train_options`` and ``ptq_contents.ptq_options``.
    """

    phase: str
    family: str
    task: str
    bits: Bits
    method: str = ""

    @property
    def name(self) -> str:
        """The file's name without ending."""
        return stem(self.phase, self.family, self.task, self.bits, self.method)

    def options(self) -> dict:
        """Contents of the file, without its ``plugin`` line."""
        if self.method in PTQ_METHODS:
            build = ptq_options if self.phase == "ptq" else ptq_test_options
        else:
            build = train_options if self.phase == "train" else test_options
        return build(self.family, TASKS[self.task], self.bits, self.method)

    def text(self) -> str:
        """The file."""
        return render(self.options())


def published() -> list[Row]:
    """The committed files."""
    return [Row(*row) for row in PUBLISHED]


def all_methods(family: str) -> list[str]:
    """Every method of a network, with a teacher and without; of SwinIR also with convolutions in full precision."""
    own = list(methods())
    for part in (CONV_FP, DISTILL) if family in WITH_ATTENTION else (DISTILL,):
        own += [f"{part}_{method}" if method else part for method in own]
    return own


def rows(every: bool = False) -> Iterator[Row]:
    """Files of every network and task: full precision, and every width of ``WIDTHS`` by the published method, or by all."""
    for family, task in PAIRS:
        for phase in PHASES:
            yield Row(phase, family, task, 32)
            ways = all_methods(family) if every else ("",)
            yield from (Row(phase, family, task, bits, method) for bits in WIDTHS for method in ways)


def post_training() -> Iterator[Row]:
    """Files of every network and task by the post-training methods, at four and two bits."""
    for family, task in PAIRS:
        for bits in (4, 2):
            for method in ptq_rows(family):
                yield Row("ptq", family, task, bits, method)
                yield Row("test", family, task, bits, method)


def parse(name: str) -> Row:
    """The file that a name stands for.

    Args:
        name: without folder; a ``.yml`` at its end is ignored.

    Raises:
        OptionNameError: there is no such network, task, width or method, or they do not go together.
    """
    name = name.removesuffix(".yml")
    found = _row(name)
    if isinstance(found, Row):
        return found
    known = [row.name for row in (*rows(every=True), *post_training())]
    near = nearest(name, known, cutoff=0.0)
    raise OptionNameError(f"no option file {name!r} can be made: {found}; the nearest is {near[0]}")


def _row(name: str) -> Row | str:
    """The file, or why there is none."""
    match = _NAME.fullmatch(name)
    if match is None:
        return (
            "a name is {train|test}_{network}_{task}, followed for a quantized network by _w4a4 or _w4a4_{method}, or "
            "{ptq|test}_{network}_{task}_w4a4_{post-training method}"
        )
    phase, network, task, weight, act, method = match.groups(default="")
    families = {f"Q{family}" if weight else family: family for family, _ in PAIRS}
    if network not in families:
        return f"network {network!r} is none of {', '.join(families)}"
    family = families[network]
    if (family, task) not in PAIRS:
        return f"task {task!r} is none of {family}'s: {', '.join(t for f, t in PAIRS if f == family)}"
    if phase == "ptq" and method not in PTQ_METHODS:
        return f"post-training method {method!r} is none of {', '.join(PTQ_METHODS)}"
    if not weight:
        return Row(phase, family, task, 32)
    if method in PTQ_METHODS and method not in ptq_rows(family):
        what = "linears" if method == "SPR2Q" else "the modules around scans"
        return f"{method} is of {what}, and {family} has none"
    if method in PTQ_METHODS and phase == "train":
        return f"{method} is a post-training method: its file begins with ptq_"
    known = method in PTQ_METHODS or method in all_methods(family)
    if not known or name.endswith("_") or method.endswith("_"):
        return f"method {method!r} is none of {', '.join(filter(None, all_methods(family)))}"
    bits = int(weight), int(act)
    row = Row(phase, family, task, bits[0] if bits[0] == bits[1] else bits, method)
    return _refused(row) or row


def _refused(row: Row) -> str | None:
    """Why the quantizers cannot have the file's widths, None where they can."""
    from ..quantizers import QuantSpec

    if 32 in (row.bits if isinstance(row.bits, tuple) else (row.bits,)):
        return "32 bits is full precision; leave _w..a.. and the Q out"
    try:
        if row.method in PTQ_METHODS:
            QuantSpec.from_dict(quant_options(row.family, row.bits, row.method))
        else:
            QuantSpec.from_dict(network_options(row.family, TASKS[row.task], row.bits, row.method)["quant"])
    except ValueError as err:
        return str(err).removesuffix(".")
    return None


def how_to_make(path: str | os.PathLike) -> str | None:
    """The command that makes a missing file, None where none does."""
    path = Path(path)
    try:
        name = parse(path.name).name
    except OptionNameError:
        return None
    folder = "" if path.parent == Path("options") else f" --out {path.parent}"
    return f"python -m qmambair_basicsr.tools.make_options {name}{folder}"


def drifted(folder: Path) -> list[str]:
    """Names of committed files that are missing, and of files that differ from the table.

    Files of other names are somebody's own and left alone.
    """
    out = [row.name for row in published() if not (folder / f"{row.name}.yml").is_file()]
    for path in folder.glob("*.yml"):
        try:
            row = parse(path.name)
        except OptionNameError:
            continue
        if path.read_text(encoding="utf-8") != row.text():
            out.append(row.name)
    return sorted(out)
