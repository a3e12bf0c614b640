"""From a file of weights to a network, and to a :class:`Restorer`."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path

import torch
from basicsr.archs import build_network
from torch import Tensor, nn

from ..artifacts.packed import load_packed
from ..checkpoints import CheckpointError, is_packed_file, load_state, read_file, select_params
from ..recipes.option_files import OptionFileError
from .backends import device_of
from .detection import detect
from .networks import read_network
from .restorer import Restorer, bits_of
from .shipped import task_of, weights_of

__all__ = ["network_from", "open_restorer"]

_PREFERRED = ("params_ema", "params")

logger = logging.getLogger(__name__)


def weights_in(path: str | os.PathLike) -> dict[str, Tensor]:
    """The state_dict of a BasicSR checkpoint (averaged weights before the last ones) or of a bare one.

    Raises:
        CheckpointError: the file cannot be read or holds no weights.
    """
    content = read_file(path)
    held = content if isinstance(content, Mapping) else {}
    return select_params(content, path, next((key for key in _PREFERRED if key in held), None))


def network_from(
    path: str | os.PathLike, opt: str | os.PathLike | None = None, bits: tuple[int, int] | None = None
) -> nn.Module:
    """The network of a file of weights, in evaluation on the CPU.

    A packed checkpoint describes itself. A training of BasicSR leaves its option file two folders above its weights, which
    is read. Everything else is found from keys (``detection.py``).

    Args:
        path: packed checkpoint, BasicSR checkpoint or bare state_dict.
        opt: option file whose ``network_g`` describes the network.
        bits: of weights and activations, where the keys of quantizers do not show them.

    Raises:
        CheckpointError, PackedCheckpointError: the file cannot be read, or is of no known network.
        OptionFileError: ``opt`` has no network.
        ValueError: ``opt`` for a file that describes itself, or ``bits`` that the network does not have.
    """
    packed = is_packed_file(path) if Path(path).is_file() else Path(path).suffix == ".safetensors"
    if packed and opt is not None:
        raise ValueError(f"{path} describes its network itself: it is opened without an option file (-opt)")
    net = load_packed(path) if packed else load_unpacked(path, opt, bits)
    if bits is not None and bits_of(net) != tuple(bits):
        has, asked = ("/".join(map(str, pair)) for pair in (bits_of(net), bits))
        raise ValueError(f"{path} is of a network of {has} bits (weights/activations), not of the {asked} asked for")
    return net


def load_unpacked(path: str | os.PathLike, opt: str | os.PathLike | None, bits: tuple[int, int] | None) -> nn.Module:
    """:func:`network_from` for all but packed checkpoints."""
    state = weights_in(path)
    if opt is not None:
        return _loaded(read_network(opt), state, path)
    for beside in sorted(Path(path).absolute().parent.parent.glob("*.yml")):
        try:
            return _loaded(read_network(beside), state, path)
        except (OptionFileError, CheckpointError, ValueError, TypeError, LookupError) as err:
            logger.debug("%s does not describe %s: %s", beside, path, err)
    return _loaded(detect(state, path, bits), state, path)


def _loaded(network: Mapping, state: Mapping[str, Tensor], path: str | os.PathLike) -> nn.Module:
    net = build_network(copy.deepcopy(dict(network)))
    load_state(net, state, path)
    return net.eval()


def open_restorer(
    path: str | os.PathLike,
    backend: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
    half: bool = False,
    opt: str | os.PathLike | None = None,
    bits: tuple[int, int] | None = None,
) -> Restorer:
    """See :func:`qmambair_basicsr.inference.open`."""
    if not isinstance(path, (str, os.PathLike)):
        raise ValueError(f"path: {path!r} is no file of weights and no name of a shipped network")
    if threads is not None and not (isinstance(threads, Integral) and not isinstance(threads, bool) and threads >= 1):
        raise ValueError(f"threads: {threads!r} is no whole number of at least 1")
    if bits is not None and not (isinstance(bits, (tuple, list)) and len(bits) == 2):
        raise ValueError(f"bits: {bits!r} is no pair (of weights, of activations)")
    chosen, file = device_of(device), weights_of(path)
    if threads is not None:
        torch.set_num_threads(int(threads))
    return Restorer(network_from(file, opt, bits), backend, chosen, half, task_of(file))
