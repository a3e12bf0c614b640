"""The README of the quantizers names what exists, and its example works as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import qmambair_basicsr.quantizers as package
from qmambair_basicsr.quantizers import QUANTIZER_REGISTRY, registry
from qmambair_basicsr.quantizers.affine import AffineQuantizer
from qmambair_basicsr.quantizers.site import ACTIVATION
from qmambair_basicsr.quantizers.ste import positive

TEXT = (Path(package.__file__).parent / "README.md").read_text(encoding="utf-8")
ROWS = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", TEXT, re.MULTILINE)}


@pytest.mark.parametrize("kind", QUANTIZER_REGISTRY)
def test_table_row(kind):
    cls = QUANTIZER_REGISTRY[kind]
    low, high = min(cls.bit_widths), max(cls.bit_widths)
    assert f"| {low if low == high else f'{low}-{high}'} |" in ROWS[kind]
    for key, option in cls.options.items():
        assert f"`{key}" in ROWS[kind], key
        for inner in option.keys or ():
            assert inner in ROWS[kind], inner
    assert set(ROWS) == set(QUANTIZER_REGISTRY)


def test_the_example_is_a_working_quantizer(monkeypatch):
    source = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    source = "\n".join(line[3:] for line in source.splitlines())
    names = {"AffineQuantizer": AffineQuantizer, "nn": nn, "torch": torch, "positive": positive}
    names |= {"ACTIVATION": ACTIVATION, "register_quantizer": registry.register_quantizer}
    monkeypatch.setattr(registry, "QUANTIZER_REGISTRY", {})
    exec(source, names)
    assert {"AbsMax": names["AbsMax"]} == registry.QUANTIZER_REGISTRY
    quantizer = names["AbsMax"](4)
    x = torch.randn(2, 50)
    quantizer.init_from(x)
    codes, scale, zero = quantizer.to_int(x)
    assert torch.equal((codes - zero) * scale, quantizer(x))
    assert (quantizer(x) - x).abs().max() <= scale / 2 * 1.0001
