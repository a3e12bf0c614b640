"""Many tensors in one call of a quantizer's operator: the bits of one call each, forward and backward."""

from __future__ import annotations

import importlib

import pytest
import torch
from devices import device_for
from instruction_sets import with_instruction_sets

from qmambair_basicsr.ops.dls import DLSItem, dls_together
from qmambair_basicsr.ops.lsq import LSQItem, lsq_together
from qmambair_basicsr.ops.rfa import RFAItem, rfa_together

CASES = [
    (op, backend)
    for op in ("lsq", "dls", "rfa")
    for backend in with_instruction_sets(importlib.import_module(f"qmambair_basicsr.ops.{op}").BACKENDS)
]


def channels_last(*shape):
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def lsq_items(large):
    scales = (torch.tensor([0.3]), torch.tensor([-0.2]), torch.tensor([0.0]), torch.rand(5) + 0.1, torch.rand(4) + 0.1)
    shapes = (torch.randn(1), channels_last(2, 3, 4, 5), torch.randn(7, 9), torch.randn(5, large), torch.randn(3, 4, 2))
    dims, offsets = (
        (None, None, None, 0, 1),
        (None, torch.tensor([0.1]), torch.zeros(1), torch.randn(5), torch.zeros(1)),
    )
    for i, (x, scale, offset, dim) in enumerate(zip(shapes, scales, offsets, dims, strict=True)):
        yield LSQItem(x, scale, offset, -8 >> i % 3, (8 >> i % 3) - 1, dim, None if i == 0 else 0.05, 0.37)


def dls_items(large):
    w, v = torch.tensor([0.1, 0.4, -0.01, 0.02]), torch.tensor([-1.0, 0.1, 0.0, 0.02])
    for i, (x, rows) in enumerate(
        [(torch.randn(3, large), 3), (channels_last(2, 3, 5, 7), 2), (torch.rand(4, 6), 1), (-torch.rand(1, 1), 1)]
    ):
        yield DLSItem(x, w * (1 + 0.1 * i), v.clone(), rows, -8, 7, 1 / 16, 0.2)


def rfa_items(large):
    for i, (shape, bits) in enumerate([((3, large), 4), ((1,), 2), ((5, 4, 3, 3), 3), ((40,), 4), ((6, 6), 2)]):
        thresholds = torch.arange(-(2.0 ** (bits - 1)), 2.0 ** (bits - 1))
        if i in (0, 3):
            thresholds[[1, 2]] = thresholds[[2, 1]]  # crossed
        scale = torch.tensor([-0.3 if i == 2 else 0.2])
        gap = 0.1 if i != 1 else None
        yield RFAItem(torch.randn(shape), scale, torch.tensor([0.05]), thresholds, -(2 ** (bits - 1)), 1e-8, 0.4, gap)


OPERATORS = {
    "lsq": (lsq_items, lsq_together, 3),
    "dls": (dls_items, dls_together, 3),
    "rfa": (rfa_items, rfa_together, 4),
}


def run(items, function, tensors, device, unused, one_by_one):
    """Results and gradients of all tensors of all items; nobody uses the result of item ``unused``."""
    leaves, given = [], []
    for item in items:
        own = [None if t is None else t.detach().clone().to(device).requires_grad_() for t in item[:tensors]]
        leaves.append(own)
        given.append(type(item)(*own, *item[tensors:]))
    outs = [function([item])[0] for item in given] if one_by_one else function(given)
    torch.manual_seed(5)
    loss = sum((out * torch.randn(out.shape).to(out)).sum() for i, out in enumerate(outs) if i != unused)
    loss.backward()
    return [o.detach() for o in outs], [[None if t is None else t.grad for t in own] for own in leaves]


@pytest.mark.parametrize("repeated", [1, 3])  # few items, and so many that they share an allocation
@pytest.mark.parametrize(("op", "backend"), CASES)
def test_the_bits_of_one_call_each(op, backend, repeated, use_backend, nan_memory):
    use_backend(op, backend)
    torch.manual_seed(2)
    make, function, tensors = OPERATORS[op]
    items = [item for _ in range(repeated) for item in make(40 if backend == "triton" else 17000)]
    device = device_for(backend)
    unused = 1
    outs, gradients = run(items, function, tensors, device, unused, one_by_one=False)
    alone, expected = run(items, function, tensors, device, unused, one_by_one=True)
    for i, item in enumerate(items):
        assert torch.equal(outs[i], alone[i]), item
        assert outs[i].stride() == item[0].stride()
        for got, want in zip(gradients[i], expected[i], strict=True):
            assert (got is None) is (want is None)
            assert got is None or torch.equal(got, want), (i, got, want)
    assert all(g is None for g in gradients[unused])


def test_half_and_single_precision_in_one_call():
    items = [LSQItem(torch.randn(50).to(t), torch.tensor([0.1]), None, -8, 7) for t in (torch.float16, torch.float32)]
    outs = lsq_together(items)
    assert [o.dtype for o in outs] == [torch.float16, torch.float32]
    for item, out in zip(items, outs, strict=True):
        assert torch.equal(out, lsq_together([item])[0])
