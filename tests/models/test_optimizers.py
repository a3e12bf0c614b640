"""Adam and AdamW with less Python for each tensor: the numbers, states and files of torch's classes."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

from qmambair_basicsr.models import optimizers
from qmambair_basicsr.models.garbage import collected_later

KINDS = [("Adam", {}), ("Adam", {"weight_decay": 0.1, "maximize": True}), ("AdamW", {"weight_decay": 0.1})]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3), nn.Linear(3, 3))


def made(own, kind, options):
    net = network()
    groups = [{"params": list(net[0].parameters())}, {"params": list(net[1:].parameters()), "lr": 0.02, "eps": 1e-6}]
    return net, getattr(optimizers if own else torch.optim, kind)(groups, lr=0.01, fused=True, **options)


def one_step(net, optimizer, i, left_out=None):
    optimizer.zero_grad()
    torch.manual_seed(i)
    net(torch.randn(4, 5)).square().sum().backward()
    if left_out is not None:
        left_out(net).grad = None
    optimizer.step()


def same(net, optimizer, other, reference):
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    own, theirs = optimizer.state_dict(), reference.state_dict()
    assert own["param_groups"] == theirs["param_groups"]
    assert own["state"].keys() == theirs["state"].keys()
    for key, state in theirs["state"].items():
        for name, value in state.items():
            assert torch.equal(own["state"][key][name], value), (key, name)
            assert own["state"][key][name].dtype == value.dtype


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_the_bits_of_torch(kind, options, tmp_path):
    """A rate that changes, gradients that are missing for a while, a state that is written and loaded."""
    pairs = [made(own, kind, options) for own in (True, False)]
    for i in range(12):
        for net, optimizer in pairs:
            optimizer.param_groups[1]["lr"] = 0.02 * (i + 1)
            one_step(net, optimizer, i, (lambda net: net[1].bias) if i in (4, 5) else None)
            if i == 8:
                torch.save(optimizer.state_dict(), tmp_path / "state")
                optimizer.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        same(*pairs[0], *pairs[1])
    assert pairs[0][1]._plans is not None


def test_one_count_for_all_tensors_of_a_group(monkeypatch):
    """From the second step on nothing is counted tensor by tensor, and loading makes new plans."""
    net, optimizer = made(True, "Adam", {})
    one_step(net, optimizer, 0)
    made_first = optimizer._plans
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_add_", None)
        one_step(net, optimizer, 1)
    assert optimizer._plans is made_first and float(made_first[1].counts[0]) == 2
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded = optimizer._plans
    one_step(net, optimizer, 2)
    assert optimizer._plans is loaded is not made_first and float(loaded[0].counts[0]) == 3


def test_what_scales_gradients_or_reads_rates_from_tensors_goes_torchs_way():
    """GradScaler and recorded steps set attributes of the optimizer; its plans stay, so that counts are not moved."""
    (net, optimizer), (other, reference) = (made(own, "Adam", {}) for own in (True, False))
    for i in range(2):
        one_step(net, optimizer, i), one_step(other, reference, i)
    plans = optimizer._plans
    for each in (optimizer, reference):
        each.found_inf = torch.tensor(1.0)
    one_step(net, optimizer, 2), one_step(other, reference, 2)
    same(net, optimizer, other, reference)
    del optimizer.found_inf, reference.found_inf
    one_step(net, optimizer, 3), one_step(other, reference, 3)
    same(net, optimizer, other, reference)
    assert optimizer._plans is plans


def test_a_gradient_that_is_missing_at_times_moves_no_counts():
    (net, optimizer), (other, reference) = (made(own, "Adam", {}) for own in (True, False))
    plans = []
    for i in range(8):
        for n, o in ((net, optimizer), (other, reference)):
            one_step(n, o, i, (lambda net: net[2].weight) if i % 3 else None)
        plans.append(optimizer._plans)
    same(net, optimizer, other, reference)
    assert all(plan is plans[0] for plan in plans)


def test_parameters_of_other_types_go_torchs_way():
    net = network().double()
    optimizer = optimizers.Adam(net.parameters(), fused=True)
    for _ in range(2):
        net(torch.randn(2, 5).double()).sum().backward()
        optimizer.step()
    assert optimizer._plans is None


def test_the_collector_waits_and_then_does_what_it_did_before():
    with collected_later():
        assert not gc.isenabled()
    assert gc.isenabled()
    gc.disable()
    try:
        with pytest.raises(ValueError), collected_later():
            raise ValueError
        assert not gc.isenabled()
    finally:
        gc.enable()
