"""How many kernels the Triton backends of the quantizers launch, and what PyTorch does beside them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from basicsr.archs import build_network
from torch.utils._python_dispatch import TorchDispatchMode

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.ops.dls import DLSItem, dls_together
from qmambair_basicsr.ops.lsq import LSQItem, lsq_together
from qmambair_basicsr.ops.rfa import RFAItem, rfa_together

MEMORY = {
    "empty",
    "new_empty",
    "empty_like",
    "split",
    "split_with_sizes",
    "detach",
    "view",
    "slice",
    "select",
    "unbind",
    "as_strided",
}
W, V = torch.tensor([0.1, 0.4, -0.01, 0.02]), torch.tensor([-1.0, 0.1, 0.0, 0.02])


@pytest.fixture
def launches(use_backend, monkeypatch):
    """Name of a kernel -> launches so far; kernels are counted, not run."""
    use_backend("lsq", "triton")
    if torch.cuda.is_available():
        pytest.skip("counts launches of the interpreter")
    from triton.runtime.interpreter import InterpretedFunction

    found = Counter()
    monkeypatch.setattr(
        InterpretedFunction, "run", lambda this, *_, **__: found.update([this.fn.__qualname__]), raising=True
    )
    return found


class Operators(TorchDispatchMode):
    """Names of the ATen operators that compute something."""

    def __init__(self):
        super().__init__()
        self.found = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name not in MEMORY:
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def leaf(*shape):
    return torch.rand(shape).requires_grad_()


def lsq_item(*shape):
    return LSQItem(leaf(*shape), leaf(1), leaf(1), -8, 7, floor=1e-8, grad_scale=0.1)


def dls_item(*shape):
    return DLSItem(leaf(*shape), W.clone().requires_grad_(), V.clone().requires_grad_(), shape[0], -8, 7, 1 / 16, 0.1)


def rfa_item(*shape):
    thresholds = torch.arange(-8.0, 8.0).requires_grad_()
    return RFAItem(leaf(*shape), leaf(1), leaf(1), thresholds, -8, 1e-8, 0.1, 0.1)


@pytest.mark.parametrize("count", [1, 4, 30])
@pytest.mark.parametrize(
    ("together", "item", "forward", "backward"),
    [
        (lsq_together, lsq_item, {"lsq_forward": 1}, {"lsq_backward": 1}),
        (dls_together, dls_item, {"statistics": 1, "quantize": 1}, {"gradient_sums": 1, "input_gradient": 1}),
        (rfa_together, rfa_item, {"rfa_forward": 1}, {"rfa_backward": 1}),
    ],
    ids=["lsq", "dls", "rfa"],
)
def test_one_launch_for_any_number_of_tensors(together, item, forward, backward, count, launches):
    """One each way (two for DLS, whose values need the statistics first); PyTorch only copies many tensors side by side."""
    items = [item(2, 4 + 4 * i) for i in range(count)]
    times = count if together is lsq_together and count <= 4 else 1  # few activations are never ready together
    first = together(items)  # makes the tables
    torch.autograd.backward(first, [torch.ones_like(out) for out in first])
    for leaf_of in (t for i in items for t in i if isinstance(t, torch.Tensor)):
        leaf_of.grad = None
    launches.clear()
    with Operators() as operators:
        outs = together(items)
    assert launches == {name: n * times for name, n in forward.items()}
    assert set(operators.found) <= (
        {"cat", "zeros"} if count > 4 else {"view_as", "cat"} if item is rfa_item else set()
    )
    assert sum(operators.found.values()) <= 4
    grads = [torch.ones_like(out) for out in outs]
    launches.clear()
    with Operators() as operators:
        torch.autograd.backward(outs, grads)
    assert launches == {name: n * times for name, n in backward.items()}
    # `detach` aside: autograd hands new gradients over as they are
    assert set(operators.found) <= {"cat", "zeros", "clone", "new_empty_strided", "copy_"}


SMALL = {
    "embed_dim": 30,
    "depths": [2],
    "d_state": 3,
    "mlp_ratio": 1.2,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}
QUANT = {kind: {"type": name, "bits": 4} for kind, name in (("weight", "RFA"), ("act", "LSQOffset"), ("scan", "DLS"))}


def test_launches_of_a_training_step(launches):
    """Quantizers of a w4a4 network: one pair of launches for all weights, two for all scan parameters, and what follows."""
    torch.manual_seed(0)
    net = build_network({"type": "QMambaIR", **SMALL, "quant": QUANT})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QMAMBAIR_BACKEND", "reference")
        calibrate(net, [torch.rand(1, 3, 8, 8)])
    launches.clear()
    net.train()(torch.rand(1, 3, 8, 8)).sum().backward()
    blocks, convolutions = 2, 1  # behind each group of blocks
    assert launches["rfa_forward"] == launches["rfa_backward"] == 1
    for name in ("statistics", "quantize", "gradient_sums", "input_gradient"):
        assert launches[name] == 1 + 2 * blocks, name  # scan parameters; the scan's four inputs, the input of out_proj
    # in_proj, depthwise, x_proj, dt_projs, two convolutions and the channel attention's two
    assert launches["lsq_forward"] == launches["lsq_backward"] == 8 * blocks + convolutions
