"""How a training step is computed: half precision, a batch in parts, blocks computed twice."""

from __future__ import annotations

import copy

import pytest
import torch
from basicsr.models import build_model

from qmambair_basicsr.models.step_options import StepOptions
from qmambair_basicsr.quantizers import LSQOffset


def built(parsed, options, **train):
    options = copy.deepcopy(options)
    options["train"] |= train
    options["datasets"]["train"]["batch_size_per_gpu"] = 4
    torch.manual_seed(0)
    return build_model(parsed(options))


def step(model, iteration=1, size=4):
    torch.manual_seed(iteration)
    model.update_learning_rate(iteration)
    model.feed_data({"lq": torch.rand(size, 3, 12, 12), "gt": torch.rand(size, 3, 24, 24)})
    model.optimize_parameters(iteration)
    return {name: p.grad.clone() for name, p in model.get_bare_model(model.net_g).named_parameters()}


@pytest.fixture
def options(qat_options):
    qat_options["network_g"]["drop_path_rate"] = 0.0
    return qat_options


def test_blocks_computed_twice_change_nothing(parsed, qat_options):
    """DropPath draws the same numbers again, and the parameters' quantizers are not asked again."""
    plain, again = (step(built(parsed, qat_options, checkpoint=flag)) for flag in (False, True))
    assert plain.keys() == again.keys()
    for name in plain:
        torch.testing.assert_close(again[name], plain[name])


def test_activations_quantized_twice_change_nothing(parsed, options):
    plain, again = (step(built(parsed, options, requantize=flag)) for flag in (False, True))
    for name in plain:
        assert torch.equal(again[name], plain[name]), name


def test_parts_of_a_batch_add_up_to_it(parsed, options):
    whole, parts = (built(parsed, options, accumulate=n) for n in (1, 2))
    want, got = step(whole), step(parts)
    for name in want:
        if "quantizer" not in name:  # LSQ scales gradients of steps by the number of values in a tensor
            torch.testing.assert_close(got[name], want[name], rtol=2e-3, atol=1e-6)
    assert parts.get_current_log()["l_pix"] == pytest.approx(whole.get_current_log()["l_pix"], rel=1e-5)
    assert parts.lq.shape[0] == 4


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_half_precision(parsed, options, amp):
    model = built(parsed, options, amp=amp)
    seen = []
    layer = model.net_g.layers[0].residual_group.blocks[0].self_attention.in_proj
    layer.register_forward_hook(lambda _, inputs, out: seen.append(out.dtype))
    before = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    for iteration in (1, 2):
        grads = step(model, iteration)
    assert set(seen) == {StepOptions(amp).dtype}
    assert all(torch.isfinite(g).all() and g.dtype == torch.float32 for g in grads.values())
    assert any(not torch.equal(before[name], p) for name, p in model.net_g.named_parameters())


def test_an_overflow_in_float16_leaves_a_step_out_and_the_scale_is_resumed(parsed, options, monkeypatch):
    model = built(parsed, options, amp="fp16")
    before = {name: p.detach().clone() for name, p in model.net_g.named_parameters()}
    monkeypatch.setattr("qmambair_basicsr.models.non_finite.gradient_norm", lambda _: float("inf"))
    parameter = next(iter(model.net_g.parameters()))
    handle = parameter.register_hook(lambda grad: grad * float("inf"))
    scale = model.scaler.get_scale()
    step(model)
    handle.remove()
    assert all(torch.equal(before[name], p) for name, p in model.net_g.named_parameters())
    assert model.scaler.get_scale() == scale / 2
    model.save_training_state(0, 1)
    again = built(parsed, options, amp="fp16")
    again.resume_training(torch.load(f"{model.opt['path']['training_states']}/1.state", weights_only=True))
    assert again.scaler.get_scale() == scale / 2


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"amp": "fp8"}, "amp: must be one of bf16, fp16"),
        ({"accumulate": 0}, "accumulate"),
        ({"checkpoint": 1}, "checkpoint"),
        ({"requantize": "yes"}, "requantize"),
        ({"compile": True}, "compile: is not supported: .* cuda_graph: true"),
        ({"accumulate": 3}, "accumulate: must divide batch_size_per_gpu 4"),
    ],
)
def test_impossible_values_are_named(entry, said):
    with pytest.raises(ValueError, match=f"train: {said}"):
        StepOptions.from_options({"train": entry, "datasets": {"train": {"batch_size_per_gpu": 4}}})


@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_who_compiles_a_quantizer_anyway_gets_its_bits():
    """Why the option is refused is time, not wrong results; this backend only follows what happens."""
    quantizer, x, results = LSQOffset(4).train(), torch.randn(7, 6), []
    quantizer(x)
    for call in (quantizer, torch.compile(quantizer, backend="eager")):
        quantizer.zero_grad()
        out = call(x)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in quantizer.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
