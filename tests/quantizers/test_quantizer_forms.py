"""Grids that quantizers give to integer networks: the same codes and values as their own."""

from __future__ import annotations

import pytest
import torch
from quantizer_cases import CASES, disturb, make, sample, short

from qmambair_basicsr.lowering.grids import Dequantized, DynamicGrid, LoweringError, StaticGrid, grid_of
from qmambair_basicsr.ops.integer import dequantize

WITHOUT = {"RFA", "N2UQ"}
"""Quantizers whose codes have borders of their own."""


@pytest.mark.parametrize(
    ("kind", "bits", "options"), [(k, b, o) for k, b, role, o in CASES if role == "act"], ids=short
)
def test_codes_and_values_are_the_quantizers(kind, bits, options):
    quantizer = make(kind, bits, "act", options, torch.float64)
    x = sample(torch.float64)
    quantizer.init_from(x)
    disturb(quantizer)
    if kind in WITHOUT or (quantizer.dynamic and options.get("mode") == "official"):
        with pytest.raises(LoweringError, match=rf"body\.0\.x: {kind}"):
            grid_of(quantizer, products=False)
        return
    with torch.no_grad():
        for values in (x, 3 * sample(torch.float64, 1), x.abs()):
            grid = grid_of(quantizer, products=False)
            assert isinstance(grid, DynamicGrid if quantizer.dynamic else StaticGrid)
            codes = grid(values)
            wanted = quantizer.to_int(values)[0]
            assert torch.equal(codes.data.to(torch.int32), wanted)
            assert codes.data.int().abs().amax() <= codes.bound
            torch.testing.assert_close(dequantize(codes), quantizer(values), rtol=1e-14, atol=1e-14)
    if getattr(quantizer, "groups", 1) > 1:
        grid = grid_of(quantizer, products=True)  # codes cannot be summed up, values can
        assert isinstance(grid, Dequantized)
        torch.testing.assert_close(grid(x), quantizer(x), rtol=1e-14, atol=1e-14)
