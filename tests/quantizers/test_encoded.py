"""Kinds of codes: how codes become values, and what is stored of them."""

from __future__ import annotations

import itertools

import pytest
import torch

from qmambair_basicsr.layers.convert import FrozenCodes
from qmambair_basicsr.quantizers import (
    QUANTIZER_REGISTRY,
    AffineCodes,
    BinaryOrders,
    QuantizerSpec,
    Site,
    build_quantizer,
)
from qmambair_basicsr.quantizers.encoded import spread


def test_every_sum_of_binary_orders_is_reached_by_its_code():
    alpha, offset = torch.tensor([[4.0], [2.0], [1.0]]), torch.tensor([0.5])
    codes = torch.arange(-4, 4)
    values = BinaryOrders(codes, alpha, offset=offset).values()
    expected = [
        0.5 + 4 * c + 2 * b + a
        for c, b, a in itertools.product((-1, 1), repeat=3)  # the last order changes slowest in the code
    ]
    by_bits = sorted(expected)
    assert sorted(values.tolist()) == by_bits
    assert values[0] == 0.5 - 7 and values[-1] == 0.5 + 7 and values[1] == 0.5 - 7 + 8, "bit 0 is order 0"


def test_two_factors_give_an_order_of_rank_one():
    rows, columns = torch.rand(2, 3, 1), torch.rand(2, 1, 5)
    codes = torch.randint(-2, 2, (3, 5), generator=torch.Generator().manual_seed(0))
    signs = [(((codes + 2) >> k) & 1) * 2.0 - 1 for k in range(2)]
    expected = sum((rows[k] @ columns[k]) * signs[k] for k in range(2))
    torch.testing.assert_close(BinaryOrders(codes, rows, columns).values(), expected)


def test_tables_may_hold_groups_of_columns():
    codes = torch.randint(-8, 8, (4, 10), generator=torch.Generator().manual_seed(0))
    scale, zero = torch.rand(4, 3) + 0.1, torch.rand(4, 3)
    values = AffineCodes(codes, scale, zero).values()
    for column in range(10):
        group = column // 4  # ceil(10 / 3) columns share a scale, the last group has two
        assert torch.equal(values[:, column], (codes[:, column] - zero[:, group]) * scale[:, group])
    assert not AffineCodes(codes, scale, zero).integer_rows()
    assert AffineCodes(codes, scale[:, :1], zero[:, :1]).integer_rows()
    tokens = AffineCodes(codes, torch.rand(4, 1), torch.zeros(4, 1))  # a grid for each token
    assert torch.equal(tokens.values()[2], codes[2] * tokens.scale[2])
    assert spread(scale, (4, 10)).shape == (4, 10) and spread(scale[:, :1], (4, 10)).shape == (4, 1)


@pytest.mark.parametrize(
    "encoded",
    [
        AffineCodes(torch.tensor([[-2, 1]]), torch.tensor(0.5), torch.tensor(0.25)),
        AffineCodes(torch.tensor([[-2, 1]]), torch.tensor(0.5), torch.tensor(0.0), torch.tensor([-0.7, 0.4])),
        BinaryOrders(torch.tensor([[-2, 1]]), torch.tensor([[[0.7]], [[0.2]]]), None, torch.tensor([[0.1]])),
    ],
)
def test_frozen_parameter_keeps_codes_and_tables(encoded):
    frozen = FrozenCodes(2, encoded)
    x = torch.zeros(1, 2)
    assert torch.equal(frozen(x), encoded.values()) and torch.equal(frozen.encode(x).values(), encoded.values())
    assert set(frozen.state_dict()) == {"codes", "initialized", "observed", *encoded.tables()}
    low, high = frozen.encode(x).limits(frozen.qmin, frozen.qmax)
    assert (low <= encoded.values()).all() and (encoded.values() <= high).all()
    assert frozen.double()(x.double()).dtype == torch.float64
    health = frozen.float().health(x)
    assert health["dead_levels"] == 2 and ("scale" in health) == isinstance(encoded, AffineCodes)
    if isinstance(encoded, BinaryOrders):
        with pytest.raises(TypeError, match=r"ask encode\(\)"):
            frozen.to_int(x)
    else:
        assert torch.equal(frozen.to_int(x)[0], encoded.codes)


@pytest.mark.parametrize("name", sorted(set(QUANTIZER_REGISTRY) - {"Identity"}))
def test_codes_and_tables_of_every_quantizer_are_its_output(name):
    quantizer = build_quantizer(QuantizerSpec(name, 4), Site.of_weight(6, shape=(6, 5)))
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    quantizer.init_from(x)
    encoded = quantizer.eval().encode(x)
    assert type(encoded) is quantizer.kind and torch.equal(encoded.values(), quantizer(x))
    assert not encoded.defect(4) and not any(t.requires_grad for t in encoded.tables().values())
