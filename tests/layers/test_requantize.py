"""Quantized activations that are computed again in the backward pass: the same bits, and the memory of full precision."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from basicsr.archs import build_network

from qmambair_basicsr.layers.requantize import requantize
from qmambair_basicsr.ops.again import not_kept
from qmambair_basicsr.ops.dls import dls
from qmambair_basicsr.ops.lsq import lsq

SMALL = {
    "embed_dim": 30,
    "depths": [2],
    "d_state": 10,
    "mlp_ratio": 1.2,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}
KINDS = {"weight": "RFA", "act": "LSQOffset", "scan": "DLS"}
QUANT = {site: {"type": kind, "bits": 4} for site, kind in KINDS.items()}


def network(kind, **quant):
    torch.manual_seed(0)
    net = build_network({"type": kind, **SMALL, **quant}).train()
    net(torch.rand(2, 3, 32, 32))
    return net


def step(net, x):
    net.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    out = net(x)
    out.square().mean().backward()
    return out.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def kept_bytes(net, x, monkeypatch):
    """Memory that autograd holds between the passes, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in net.parameters()}
    kept, storages, hooks = [], {}, torch.autograd.graph.saved_tensors_hooks

    def counting(pack):
        def count(t):
            packed = pack(t)
            kept.append((packed, t if packed is t else None))  # nothing is freed, so no address is seen twice
            for tensor in (packed,) if isinstance(packed, torch.Tensor) else packed[0].item:
                if isinstance(tensor, torch.Tensor):
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
            return packed

        return count

    with monkeypatch.context() as patch:
        patch.setattr(torch.autograd.graph, "saved_tensors_hooks", lambda pack, unpack: hooks(counting(pack), unpack))
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            net(x)
    return sum(size for address, size in storages.items() if address not in own)


def test_bytes_of_a_step(monkeypatch):
    """Quantizers cost 1.7 times the memory of full precision, and nearly nothing where results are not kept."""
    x = torch.rand(2, 3, 32, 32)
    plain = kept_bytes(network("MambaIR"), x, monkeypatch)
    net = network("QMambaIR", quant=QUANT)
    assert kept_bytes(net, x, monkeypatch) > 1.5 * plain
    requantize(net)
    assert kept_bytes(net, x, monkeypatch) < 1.1 * plain


@pytest.mark.parametrize(
    "kinds", [{}, {"act": "DLS"}, {"act": "PAMS", "scan": "MinMax"}, {"weight": "LSQ", "act": "QuantSR"}], ids=str
)
def test_the_same_bits(kinds):
    net = network("QMambaIR", quant={site: {"type": kind, "bits": 4} for site, kind in (KINDS | kinds).items()})
    x = torch.rand(2, 3, 8, 8)
    out, gradients = step(net, x)
    requantize(net)
    for again in (net, copy.deepcopy(net)):
        got, found = step(again, x)
        assert torch.equal(got, out)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("quantize", ["lsq", "dls"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_views_and_graphs_that_are_used_twice(quantize, dtype):
    x, w = torch.randn(6, 8, dtype=dtype, requires_grad=True), torch.randn(4, 3, dtype=dtype, requires_grad=True)
    scale, four = torch.tensor([0.3], requires_grad=True), torch.tensor([0.1, 0.4, 0.0, 0.0], requires_grad=True)

    def loss():
        q = (
            lsq(x, scale, qmin=-8, qmax=7)
            if quantize == "lsq"
            else dls(x, four, -four, qmin=-8, qmax=7, cap_share=0.1)[0]
        )
        return F.linear(q.t().reshape(12, 4)[:, 1:], w).square().sum()

    leaves = [x, w, scale if quantize == "lsq" else four]
    want = torch.autograd.grad(loss(), leaves)
    with not_kept():
        total = loss()
    for _ in range(2):
        for got, expected in zip(torch.autograd.grad(total, leaves, retain_graph=True), want, strict=True):
            assert torch.equal(got, expected)


def test_a_result_that_was_written_to_is_kept():
    x, w = torch.randn(5, 4, requires_grad=True), torch.randn(4, requires_grad=True)

    def loss():
        return (lsq(x, torch.ones(1), qmin=-8, qmax=7).mul_(2.0) * w).sum()

    want = torch.autograd.grad(loss(), (x, w))
    with not_kept():
        total = loss()
    for got, expected in zip(torch.autograd.grad(total, (x, w)), want, strict=True):
        assert torch.equal(got, expected)


def test_memory_that_others_got_later_is_theirs():
    w = torch.randn(64, requires_grad=True)
    with not_kept():
        for _ in range(20):  # the address of a result that is gone
            lsq(torch.randn(64), torch.ones(1), qmin=-8, qmax=7)
            other = torch.randn(64)
            assert torch.equal(torch.autograd.grad((w * other).sum(), w)[0], other)


def test_evaluation_and_errors_leave_nothing_behind():
    net = network("QMambaIR", quant=QUANT)
    requantize(net)
    with pytest.raises(ValueError, match="expected an input"):
        net(torch.rand(2, 5, 8, 8))
    x = torch.rand(1, 3, 8, 8)
    before = net.eval()(x)
    assert torch.equal(net(x), before)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        (x.requires_grad_() ** 2).sum()
    assert kept


def test_a_network_without_quantizers_is_named():
    with pytest.raises(ValueError, match="MambaIR has no quantizers"):
        requantize(build_network({"type": "MambaIR", **SMALL}))
