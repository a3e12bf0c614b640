"""window_attention_rounded: every backend that has it against the probabilities quantized in the open, in float64."""

from __future__ import annotations

import pytest
import torch
from devices import device_for
from instruction_sets import with_instruction_sets

from qmambair_basicsr.archs.windows import relative_position_index
from qmambair_basicsr.ops.backend import backends
from qmambair_basicsr.ops.lsq import lsq
from qmambair_basicsr.ops.rounding import Rounding
from qmambair_basicsr.ops.window_attention import MASKED, window_attention
from qmambair_basicsr.ops.window_attention.rounded import rounds, window_attention_rounded
from qmambair_basicsr.quantizers.ste import on_bounds

HAVE = [b.name for b in backends("window_attention") if hasattr(b.module, "rounded_forward")]
BACKENDS = with_instruction_sets(HAVE)
SHAPES = {
    "light": (1, 2, 16, 2, 12),  # batch, windows, window size, heads, channels of a head
    "odd_channels": (3, 5, 4, 3, 7),
    "two_groups": (3, 6, 4, 1, 29),
    "light_small": (2, 3, 4, 2, 12),
    "wide_rows": (1, 1, 16, 2, 5),
}
GRID = ("scale", "offset", "lower", "upper")
ONE = torch.ones(1)
GRIDS = {
    "4_bits": Rounding(0.037 * ONE, -0.3 * ONE, -8, 7, -0.1 * ONE, 1.1 * ONE),
    "1_bit": Rounding(0.31 * ONE, -0.34 * ONE, -1, 0, -0.1 * ONE, 1.1 * ONE),
    "symmetric": Rounding(0.11 * ONE, None, -1, 1),
}


def make(batch, windows, size, heads, dim, masked=True):
    torch.manual_seed(1)
    tokens = size**2
    return {
        "qkv": 1.5 * torch.randn(batch, windows * tokens, 3 * heads * dim),
        "table": torch.randn((2 * size - 1) ** 2, heads),
        "index": relative_position_index(size),
        "order": torch.randperm(windows * tokens).view(windows, tokens),
        "regions": torch.randint(0, 4, (windows, tokens), dtype=torch.int32) if masked else None,
    }


def placed(tensors, device):
    return {name: tensor if tensor is None else tensor.to(device) for name, tensor in tensors.items()}


