"""Training steps recorded as CUDA graphs on a real GPU; the bookkeeping is tested without one in test_step_graph.py."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from basicsr.models import build_model

from qmambair_basicsr.archs.blocks import ChannelAttention
from qmambair_basicsr.models.non_finite import NonFiniteError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def run(parsed, options, steps=12, bad=None, **train):
    options = copy.deepcopy(options)
    options["num_gpu"], options["datasets"]["train"]["batch_size_per_gpu"] = 1, 4
    options["train"] |= train
    torch.manual_seed(0)
    model, logs = build_model(parsed(options)), []
    for iteration in range(1, steps + 1):
        torch.manual_seed(iteration)
        batch = {"lq": torch.rand(4, 3, 16, 16), "gt": torch.rand(4, 3, 32, 32)}
        if iteration == bad:
            batch["gt"][0, 0, 0, 0] = torch.inf
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)
        if bad is None:
            logs.append(model.get_current_log()["l_pix"])
    return model, logs


@pytest.mark.parametrize("train", [{}, {"amp": "bf16", "accumulate": 2}, {"amp": "fp16"}], ids=str)
def test_replayed_steps_are_eager_ones(parsed, qat_options, train):
    """The first losses to rounding, DropPath included; later ones drift apart as atomics add in other orders."""
    (_, eager), (model, graph) = (run(parsed, qat_options, cuda_graph=flag, **train) for flag in (False, True))
    assert model.step_graph._recorded
    assert graph[:8] == pytest.approx(eager[:8], rel=2e-2 if "amp" in train else 2e-3)


def test_nan_is_found_on_the_device(parsed, qat_options):
    with pytest.raises(NonFiniteError, match=r"iteration 9 .*gt of the batch is not finite"):
        run(parsed, qat_options, 20, bad=9, cuda_graph=True)


def test_after_a_recording_that_fails_training_goes_on(parsed, qat_options, monkeypatch, caplog):
    forward = ChannelAttention.forward

    def asks(self, x):
        assert x.sum().item() < 1e9
        return forward(self, x)

    monkeypatch.setattr(ChannelAttention, "forward", asks)
    with caplog.at_level(logging.WARNING, "basicsr"):
        model, graph = run(parsed, qat_options, cuda_graph=True)
    assert sum("(ChannelAttention)" in r.getMessage() for r in caplog.records) == 1
    assert not model.step_graph._recorded
    assert len(graph) == 12
    assert torch.rand(3, device="cuda").isfinite().all()
    torch.cuda.empty_cache()
