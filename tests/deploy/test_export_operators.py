"""A network that was written without a thought of export, and calls operators by itself, exports all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_export_onnx import photo
from torch import nn

pytest.importorskip("onnxruntime", reason="extra: export")

from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx
from qmambair_basicsr.artifacts.onnx.runtime import OnnxNetwork
from qmambair_basicsr.layers.info import NetworkInfo, network_info
from qmambair_basicsr.ops.backend import BackendError, choose, export_target, exporting
from qmambair_basicsr.ops.selective_scan import selective_scan
from qmambair_basicsr.ops.semantic_order import semantic_order
from qmambair_basicsr.ops.ss2d_scan import ss2d_scan

CHANNELS, STATE = 4, 3


class Toy(nn.Module):
    """Convolution, scan in two directions, tokens sorted by what they resemble most, convolution."""

    def __init__(self, skip=True, way="named"):
        super().__init__()
        self.way = way
        self.register_buffer("order", torch.stack([torch.randperm(96) for _ in range(2)]))
        self.first, self.last = nn.Conv2d(3, CHANNELS, 3, padding=1), nn.Conv2d(CHANNELS, 3, 3, padding=1)
        self.project = nn.Linear(CHANNELS, 2 * (CHANNELS + 2 * STATE))
        self.decay = nn.Parameter(-torch.rand(2, CHANNELS, STATE) - 0.5)
        self.skip, self.bias = (nn.Parameter(torch.rand(2, CHANNELS)) if skip else None for _ in range(2))

    def forward(self, image):
        x = self.first(image).permute(0, 2, 3, 1)
        delta, b, c = self.project(x).unflatten(-1, (2, -1)).split((CHANNELS, STATE, STATE), -1)
        x = self.scan(x, delta, self.decay, b, c, self.skip, self.bias)
        tokens = x.flatten(1, 2)
        order, inverse = semantic_order(tokens.argmax(-1), CHANNELS, 8)
        tokens = F.silu(tokens[:, order].cumsum(1))[:, inverse]
        return image + self.last(tokens.view(x.shape).permute(0, 3, 1, 2))

    def scan(self, x, *rest):
        names = {"directions": ("col", "row_rev")}
        if self.way == "named":
            return ss2d_scan(x, *rest, **names)
        if self.way == "listed":
            return ss2d_scan(x, *rest, order=self.order)
        apart = torch.stack([x, x.sin()], 3)
        if self.way == "a map per direction":
            return ss2d_scan(apart, *rest, **names)
        y = ss2d_scan(apart if self.way == "all apart" else x, *rest, order=self.order, merge=False)
        return (y * y.mean((1, 2), keepdim=True).sigmoid()).sum(3)


@network_info.register
def _(net: Toy) -> NetworkInfo:
    return NetworkInfo()


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize("skip", [True, False])
def test_toy_network(precision, skip, tmp_path):
    torch.manual_seed(0)
    net, x = Toy(skip).eval(), photo(3, 8, 12)
    model = export_onnx(net, tmp_path / "toy.onnx", ExportSettings(8, 12, scan_chunk=4, precision=precision))
    with torch.no_grad():
        wanted = net(x) if precision == "fp32" else net.double()(x.double())
    got = OnnxNetwork(tmp_path / "toy.onnx")(x)
    np.testing.assert_allclose(got, wanted, rtol=2e-7 if precision == "fp64" else 1e-4, atol=1e-6)
    assert any(node.op_type == "Scan" for node in model.graph.node)
    assert export_target() is None


@pytest.mark.parametrize("way", ["listed", "outputs apart", "a map per direction", "all apart"])
def test_ways_to_scan(way, tmp_path):
    torch.manual_seed(0)
    net, x = Toy(way=way).eval(), photo(3, 8, 12)
    export_onnx(net, tmp_path / "toy.onnx", ExportSettings(8, 12, scan_chunk=4))
    with torch.no_grad():
        wanted = net(x)
    np.testing.assert_allclose(OnnxNetwork(tmp_path / "toy.onnx")(x), wanted, rtol=1e-4, atol=1e-6)


def test_forms_that_a_graph_does_not_have_are_named():
    x = torch.rand(1, CHANNELS, 6)
    with exporting(), pytest.raises(BackendError, match="last state has no ONNX form"):
        selective_scan(x, x, -torch.rand(CHANNELS, STATE), *torch.rand(2, 1, STATE, 6).unbind(), return_last_state=True)
    with exporting(), pytest.raises(BackendError, match=r"lsq has no ONNX form \(ops/lsq/onnx.py\)"):
        choose("lsq", ("reference",), x)
    assert choose("lsq", ("reference",), x).__name__.endswith("lsq.reference")
