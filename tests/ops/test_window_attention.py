"""window_attention: every backend against the float64 reference, the reference against its formula."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from devices import device_for
from instruction_sets import with_instruction_sets

from qmambair_basicsr.archs.windows import relative_position_index, window_plan
from qmambair_basicsr.ops.backend import backends
from qmambair_basicsr.ops.window_attention import MASKED, is_fused, reference, window_attention, window_attention_into

BACKENDS = with_instruction_sets([b.name for b in backends("window_attention")])

# (batch, windows, window size, heads, channels of a head)
SHAPES = {
    "light": (2, 4, 16, 4, 12),
    "one_window": (1, 1, 4, 2, 12),
    "odd_channels": (3, 5, 4, 3, 7),
    "two_groups": (3, 6, 4, 1, 29),
    "one_channel": (1, 2, 8, 2, 1),
    "wide_head": (1, 3, 8, 1, 40),
    "wide_rows": (1, 1, 16, 2, 5),
    "light_small": (2, 3, 4, 2, 12),
}


@pytest.fixture(autouse=True)
def _where_the_kernels_run(request):
    """Tensors of tests of the Triton kernels are made on a GPU, where there is one."""
    parameters = getattr(request.node, "callspec", None)
    device = device_for("native" if parameters is None else parameters.params.get("backend", "native"))
    with nullcontext() if device == "cpu" else torch.device(device):
        yield


def make(batch, windows, size, heads, dim, masked=True, spread=1.0):
    tokens = size**2
    return {
        "qkv": spread * torch.randn(batch, windows * tokens, 3 * heads * dim),
        "table": torch.randn((2 * size - 1) ** 2, heads),
        "index": relative_position_index(size),
        "order": torch.randperm(windows * tokens).view(windows, tokens),
        "regions": torch.randint(0, 4, (windows, tokens), dtype=torch.int32) if masked else None,
    }


def evaluate(inputs, weight, dtype=torch.float32, scale=0.3):
    """Output and gradients of qkv and table for the loss sum(out * weight)."""
    leaves = {name: inputs[name].detach().to(dtype).requires_grad_() for name in ("qkv", "table")}
    out = window_attention(**{**inputs, **leaves}, scale=scale)
    grads = torch.autograd.grad((out * weight.to(dtype)).sum(), list(leaves.values()))
    return out.detach(), *grads


def check(inputs):
    batch, length, channels = inputs["qkv"].shape
    weight = torch.randn(batch, length, channels // 3)
    want = evaluate(inputs, weight, torch.float64)
    for name, a, b in zip(("out", "qkv", "table"), evaluate(inputs, weight), want, strict=True):
        assert a.shape == b.shape
        assert (a - b).abs().max() <= 1e-5 * b.abs().max(), name


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_parity(backend, shape, masked, use_backend, nan_memory):
    use_backend("window_attention", backend)
    check(make(*SHAPES[shape], masked=masked))


def test_reference_is_the_formula():
    inputs = make(2, 3, 4, 2, 3)
    qkv, table = inputs["qkv"].double(), inputs["table"].double()
    got = window_attention(**{**inputs, "qkv": qkv, "table": table}, scale=0.5)
    for image in range(2):
        for positions, regions in zip(inputs["order"], inputs["regions"], strict=True):
            q, k, v = qkv[image, positions].view(16, 3, 2, 3).permute(1, 2, 0, 3)
            for head in range(2):
                logits = 0.5 * q[head] @ k[head].T + table[inputs["index"], head]
                logits += MASKED * (regions[:, None] != regions)
                want = logits.softmax(-1) @ v[head]
                torch.testing.assert_close(got[image, positions, 3 * head : 3 * head + 3], want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_far_apart(backend, use_backend):
    use_backend("window_attention", backend)
    inputs = make(1, 2, 4, 2, 12, spread=30.0)  # logits of several hundreds: most probabilities vanish
    weight = torch.randn(1, 32, 24)
    want = evaluate(inputs, weight, torch.float64)
    for a, b in zip(evaluate(inputs, weight), want, strict=True):
        assert a.isfinite().all()
        assert (a - b).abs().max() <= 1e-3 * b.abs().max()  # float32 products of that size are off by 1e-4


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_inputs_give_nan_where_they_are_seen(backend, value, use_backend):
    use_backend("window_attention", backend)
    inputs = make(1, 2, 4, 2, 3, masked=False)
    inputs["qkv"][0, inputs["order"][1, 5], 0] = value  # a query of window 1, head 0
    out = window_attention(**inputs, scale=1.0)
    seen = torch.zeros_like(out, dtype=torch.bool)
    seen[0, inputs["order"][1, 5], :3] = True
    assert torch.equal(out.isnan(), seen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_views_are_read_in_place(backend, use_backend):
    use_backend("window_attention", backend)
    inputs = make(2, 2, 4, 2, 3)
    wide = torch.randn(2, 32, 40)
    wide[..., 7:25] = inputs["qkv"]
    got = window_attention(**{**inputs, "qkv": wide[..., 7:25]}, scale=0.3)
    torch.testing.assert_close(got, window_attention(**inputs, scale=0.3), rtol=0, atol=0)


def test_an_image_has_the_same_bits_in_any_batch(instruction_set):
    inputs = make(3, 7, 4, 2, 12)
    whole = window_attention(**inputs, scale=0.3)
    for image in range(3):
        alone = window_attention(**{**inputs, "qkv": inputs["qkv"][image : image + 1]}, scale=0.3)
        assert torch.equal(alone[0], whole[image])


def test_torch_sees_one_operator(use_backend):
    use_backend("window_attention", "native")
    inputs = make(1, 2, 4, 2, 3)
    tensors = [t.requires_grad_() if t.is_floating_point() else t for t in inputs.values()]
    torch.library.opcheck(torch.ops.qmambair.window_attention.default, (*tensors, 0.3))
    torch.library.opcheck(torch.ops.qmambair.window_attention.default, (*tensors[:4], None, 0.3))


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("fused", [True, False])
def test_windows_that_share_a_mask_are_the_regions_once_more(fused, gradients, use_backend):
    use_backend("window_attention", "native" if fused else "reference")
    plan = window_plan(8, 12, 4, 2, torch.device("cpu"))
    qkv, table = torch.randn(2, 96, 3 * 6), torch.randn(49, 2)
    given = (qkv, table, relative_position_index(4), plan.windows, plan.regions)
    with torch.set_grad_enabled(gradients):
        got = window_attention(*given, scale=0.4, kinds=plan.kinds)
    want = reference.forward(*(t.double() if t.is_floating_point() else t for t in given), 0.4)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_index_in_any_order(backend, use_backend):
    """Entries of neighbouring queries follow each other in the table where a window has rows of 16; elsewhere not."""
    use_backend("window_attention", backend)
    inputs = make(1, 1, 16, 1, 12)
    shuffled = torch.randperm(len(inputs["table"]))
    inputs["index"], inputs["table"] = shuffled[inputs["index"]], inputs["table"][shuffled.argsort()]
    check(inputs)
    inputs["index"] = torch.randint(0, len(inputs["table"]), inputs["index"].shape)
    check(inputs)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_into_a_buffer(backend, shape, use_backend):
    use_backend("window_attention", backend)
    inputs = make(*SHAPES[shape])
    batch, length, channels = inputs["qkv"].shape
    out = torch.full((batch, length, channels // 3), torch.nan)
    with torch.no_grad():
        got = window_attention_into(out, **inputs, scale=0.3)
        assert got is out and torch.equal(out, window_attention(**inputs, scale=0.3))
        with pytest.raises((ValueError, RuntimeError)):
            window_attention_into(out[:, :5].contiguous(), **inputs, scale=0.3)


def test_what_the_kernels_do_not_take_goes_to_the_reference(use_backend):
    use_backend("window_attention", "native")
    inputs = make(1, 2, 2, 2, 3)  # windows of 4 tokens
    assert not is_fused(inputs["qkv"], 4, 2)
    assert window_attention(**inputs, scale=0.3).isfinite().all()
    assert not is_fused(torch.zeros(1, 16, 36, dtype=torch.float64), 16, 1)
    assert not is_fused(torch.zeros(1, 16, 36, dtype=torch.bfloat16), 16, 1)
    assert is_fused(torch.zeros(1, 16, 36), 16, 1)


@pytest.mark.parametrize(
    "change",
    [{"qkv": torch.zeros(1, 32, 19)}, {"index": torch.zeros(4, 4).long()}, {"order": torch.zeros(3, 16).long()}],
)
def test_wrong_shapes_are_named(change):
    with pytest.raises(ValueError, match="window_attention: shapes do not fit: qkv"):
        window_attention(**{**make(1, 2, 4, 2, 3), **change}, scale=1.0)
