"""The step from a full-precision architecture to its quantized one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from ..layers import prepare
from ..layers.info import TWINS, network_info
from ..quantizers import QuantSpec
from ..strict import strict_options

Quantized = TypeVar("Quantized", bound=type[nn.Module])


def quantized_form(
    base: type[nn.Module], adapt: Callable[[nn.Module], None] | None = None
) -> Callable[[Quantized], Quantized]:
    """Class decorator of the quantized form of an architecture, which is a subclass of it.

    The constructor takes the options of ``base`` and ``quant`` (the ``quant:`` block), builds ``base`` and calls
    ``prepare``. It raises ValueError on an unknown option and SpecError on what is wrong in ``quant``, before anything
    is built.

    Args:
        base (type): Full-precision architecture, registered under its class name; its NetworkInfo is registered too.
        adapt (Callable | None): What a class of another package needs before it can be quantized, in place: its products
            of computed tensors as ``MatMul`` modules. Names of parameters must stay.
    """

    def __init__(self, quant: Mapping[str, Any], **options: Any):
        spec = QuantSpec.from_dict(quant)
        base.__init__(self, **options)
        if adapt is not None:
            adapt(self)
        prepare(self, spec)

    def decorate(cls: Quantized) -> Quantized:
        cls.__init__ = strict_options(__init__, base=base.__init__)
        TWINS[cls.__name__] = base.__name__
        network_info.register(cls)(lambda net: replace(network_info.dispatch(base)(net), twin=base.__name__))
        return cls

    return decorate
