"""Option files as the tools read them: plain data, and one message for everything that can be wrong with a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import yaml
from basicsr.utils.options import ordered_yaml

TEST_KEYS = ("name", "network_g", "datasets", "val")  # of a test option file


class OptionFileError(ValueError):
    """An option file cannot be read or lacks what a tool needs; the message names the file."""


def _plain(value):
    """Option data without YAML's ordered containers."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _advice(file: str | os.PathLike) -> str:
    from .option_names import how_to_make

    command = how_to_make(file)
    return f"make it: {command}" if command else "give an option file"


def read_options(file: str | os.PathLike, needed: Sequence[str] = (), quantized: bool = False) -> dict:
    """An option file, read with BasicSR's loader.

    Args:
        file: the file.
        needed: keys that must have a value at the top level.
        quantized: whether ``network_g`` must have a ``quant`` block.

    Raises:
        OptionFileError: missing, not YAML, or without something that is needed.
    """
    try:
        opt = yaml.load(Path(file).read_text(encoding="utf-8"), Loader=ordered_yaml()[0])
    except FileNotFoundError:
        raise OptionFileError(f"there is no file {file}; {_advice(file)}") from None
    except OSError as err:
        raise OptionFileError(f"{file} cannot be read ({err.strerror}); give an option file") from err
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise OptionFileError(f"{file} is not valid YAML: {' '.join(str(err).split())}") from err
    if not isinstance(opt, dict):
        raise OptionFileError(f"{file} holds no options; give a training or test option file")
    opt = _plain(opt)
    missing = [key for key in needed if opt.get(key) is None]
    if missing:
        raise OptionFileError(f"{file} has no {', '.join(missing)}; give a training or test option file")
    if quantized and "quant" not in (opt.get("network_g") or {}):
        raise OptionFileError(f"{file}: network_g has no quant block; give the option file of a quantized network")
    return opt
