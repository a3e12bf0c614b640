"""QMambaIR: MambaIR with fake-quantized body (Q-MambaIR, section 3; placement in ``layers/prepare.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY

from ..layers import prepare
from ..quantizers import QuantSpec
from .mambair_arch import MambaIR
from .strict import strict_options


@ARCH_REGISTRY.register()
class QMambaIR(MambaIR):
    """The graph of :class:`MambaIR`, then ``prepare``. Keys of the state_dict: MambaIR's and the quantizers'.

    Args:
        quant (Mapping): The ``quant:`` block, see ``quantizers/spec.py``.
        options: The constructor options of :class:`MambaIR`.

    Raises:
        ValueError: An unknown option.
        SpecError: Unknown or impossible settings under ``quant``.
    """

    def __init__(self, quant: Mapping[str, Any], **options: Any):
        spec = QuantSpec.from_dict(quant)
        super().__init__(**options)
        prepare(self, spec)

    __init__ = strict_options(__init__, base=MambaIR.__init__)
