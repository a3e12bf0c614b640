"""archs/scan_orders.py against lists that the authors' code made, and what holds for maps of any size."""

from __future__ import annotations

import json

import pytest
import torch

from qmambair_basicsr.archs.scan_orders import eamamba_order, mair_order
from qmambair_basicsr.ops.ss2d_scan import orders, ss2d_scan

CPU = torch.device("cpu")


def golden(shared_dir, name):
    cases = json.loads((shared_dir / "golden" / "backbones" / f"{name}_scan_orders.json").read_text()).values()
    return [case for case in cases if "ids" in case]


def test_mair(shared_dir):
    cases = golden(shared_dir, "mair")
    assert len(cases) >= 14
    for case in cases:
        order = mair_order(case["H"], case["W"], CPU, scan_len=case["scan_len"], shift=case["shift_len"])
        assert order.tolist() == case["ids"], case
        assert order.argsort(1).tolist() == case["inverse"], case


def test_eamamba(shared_dir):
    cases = [case for case in golden(shared_dir, "eamamba") if case["scan_type"] != "zorder"]
    assert len(cases) >= 25
    for case in cases:
        order = eamamba_order(case["H"], case["W"], CPU, scan_type=case["scan_type"], count=case["scan_count"])
        assert order.tolist() == case["ids"], case


SIZES = [(1, 1), (1, 9), (9, 1), (2, 2), (5, 3), (8, 13), (16, 11)]


@pytest.mark.parametrize("size", SIZES)
def test_every_row_is_a_permutation(size):
    made = [mair_order(*size, CPU, scan_len=n, shift=shift) for n in (1, 2, 4, 8) for shift in {0, n // 2}]
    made += [eamamba_order(*size, CPU, scan_type=kind, count=8) for kind in ("diagonal", "zigzag")]
    made.append(eamamba_order(*size, CPU, scan_type=None, count=4))
    for order in made:
        assert orders._fault(order) is None


def test_stripes_by_hand():
    """Two stripes of two columns, down and up in S form; shifted, the first has one column."""
    plain = mair_order(3, 4, CPU, scan_len=2)[0]
    assert plain.tolist() == [0, 1, 5, 4, 8, 9, 10, 11, 7, 6, 2, 3]
    shifted = mair_order(3, 4, CPU, scan_len=2, shift=1)[0]
    assert shifted.tolist() == [0, 4, 8, 9, 10, 6, 5, 1, 2, 3, 7, 11]


def test_orders_are_kept_and_usable_in_training():
    with torch.inference_mode():
        first = mair_order(3, 5, CPU, scan_len=2)
    second = mair_order(3, 5, CPU, scan_len=2)
    assert first is second
    x = torch.rand(1, 3, 5, 2, requires_grad=True)
    maps = torch.rand(1, 3, 5, 4, 2)
    ss2d_scan(x, maps, -torch.ones(4, 2, 2), maps, maps, order=second, merge=False).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("scan_type", "count"), [("zorder", 8), ("spiral", 2), ("diagonal", 1), (None, 8), ("zigzag", 3)]
)
def test_other_scans_are_refused(scan_type, count):
    with pytest.raises(ValueError, match="scan_type must be one of 'diagonal', 'zigzag', None"):
        eamamba_order(3, 5, CPU, scan_type=scan_type, count=count)
