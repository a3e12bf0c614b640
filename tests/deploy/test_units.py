"""A network traced block by block is the graph of the network traced as a whole."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from test_export_networks import OPTIONS, QUANT, V2_QUANT
from test_export_onnx import photo

from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.convert import freeze_dls

pytest.importorskip("onnxruntime", reason="extra: export")

from onnx import numpy_helper

from qmambair_basicsr.artifacts.onnx import units
from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx, session


def network(name, quant, depth):
    """Calibrated, and disturbed so that no two blocks share a value."""
    torch.manual_seed(0)
    options = copy.deepcopy(OPTIONS[name.removeprefix("Q")]) | {"depths": [depth], "quant": copy.deepcopy(quant)}
    net = build_network({"type": name, **options}).eval()
    x = photo(options.get("in_chans", 3), 16, 24)
    calibrate(net, [x])
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.05 * torch.rand_like(parameter))
            if parameter.requires_grad:
                parameter.add_(0.001 * torch.rand_like(parameter))
    freeze_dls(net, [x])
    return net, x


def constants_by_use(model):
    """(node, input) -> value; nodes are named after the places in the network that they come from."""
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    used = {}
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            if name in values:
                used[node.name, i] = values[name]
    return used


def export(net, path, settings, kinds):
    return export_onnx(net, path, settings, progress=lambda step: kinds.append(step) if "kind" in step else None)


@pytest.mark.parametrize(
    ("name", "quant", "depth", "open_sides", "precision", "expected"),
    [
        ("QMambaIR", QUANT, 3, False, "fp32", 1),
        ("QMambaIR", QUANT, 2, True, "fp16", 1),
        ("QMambaIRv2Light", V2_QUANT, 1, False, "fp32", 1),  # its layers differ, their GatedMLPs do not
    ],
)
def test_graph_is_that_of_the_whole_network(name, quant, depth, open_sides, precision, expected, tmp_path, monkeypatch):
    net, x = network(name, quant, depth)
    settings = ExportSettings(16, 24, scan_chunk=4, dynamic=open_sides, precision=precision)
    kinds = []
    model = export(net, tmp_path / "units.onnx", settings, kinds)
    assert len(kinds) == expected
    monkeypatch.setattr(units, "is_unit", lambda module: False)
    whole = export(net, tmp_path / "whole.onnx", settings, kinds)
    assert len(kinds) == expected, "traced as a whole"
    nodes, wanted_nodes = ({(n.name, n.op_type) for n in m.graph.node} for m in (model, whole))
    assert wanted_nodes <= nodes
    # with open sides every block asks for the size of its own map
    assert {kind for _, kind in nodes - wanted_nodes} <= ({"Shape", "Concat"} if open_sides else set())
    got, wanted = constants_by_use(model), constants_by_use(whole)
    if not open_sides:
        assert got.keys() == wanted.keys()
    for place in wanted.keys() & got.keys():
        if "Concat" not in place[0]:
            np.testing.assert_array_equal(got[place], wanted[place], err_msg=str(place))
    assert len(wanted.keys() - got.keys()) <= 2
    outputs = [session(str(tmp_path / f"{f}.onnx")).run(None, {"input": x.numpy()})[0] for f in ("units", "whole")]
    np.testing.assert_array_equal(*outputs)


def test_blocks_that_differ_are_no_unit(tmp_path):
    """Two of three blocks are alike; the one quantized in another way is traced with the network."""
    quant = copy.deepcopy(QUANT) | {"overrides": {"*.blocks.1.conv_blk.*": {"act": {"type": "LSQOffset", "bits": 8}}}}
    net, x = network("QMambaIR", quant, 3)
    kinds = []
    export(net, tmp_path / "net.onnx", ExportSettings(16, 24, scan_chunk=4), kinds)
    assert len(kinds) == 1
    blocks = net.layers[0].residual_group["blocks"]
    assert units.structure(blocks[0]) != units.structure(blocks[1])
    got = session(str(tmp_path / "net.onnx")).run(None, {"input": x.numpy()})[0]
    with torch.no_grad():
        assert -10 * np.log10(np.mean((got - net(x).numpy()) ** 2) + 1e-20) >= 50
