"""The contract of a post-training method, its registry, and what must hold when it is done."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..layers.convert import require_quantized
from ..layers.declared import Hadamard
from ..layers.sites import network_sites
from ..layers.transforms import transforms_of
from ..quantizers.spec import Option, SpecError, refuse
from ..strict import is_one_of, unknown

PTQ_METHODS: dict[str, type[PTQMethod]] = {}
"""Name in option files (``type``) -> class."""

Registered = TypeVar("Registered", bound="type[PTQMethod]")


class PTQMethod:
    """Base class: the options of a method, and :meth:`apply`.

    Args:
        options: values for some of the declared options.

    Attributes:
        trains: whether it has iterations (:class:`~.training.TrainedMethod`).
        options: name -> :class:`Option`; declared by the subclass, checked by :func:`build_method`.
        settings: name -> value, defaults filled in.
        within: prefixes of the places and sites that it may change (``within.py``); everything as long as nobody sets it.
    """

    trains: ClassVar[bool] = False
    options: ClassVar[Mapping[str, Option]] = {}

    def __init__(self, **options: Any) -> None:
        self.settings = {name: options.get(name, option.default) for name, option in self.options.items()}
        self.within: tuple[str, ...] = ("",)

    @property
    def confined(self) -> bool:
        """Whether it may change a part of a network alone."""
        return self.within != ("",)

    def reaches(self, name: str) -> bool:
        """Whether a place, or the layer or part of a site, lies within what the method may change."""
        return name.startswith(self.within)

    def apply(self, net: nn.Module, batches: Sequence[Tensor]) -> None:
        """Choose the state of all quantizers, and the parameters, of a network, in place.

        What it attaches (transforms) it also merges: the network that it leaves is an ordinary quantized one.

        Args:
            net: made by ``prepare`` from the ``quant:`` block, with full-precision weights, in evaluation.
            batches: calibration images, (B, C, H, W) each; may be gone through several times.
        """
        raise NotImplementedError


def register_method(cls: Registered) -> Registered:
    """Class decorator: make a method available under its class name.

    Raises:
        ValueError: another method has the name.
    """
    if cls.__name__ in PTQ_METHODS:
        raise ValueError(
            f"a post-training method called {cls.__name__} is registered already ({PTQ_METHODS[cls.__name__]})"
        )
    PTQ_METHODS[cls.__name__] = cls
    return cls


def build_method(config: Mapping[str, Any], where: str = "ptq") -> PTQMethod:
    """The method that ``{type: NAME, <options>}`` describes.

    Args:
        config: plain data.
        where: the key's path, for messages.

    Raises:
        SpecError: an unknown method, option or value; all mistakes at once.
    """
    if not isinstance(config, Mapping) or "type" not in config:
        raise SpecError(f"{where}: expected a mapping with 'type', got {config!r}.")
    options = dict(config)
    kind = options.pop("type")
    if not is_one_of(kind, PTQ_METHODS):
        raise SpecError(unknown(f"{where}.type", "post-training method", kind, PTQ_METHODS))
    known = PTQ_METHODS[kind].options
    mistakes = []
    for key, value in options.items():
        if key not in known:
            mistakes.append(unknown(where, f"key for {kind}", key, ["type", *known]))
        else:
            mistakes += known[key].mistakes(value, f"{where}.{key}")
    refuse(mistakes)
    return PTQ_METHODS[kind](**options)


def quantize(
    net: nn.Module,
    method: PTQMethod,
    batches: Sequence[Tensor],
    iterations: int | None = None,
    report: Callable[[int, int, dict[str, float]], None] | None = None,
) -> nn.Module:
    """Apply a method, and see that it left an ordinary quantized network.

    Args:
        net: as for :meth:`PTQMethod.apply`; changed in place.
        method: from :func:`build_method`.
        batches: at least one.
        iterations: of a method that trains; None for its default.
        report: called after each of them with its number, how many there are, and the losses.

    Returns:
        The same object, in evaluation: its ``state_dict`` loads into a network built from the same ``quant:`` block.

    Raises:
        ValueError: no batch, iterations for a method that has none, a network without quantizers, or state that such a
            network does not have.
        UncalibratedError: a quantizer that the method left out.
    """
    if iterations is not None and not method.trains:
        raise ValueError(f"{type(method).__name__} does not train; leave iterations out")
    if not len(batches):
        raise ValueError(f"{type(method).__name__}: there was no batch; give at least one")
    before = {key: tensor.shape for key, tensor in net.eval().state_dict().items()}
    if method.trains:
        method.apply(net, batches, iterations, report)
    else:
        method.apply(net, batches)
    require_ordinary(net, type(method).__name__, before)
    return net


def require_no_transforms(net: nn.Module, method: PTQMethod) -> None:
    """See that a method which attaches and merges transforms begins with a network that has none.

    Raises:
        SpecError: it has rotations by its ``quant:`` block.
    """
    if transforms_of(net):
        raise SpecError(
            f"{type(method).__name__} has transforms of its own, which do not go with `quant: transforms:`; leave these "
            "out, or take a method without (MinMax, Percentile, TwoDQuant, BRECQ)"
        )


def require_ordinary(net: nn.Module, method: str, before: Mapping[str, torch.Size]) -> None:
    """See that a method left an ordinary quantized network.

    Args:
        net: what it left.
        method: its name, for messages.
        before: shapes in the network's ``state_dict`` before.

    Raises:
        ValueError: state or transforms that such a network does not have; rotations of its settings are part of it.
        SpecError: all quantizers have 32 bits.
        UncalibratedError: a quantizer that the method left out.
    """
    left = [name for name, transform in transforms_of(net).items() if not isinstance(transform, Hadamard)]
    if left:
        raise ValueError(f"{method} left a transform at {left[0]}; merge it (layers/merging.py)")
    if any(transform.folded for transform in transforms_of(net).values()):
        raise ValueError(
            f"{method} has merged the rotations of `quant: transforms:` into the weights, which a checkpoint cannot say; "
            "leave them out, or take a method without transforms of its own (MinMax, Percentile)"
        )
    require_quantized(net)
    if not any(placed.quantizer.bits != 32 for placed in network_sites(net)):
        raise SpecError(f"{method} has nothing to quantize: everything that quant: names has 32 bits")
    after = {key: tensor.shape for key, tensor in net.eval().state_dict().items()}
    if after != before:
        changed = sorted(set(before.items()) ^ set(after.items()))
        raise ValueError(f"{method} changed what a checkpoint holds, first {changed[0][0]}")
