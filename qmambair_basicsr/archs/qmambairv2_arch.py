"""QMambaIRv2 and QMambaIRv2Light: MambaIRv2 with a fake-quantized body.

The Q-MambaIR release holds no MambaIRv2; the placement follows its rule for MambaIR (``layers/prepare.py``): all
convolutions, linears and raw projections of the body, DLS on the seven scan inputs and on the input of ``out_proj``.
C is quantized where the scan reads it, after the prompt was added. Attention products and token routing stay in full
precision unless ``quant: attention`` and ``quant: routing`` say otherwise (SPR2Q, for one, quantizes them too).
"""

from __future__ import annotations

from basicsr.utils.registry import ARCH_REGISTRY

from ..quantizers import Quantizer
from .mambairv2_arch import MambaIRv2, MambaIRv2Light
from .quantized import quantized_form


class _CalibratesOnBatches(MambaIRv2):
    """Quantizers observe a calibration batch as a whole, as they will see training batches."""

    def images_apart(self) -> bool:
        return super().images_apart() and not any(
            isinstance(module, Quantizer) and module.calibrating for module in self.modules()
        )


@ARCH_REGISTRY.register()
@quantized_form(MambaIRv2)
class QMambaIRv2(_CalibratesOnBatches):
    """The graph of :class:`MambaIRv2`, then ``prepare``. Keys of the state_dict: MambaIRv2's and the quantizers'.

    Args:
        quant (Mapping): The ``quant:`` block, see ``quantizers/spec.py``.
        options: The constructor options of :class:`MambaIRv2`.

    Raises:
        ValueError: An unknown option.
        SpecError: Unknown or impossible settings under ``quant``.
    """


@ARCH_REGISTRY.register()
@quantized_form(MambaIRv2Light)
class QMambaIRv2Light(_CalibratesOnBatches, MambaIRv2Light):
    """The graph of :class:`MambaIRv2Light`, then ``prepare``. Arguments and errors as :class:`QMambaIRv2`."""
