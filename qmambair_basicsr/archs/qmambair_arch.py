"""QMambaIR: MambaIR with fake-quantized body (Q-MambaIR, section 3; placement in ``layers/prepare.py``)."""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY

from .mambair_arch import MambaIR
from .quantized import quantized_form


@ARCH_REGISTRY.register()
@quantized_form(MambaIR)
class QMambaIR(MambaIR):
    """The graph of :class:`MambaIR`, then ``prepare``. Keys of the state_dict: MambaIR's and the quantizers'.

    Args:
        quant (Mapping): The ``quant:`` block, see ``quantizers/spec.py``.
        options: The constructor options of :class:`MambaIR`.

    Raises:
        ValueError: An unknown option.
        SpecError: Unknown or impossible settings under ``quant``.
    """
