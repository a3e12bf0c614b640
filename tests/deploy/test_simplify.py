"""The short list of rewrite rules does for exported networks what all of onnxscript's do."""

from __future__ import annotations

from collections import Counter

import pytest
from test_export_networks import network

pytest.importorskip("onnxruntime", reason="extra: export")
pytest.importorskip("onnxscript", reason="extra: export")

from onnxscript import ir, optimizer

from qmambair_basicsr.artifacts.onnx import file as onnx_file
from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx


@pytest.mark.parametrize("name", ["QMambaIR", "MambaIRv2Light"])
def test_graph_is_that_of_the_full_optimizer(name, tmp_path, monkeypatch):
    wanted, steps = [], []
    simplify = onnx_file.simplify

    def both(model):
        copy = ir.from_proto(ir.to_proto(model))
        optimizer.optimize(copy)
        wanted.append(Counter(node.op_type for node in copy.graph))
        simplify(model)
        assert Counter(node.op_type for node in model.graph) == wanted[0]

    monkeypatch.setattr(onnx_file, "simplify", both)
    export_onnx(network(name), tmp_path / "net.onnx", ExportSettings(16, 24, scan_chunk=4), progress=steps.append)
    assert wanted and sum(wanted[0].values()) > 50
    assert len(set(steps)) == len(steps) >= 3, "every step is told once"
