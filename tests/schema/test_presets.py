"""``quant: {preset: ..., bits: ...}`` in an option file."""

import pytest

from qmambair_basicsr.schema.registered import Quant


@pytest.mark.parametrize(
    ("quant", "where", "text"),
    [
        ({"preset": "plus", "bits": 2}, None, None),
        ({"preset": "plus", "bits": 2, "scan": {"type": "LSQ", "bits": 4}}, None, None),
        ({"preset": "plos", "bits": 2}, "quant.preset", "did you mean 'plus'"),
        ({"preset": "plus"}, "quant", "no 'bits' given for the preset plus"),
        ({"preset": "plus", "bits": 1}, "quant.bits (preset plus)", "got 1"),
        ({"bits": 2}, "quant", "unknown key 'bits'"),
    ],
)
def test_presets_of_quantizers(quant, where, text):
    found = list(Quant().problems("quant", quant))
    assert [problem.where for problem in found] == ([] if where is None else [where])
    assert where is None or text in found[0].text
