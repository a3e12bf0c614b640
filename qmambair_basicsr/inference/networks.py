"""Networks for the deployment tools: from an option file and a checkpoint, or from a packed checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from basicsr.archs import build_network
from torch import nn

from ..artifacts.packed import load_packed
from ..checkpoints import load_fp_state, load_state, read_file, select_params
from ..recipes.option_files import read_options


def read_network(opt: str | os.PathLike) -> dict:
    """The ``network_g`` block of an option file.

    Raises:
        OptionFileError: there is no such file or block.
    """
    return read_options(opt, ("network_g",))["network_g"]


def load_network(network: dict, checkpoint: str | os.PathLike, param_key: str | None = "params") -> nn.Module:
    """Build a network and load a BasicSR checkpoint of it, in eval mode."""
    net = build_network(dict(network))
    load_state(net, select_params(read_file(checkpoint), checkpoint, param_key), checkpoint)
    return net.eval()


def load_full_precision(net: nn.Module, checkpoint: str | os.PathLike, param_key: str | None = "params") -> nn.Module:
    """Fill a quantized network's weights from a full-precision checkpoint; its quantizers stay as they were built.

    Args:
        net: quantized (or full-precision) network.
        checkpoint: BasicSR checkpoint (.pth) of the full-precision network.
        param_key: which weights of it; None for a bare state_dict.

    Returns:
        The same object; its quantizers still need calibration.

    Raises:
        CheckpointError: the file cannot be read, has no such weights, or holds other keys or shapes than the network
            without its quantizers. The message names the file; nothing is loaded then.
    """
    load_fp_state(net, select_params(read_file(checkpoint), checkpoint, param_key), checkpoint)
    return net


def is_packed(checkpoint: str | os.PathLike) -> bool:
    """Whether a file name is that of a packed checkpoint."""
    return Path(checkpoint).suffix == ".safetensors"


def network_of(
    opt: str | os.PathLike | None, checkpoint: str | os.PathLike, param_key: str | None = "params"
) -> nn.Module:
    """The network of a checkpoint, in eval mode on the CPU.

    Args:
        opt: option file whose ``network_g`` describes it; not needed for a packed checkpoint.
        checkpoint: BasicSR checkpoint (.pth) or packed one (.safetensors).
        param_key: which weights of a .pth.

    Raises:
        ValueError: a .pth without option file.
    """
    if is_packed(checkpoint):
        return load_packed(checkpoint)
    if not opt:
        raise ValueError(f"-opt is needed to build the network of {checkpoint}")
    return load_network(read_network(opt), checkpoint, param_key)
