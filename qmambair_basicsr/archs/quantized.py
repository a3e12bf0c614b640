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
    is built. The class gets a static method ``before_prepare``, which takes the options of ``base`` and returns the
    full-precision network as ``prepare`` sees it, with all of its sites.

    Args:
        base (type): Full-precision architecture, registered under its class name; its NetworkInfo is registered too.
        adapt (Callable | None): What a class of another package needs before it can be quantized, in place: its products
            of computed tensors as ``MatMul`` modules. Names of parameters must stay.
    """

    def before_prepare(**options: Any) -> nn.Module:
        net = base(**options)
        if adapt is not None:
            adapt(net)
        return net

    def __init__(self, quant: Mapping[str, Any], **options: Any):
        spec = QuantSpec.from_dict(quant)
        base.__init__(self, **options)
        if adapt is not None:
            adapt(self)
        prepare(self, spec)

    def decorate(cls: Quantized) -> Quantized:
        cls.__init__ = strict_options(__init__, base=base.__init__)
        cls.before_prepare = staticmethod(before_prepare)
        TWINS[cls.__name__] = base.__name__
        network_info.register(cls)(lambda net: replace(network_info.dispatch(base)(net), twin=base.__name__))
        return cls

    return decorate
