"""From a fake-quantized network to an integer network that runs in eager PyTorch, without onnx.

Everything executable is made from it: an ONNX file is the lowered network, traced inside ``ops.backend.exporting()``.
"""

from .capture import captured_codes
from .grids import LoweringError
from .network import frozen_copy, lower

__all__ = ["LoweringError", "captured_codes", "frozen_copy", "lower"]