def in_the_open(qkv, table, index, order, regions, scale, change):
    (batch, _, channels), (windows, tokens), heads = qkv.shape, order.shape, table.shape[1]
    cut = qkv[:, order.flatten()].view(batch, windows, tokens, 3, heads, channels // 3 // heads)
    q, k, v = cut.permute(3, 0, 1, 4, 2, 5)
    logits = (q * scale) @ k.transpose(-2, -1) + table[index].permute(2, 0, 1)
    if regions is not None:
        apart = regions.unsqueeze(2) != regions.unsqueeze(1)
        logits = logits + (apart * MASKED).to(logits.dtype).unsqueeze(1)
    out = (change(logits.softmax(-1)) @ v).transpose(2, 3).reshape(batch, -1, channels // 3)
    return out[:, order.flatten().argsort()]


def evaluate(inputs, rounding, weight, dtype, opened, device="cpu"):
    """Output and gradients by name, how far the nearest probability is from a border of the grid, and what gradients add up to."""
    grid = {n: t for n, t in zip(GRID, rounding.tensors, strict=True) if t is not None}
    leaves = {
        n: t.to(device, dtype).requires_grad_()
        for n, t in {"qkv": inputs["qkv"], "table": inputs["table"], **grid}.items()
    }
    rounding = Rounding(leaves["scale"], leaves.get("offset"), *rounding[2:4], leaves.get("lower"), leaves.get("upper"))
    others = placed({name: inputs[name] for name in ("index", "order", "regions")}, device)
    kept = []

    def change(p):
        y = lsq(p, rounding.scale, rounding.offset, qmin=rounding.qmin, qmax=rounding.qmax)
        y = y if rounding.lower is None else on_bounds(y, p, rounding.lower, rounding.upper)
        kept.extend((p.detach(), y))
        return y

    given = {"qkv": leaves["qkv"], "table": leaves["table"], **others}
    if opened:
        out = in_the_open(**given, scale=0.3, change=change)
    else:
        out = window_attention_rounded(**given, scale=0.3, rounding=rounding)
    wanted = [*leaves.values(), *kept[1:]]
    loss = (out * weight.to(device, dtype)).sum()
    found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    found = [tensor.cpu() for tensor in (out.detach(), *found)]
    return dict(zip(("out", *leaves), found, strict=False)), kept[0].cpu() if kept else None, found[-1]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend, shape, grid, use_backend, nan_memory):
    use_backend("window_attention", backend)
    inputs, rounding = make(*SHAPES[shape], masked=shape != "two_groups"), GRIDS[grid]
    batch, length, channels = inputs["qkv"].shape
    weight = torch.randn(batch, length, channels // 3)
    want, probabilities, through = evaluate(inputs, rounding, weight, torch.float64, True)
    got, *_ = evaluate(inputs, rounding, weight, torch.float32, False, device_for(backend))
    v = probabilities if rounding.offset is None else probabilities + rounding.offset.double()
    v = v / rounding.scale.double()
    borders = torch.arange(rounding.qmin, rounding.qmax + 1).double()
    borders = torch.cat([borders + 0.5, borders[[0, -1]]])
    flips = sum(
        int(((v - border).abs() < 2e-6 * (1 + v.abs())).sum()) for border in borders
    )  # may round to either side
    for name, value in want.items():
        assert got[name].shape == value.shape
        error = (got[name].double() - value).abs().max()
        if name in GRID:
            error = error / (through.abs().sum() + value.abs())
        else:
            error = error / value.abs().max()
        assert error < (1e-5 if not flips else 0.1), (name, flips)
    assert flips <= 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_probabilities_that_vanish_are_on_a_bound_of_zero(backend, use_backend):
    use_backend("window_attention", backend)
    inputs = make(1, 2, 4, 2, 12)
    inputs["qkv"] *= 30
    rounding = Rounding(0.07 * ONE, -0.56 * ONE, -8, 7, 0 * ONE, 1.05 * ONE)
    weight = torch.randn(1, 32, 24)
    got, *_ = evaluate(inputs, rounding, weight, torch.float32, False, device_for(backend))
    want, p, _ = evaluate(inputs, rounding, weight, torch.float32, True)
    assert (p == 0).any()
    torch.testing.assert_close(got["lower"], want["lower"], rtol=1e-3, atol=1e-3)
    assert got["lower"].abs() > 0.1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_fine_grid_changes_nothing(backend, use_backend):
    use_backend("window_attention", backend)
    device = device_for(backend)
    inputs = placed(make(*SHAPES["light_small"]), device)
    rounding = Rounding(1e-6 * ONE.to(device), None, 0, 2**20)
    got = window_attention_rounded(**inputs, scale=0.3, rounding=rounding)
    torch.testing.assert_close(got, window_attention(**inputs, scale=0.3), rtol=0, atol=5e-5)


def test_opcheck():
    inputs = make(1, 1, 4, 1, 2)
    tensors = [inputs["qkv"].requires_grad_(), inputs["table"].requires_grad_(), *list(inputs.values())[2:]]
    grid = [torch.tensor([v], requires_grad=True) for v in (0.05, -0.3, 0.01, 0.6)]
    torch.library.opcheck(torch.ops.qmambair.window_attention_rounded.default, (*tensors, *grid, -8, 7, 0.3))
    torch.library.opcheck(
        torch.ops.qmambair.window_attention_rounded.default, (*tensors, grid[0], None, None, None, 0, 7, 0.3)
    )


def test_what_has_no_kernels_is_refused():
    inputs = make(1, 1, 4, 1, 2)
    assert rounds(inputs["qkv"], 16, 1)
    assert not rounds(inputs["qkv"].double(), 16, 1)
    with pytest.raises(ValueError, match="no kernels round the probabilities"):
        window_attention_rounded(**{**inputs, "qkv": inputs["qkv"].double()}, scale=1.0, rounding=GRIDS["4_bits"])
    with pytest.raises(ValueError, match="scale of the rounding must be one value"):
        window_attention_rounded(**inputs, scale=1.0, rounding=Rounding(torch.ones(2), None, -8, 7))
    inputs["index"] = inputs["index"] + 100
    with pytest.raises(ValueError, match="index"):
        window_attention_rounded(**inputs, scale=1.0, rounding=GRIDS["4_bits"])
