"""Full-precision checkpoints in quantized networks."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.checkpoints import CheckpointMismatchError, load_fp_state
from qmambair_basicsr.layers.sites import quantizer_keys

SMALL = {"embed_dim": 30, "depths": [1, 1], "d_state": 3, "mlp_ratio": 1.2, "drop_path_rate": 0.0}
QUANT = {"weight": {"type": "LSQ", "bits": 4}, "act": {"type": "LSQOffset", "bits": 4}}


@pytest.fixture
def full():
    return build_network({"type": "MambaIR", **SMALL})


@pytest.fixture
def net():
    return build_network({"type": "QMambaIR", **SMALL, "quant": QUANT})


def test_exactly_the_quantizer_keys_are_missing(full, net):
    state = full.state_dict()
    missing = load_fp_state(net, state)
    assert set(missing) == net.state_dict().keys() - state.keys() == quantizer_keys(net)
    loaded = net.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_loads_into_a_full_precision_network(full):
    other = build_network({"type": "MambaIR", **SMALL})
    assert load_fp_state(other, full.state_dict()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("norm.weight"), r"(?s)missing in the file.*norm\.weight"),
        (lambda s: s.update(extra=torch.ones(1)), r"(?s)unknown to the network.*extra"),
        (
            lambda s: s.update({"norm.bias": torch.ones(3)}),
            r"norm\.bias: network \(30,\), file \(3,\)",
        ),
    ],
)
def test_any_other_difference_stops_before_loading(full, net, change, message):
    state = dict(full.state_dict())
    change(state)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(CheckpointMismatchError, match=message):
        load_fp_state(net, state)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_quantized_checkpoint_is_not_taken_for_a_full_precision_one(net):
    calibrate(net, [torch.rand(1, 3, 4, 4)])
    with pytest.raises(CheckpointMismatchError, match="this is not a full-precision checkpoint"):
        load_fp_state(net, net.state_dict())
