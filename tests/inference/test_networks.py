"""Networks of the tools: what an option file and a checkpoint hold, and what is said when they do not."""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network

from qmambair_basicsr import checkpoints
from qmambair_basicsr.inference.networks import load_full_precision
from qmambair_basicsr.layers.sites import quantizer_keys

SMALL = {"embed_dim": 30, "depths": [1], "d_state": 3, "mlp_ratio": 1.2}
QUANT = {"weight": {"type": "LSQ", "bits": 4}, "act": {"type": "LSQOffset", "bits": 4}}


@pytest.fixture
def full():
    return build_network({"type": "MambaIR", **SMALL})


@pytest.fixture
def net():
    return build_network({"type": "QMambaIR", **SMALL, "quant": QUANT})


@pytest.mark.parametrize("key", ["params", "params_ema", None])
def test_full_precision_weights_leave_the_quantizers_alone(tmp_path, full, net, key):
    file, state = tmp_path / "full.pth", full.state_dict()
    checkpoints.write_file(state if key is None else {key: state}, file)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert load_full_precision(net, file, key) is net
    after, quantizers = net.state_dict(), quantizer_keys(net)
    assert quantizers
    assert all(torch.equal(after[name], before[name] if name in quantizers else state[name]) for name in after)


def test_what_is_wrong_with_full_precision_weights_names_the_file(tmp_path, full, net):
    file = tmp_path / "wrong.pth"
    with pytest.raises(checkpoints.CheckpointError, match=r"wrong\.pth does not exist"):
        load_full_precision(net, file)
    checkpoints.write_file({"params": full.state_dict()}, file)
    with pytest.raises(checkpoints.CheckpointError, match=r"wrong\.pth has no 'params_ema'"):
        load_full_precision(net, file, "params_ema")
    checkpoints.write_file({"params": net.state_dict()}, file)
    with pytest.raises(checkpoints.CheckpointMismatchError, match=r"(?s)wrong\.pth.*not a full-precision checkpoint"):
        load_full_precision(net, file)
    checkpoints.write_file({"params": {**full.state_dict(), "norm.bias": torch.ones(3)}}, file)
    with pytest.raises(
        checkpoints.CheckpointMismatchError, match=r"(?s)wrong\.pth.*norm\.bias: network \(\d+,\), file \(3,\)"
    ):
        load_full_precision(net, file)
