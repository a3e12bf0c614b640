"""Calibration of whole networks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers import NetworkInfo, prepare
from qmambair_basicsr.layers.sites import uncalibrated
from qmambair_basicsr.quantizers import QuantSpec, UncalibratedError

SPEC = QuantSpec.from_dict({"weight": {"type": "LSQ", "bits": 4}, "act": {"type": "LSQ", "bits": 4}})


class Two(nn.Module):
    """Two layers, of which the second can be skipped."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(3, 3), nn.Linear(3, 3), nn.Dropout(0.5)

    def forward(self, x, both=True):
        x = self.drop(self.first(x))
        return self.second(x) if both else x


@pytest.fixture
def net():
    return prepare(Two(), SPEC, NetworkInfo())


def test_averages_the_initial_values(net):
    batches = [torch.randn(4, 3), 3 * torch.randn(4, 3)]
    steps = []
    for batch in batches:
        calibrate(net, [batch])
        steps.append(net.first.act_quantizer.to_int(batch)[1].clone())
    calibrate(net, iter(batches))
    scale = net.first.act_quantizer.to_int(batches[0])[1]
    torch.testing.assert_close(scale, (steps[0] + steps[1]) / 2)
    assert steps[0] != steps[1]


def test_restores_training_flags_and_weights(net):
    net.train()
    net.second.eval()
    before = {name: p.clone() for name, p in net.named_parameters() if "quantizer" not in name}
    calibrate(net, [torch.randn(4, 3)])
    assert net.first.training and net.drop.training and not net.second.training
    assert not any(m.calibrating for m in net.modules() if hasattr(m, "calibrating"))
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters() if name in before)


def test_lists_what_is_uncalibrated(net):
    assert len(uncalibrated(net)) == 4
    with pytest.raises(UncalibratedError, match=r"2 quantizers were never reached: second\."):
        calibrate(net, [torch.randn(4, 3)], forward=lambda n, x: n(x, both=False))
    calibrate(net, [{"lq": torch.randn(4, 3)}], forward=lambda n, batch: n(batch["lq"]))
    assert uncalibrated(net) == []


def test_calibration_state_is_saved_and_loaded(net):
    calibrate(net, [torch.randn(4, 3)])
    other = prepare(Two(), SPEC, NetworkInfo()).eval()
    other.load_state_dict(net.state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(other(x), net.eval()(x))


def test_bad_batches_are_refused(net):
    with pytest.raises(ValueError, match="there was no batch"):
        calibrate(net, [])
    with pytest.raises(ValueError, match=r"first\.act.*NaN or infinity"):
        calibrate(net, [torch.full((2, 3), torch.nan)])
    assert not any(m.calibrating for m in net.modules() if hasattr(m, "calibrating"))
