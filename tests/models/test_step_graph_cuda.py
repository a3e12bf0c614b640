"""Training steps recorded as CUDA graphs on a real GPU; the bookkeeping is tested without one in test_step_graph.py."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from basicsr.models import build_model
from basicsr.utils import get_root_logger

from qmambair_basicsr.archs.blocks import ChannelAttention
from qmambair_basicsr.models.non_finite import NonFiniteError

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def built(parsed, options, **train):
    options = copy.deepcopy(options)
    options["num_gpu"], options["datasets"]["train"]["batch_size_per_gpu"] = 1, 4
    options["train"] |= train
    torch.manual_seed(0)
    return build_model(parsed(options))


def run(model, iterations, bad=None):
    for iteration in iterations:
        torch.manual_seed(iteration)
        batch = {"lq": torch.rand(4, 3, 16, 16), "gt": torch.rand(4, 3, 32, 32)}
        if iteration == bad:
            batch["gt"][0, 0, 0, 0] = torch.inf
        model.update_learning_rate(iteration)
        model.feed_data(batch)
        model.optimize_parameters(iteration)


def state_of(model):
    moments = (t for state in model.optimizer_g.state.values() for t in state.values())
    return [*model.net_g.parameters(), *model.net_g.buffers(), *moments]


@pytest.mark.parametrize("train", [{}, {"amp": "bf16", "accumulate": 2}, {"amp": "fp16"}], ids=str)
def test_a_replayed_step_is_the_eager_one(parsed, qat_options, train):
    """Both from the same state: the loss, DropPath included, and where the weights go, up to the order of atomics."""
    model = built(parsed, qat_options, cuda_graph=True, ema_decay=0, **train)
    run(model, range(1, 10))
    assert model.step_graph._recorded
    start = [t.detach().clone() for t in state_of(model)]
    ends, losses = [], []
    for eagerly in (False, True):
        with torch.no_grad():
            for tensor, value in zip(state_of(model), start, strict=True):
                tensor.copy_(value)
        model.step_graph._given_up = eagerly
        run(model, [10])
        losses.append(model.get_current_log()["l_pix"])
        ends.append(torch.cat([p.detach().flatten() for p in model.net_g.parameters()]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2 if "amp" in train else 1e-5)
    moved = ends[1] - torch.cat([t.flatten() for t in start[: len(list(model.net_g.parameters()))]])
    assert (ends[0] - ends[1]).norm() < 0.1 * moved.norm()


def test_nan_is_found_on_the_device(parsed, qat_options):
    with pytest.raises(NonFiniteError, match=r"iteration 9 .*gt of the batch is not finite"):
        run(built(parsed, qat_options, cuda_graph=True), range(1, 20), bad=9)


def test_after_a_recording_that_fails_training_goes_on(parsed, qat_options, monkeypatch, caplog):
    forward = ChannelAttention.forward

    def asks(self, x):
        assert x.sum().item() < 1e9
        return forward(self, x)

    monkeypatch.setattr(ChannelAttention, "forward", asks)
    monkeypatch.setattr(get_root_logger(), "propagate", True)  # to caplog
    with caplog.at_level(logging.WARNING, "basicsr"):
        model = built(parsed, qat_options, cuda_graph=True)
        run(model, range(1, 12))
    assert sum("(ChannelAttention)" in r.getMessage() for r in caplog.records) == 1
    assert not model.step_graph._recorded
    assert model.get_current_log()["l_pix"] < 1
    assert torch.rand(3, device="cuda").isfinite().all()
    torch.cuda.empty_cache()
