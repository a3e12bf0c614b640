"""What a quantized architecture adds to its full-precision one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..layers import prepare
from ..quantizers import QuantSpec
from ..strict import strict_options


def quantized_init(base: type) -> Callable:
    """The ``__init__`` of a quantized architecture: the options of ``base`` and ``quant``, then ``prepare``.

    Args:
        base (type): Full-precision architecture that the quantized one is derived from.

    Returns:
        Callable: A constructor that raises ValueError on an unknown option and SpecError on what is wrong in ``quant``,
        before anything is built.
    """

    def __init__(self, quant: Mapping[str, Any], **options: Any):
        spec = QuantSpec.from_dict(quant)
        base.__init__(self, **options)
        prepare(self, spec)

    return strict_options(__init__, base=base.__init__)
