"""Which network a state_dict belongs to, from its keys and shapes.

Every architecture has a rule that reads its constructor options from keys (``layers/detection.py``). Each description that
a rule makes is built without memory (torch's meta device) and kept only if the network has exactly the keys and shapes of
the file; keys of quantizers on top of a full-precision network lead to its quantized form (``quantizer_detection.py``).
"""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from basicsr.archs import build_network
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from ..checkpoints import CheckpointError
from ..constants import constants_of
from ..layers.declared import rotations_in
from ..layers.detection import RULES, Keys
from ..layers.info import TWINS
from .quantizer_detection import UnknownBitsError, quant_blocks

__all__ = ["UnknownNetworkError", "detect"]

# few layers have the key patterns of many
_SHALLOW = {"num_blocks": [1] * 4, "num_refinement_blocks": 1, "depths": [2], "num_heads": [2], "num_block": 1}
_SHALLOW |= {"num_in_ch": 3, "num_out_ch": 3, "embed_dim": 32, "dim": 32}
_SHOWN = 4  # keys named in a message


class UnknownNetworkError(CheckpointError):
    """A file belongs to no network that this package knows; the message names the nearest."""


def detect(state: Mapping[str, Tensor], path: str | Path = "(in memory)", bits: tuple[int, int] | None = None) -> dict:
    """The ``network_g`` block of a state_dict.

    Args:
        state: names to tensors.
        path: where it came from: for messages, and its ``w4a4`` says the bits where keys do not.
        bits: of weights and activations, where keys do not say them.

    Returns:
        ``type`` and constructor keys; the network that it builds has exactly the keys and shapes of ``state``.

    Raises:
        UnknownNetworkError: no registered network has them.
        UnknownBitsError: the quantizers are known, but not how many bits they have.
    """
    keys = Keys({name: tuple(tensor.shape) for name, tensor in state.items()})
    turned, rotations = rotations_in(state)
    unknown_bits: UnknownBitsError | None = None
    for block, net in _full_precision(keys):
        extra = keys.keys() - net.state_dict().keys()
        if not extra:
            return block
        for twin in (name for name, base in TWINS.items() if base == block["type"]):
            try:
                for quant in quant_blocks(twin, block, keys, extra - turned, path, bits):
                    quant |= {"transforms": rotations} if rotations else {}
                    described = {**block, "type": twin, "quant": quant}
                    if _fits(described, keys):
                        return described
            except UnknownBitsError as err:
                unknown_bits = err
    if unknown_bits is not None:
        raise unknown_bits
    raise UnknownNetworkError(f"{path} is of no network that is known here: {_nearest(keys)}")


def _full_precision(keys: Keys) -> Iterator[tuple[dict, nn.Module]]:
    """Full-precision networks all of whose keys are there, with their shapes; fewer unexplained keys first."""
    found = []
    for name, rule in RULES.items():
        try:
            choices = rule(keys)
        except (KeyError, StopIteration, IndexError, ValueError, ZeroDivisionError):
            continue
        for options in choices if isinstance(choices, list) else [choices]:
            block = {"type": name, **options}
            net = _built(block)
            if net is not None and not _misfits(net, keys):
                found.append((len(keys) - len(net.state_dict()), block, net))
    for _, block, net in sorted(found, key=lambda entry: entry[0]):
        yield block, net


def _built(block: Mapping) -> nn.Module | None:
    """The network of a block, without memory; None where there is none with these options."""
    try:
        with torch.device("meta"):
            return build_network(copy.deepcopy(dict(block)))
    except (ValueError, TypeError, RuntimeError, ArithmeticError, AssertionError, LookupError):
        return None


def _misfits(net: nn.Module, keys: Keys) -> list[str]:
    """Keys of a network that are not there, or have another shape; constants that it computes may be left out."""
    constant = constants_of(net)
    return [
        name
        for name, tensor in net.state_dict().items()
        if (name not in keys and name not in constant) or (name in keys and keys[name] != tuple(tensor.shape))
    ]


def _fits(block: Mapping, keys: Keys) -> bool:
    net = _built(block)
    return net is not None and not _misfits(net, keys) and keys.keys() <= net.state_dict().keys()


def _pattern(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _nearest(keys: Keys) -> str:
    """What the nearest network has otherwise."""
    given = {_pattern(name) for name in keys}
    best: tuple[float, str, set[str]] | None = None
    for name in RULES:
        known = inspect.signature(ARCH_REGISTRY.get(name)).parameters
        options = {key: value for key, value in _SHALLOW.items() if key in known}
        net = _built({"type": name, **options})
        if net is None:
            continue
        own = {_pattern(key) for key in net.state_dict()}
        share = len(own & given) / len(own | given)
        if best is None or share > best[0]:
            best = share, name, own
    if best is None or best[0] == 0:
        return f"its keys ({', '.join(sorted(given)[:_SHOWN])} ...) resemble those of none"
    share, name, own = best
    text = f"nearest is {name}, with {100 * share:.0f} % of the key patterns in common"
    for what, names in (("it lacks", own - given), ("it has besides", given - own)):
        if names:
            text += f"; {what} {', '.join(sorted(names)[:_SHOWN])}" + (" ..." if len(names) > _SHOWN else "")
    if own == given:
        text += "; only shapes or numbers of layers fit no options of it"
    return text
