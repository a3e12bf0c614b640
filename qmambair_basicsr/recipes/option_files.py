"""Option files as the tools read them: plain data, and one message for everything that is wrong with a file."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import schema
from ..schema import OptionError as OptionFileError

__all__ = ["TEST_KEYS", "OptionFileError", "read_options"]

TEST_KEYS = ("name", "network_g", "datasets", "val")  # of a test option file


def read_options(file: str | os.PathLike, needed: Sequence[str] = (), quantized: bool = False) -> dict:
    """An option file, checked against the schema except for the files that it names.

    Args:
        file: the file.
        needed: keys that must have a value at the top level.
        quantized: whether ``network_g`` must have a ``quant`` block.

    Raises:
        OptionFileError: it cannot be read, lacks what is needed, or has mistakes; all of them are listed.
    """
    read = schema.read_file(file)
    opt = read.data
    absent = [key for key in needed if opt.get(key) is None]
    if absent and not read.problems:
        raise OptionFileError(f"{file} has no {', '.join(absent)}; give a training or test option file")
    network = opt.get("network_g")
    if quantized and isinstance(network, dict) and "quant" not in network:
        raise OptionFileError(f"{file}: network_g has no quant block; give the option file of a quantized network")
    found = [*read.problems, *schema.problems(opt, look_at_files=False)]
    if found:
        raise schema.error(file, found, read.lines)
    return opt
