"""QMambaIR: MambaIR with fake-quantized body (Q-MambaIR, section 3; placement in ``layers/prepare.py``)."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY

from .mambair_arch import MambaIR
from .quantized import quantized_init


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

    __init__ = quantized_init(MambaIR)
