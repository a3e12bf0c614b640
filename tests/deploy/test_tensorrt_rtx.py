"""TensorRT-RTX, which builds engines without a GPU, runs every quantized convolution and linear with int8 inputs."""

from __future__ import annotations

import re

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="wheel tensorrt-rtx-cu13, x86-64 Linux only (extra: dev)")
pytest.importorskip("onnx", reason="extra: export")

from test_export_onnx import CASES  # noqa: E402

from qmambair_basicsr.layers import QuantConv2d, QuantLinear  # noqa: E402
from qmambair_basicsr.layers.convert import parameter_sites  # noqa: E402


class Log(trt.ILogger):
    """Keeps every message; TensorRT-RTX prints its layer table at verbose level."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        self.lines.append(message)


def built_layers(path):
    """Module -> data type of the first input, for every matrix product and convolution of the engine."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(path)), [str(parser.get_error(i)) for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM86, 0)
    assert builder.build_serialized_network(network, config) is not None
    row = re.compile(
        r"^Name: (\S+)/\w+, LayerType: (?:gemm|correlation), Inputs: \[ \{.*?Datatype: (\w+)", re.MULTILINE
    )
    return dict(row.findall("\n".join(log.lines)))  # the table is one message of many lines


def quantized_layers(net):
    """Names, in the exported graph, of the layers that multiply quantized weights: one for each direction of dt_projs."""
    names = []
    for site in parameter_sites(net):
        owner = site.parameter.rpartition(".")[0]
        if isinstance(site.owner, QuantConv2d | QuantLinear):
            names.append(owner)
        elif site.attribute == "x_proj_weight":
            names.append(f"{owner}.projections.x_proj")
        elif site.attribute == "dt_projs_weight":
            names += [f"{owner}.projections.dt_projs.{k}" for k in range(len(site.owner.directions))]
    return names


@pytest.mark.parametrize("case", CASES)
def test_every_quantized_layer_is_int8(case, exported_case):
    net, path = exported_case(case, "frozen")
    layers, expected = built_layers(path), quantized_layers(net)
    assert len(expected) >= 10
    others = {name: layers.get(name, "not in the layer table") for name in expected if layers.get(name) != "Int8"}
    assert not others, f"{len(others)} of {len(expected)} quantized layers do not run in int8: {others}"
    extra = [name for name, kind in layers.items() if kind == "Int8" and name not in expected]
    assert not extra, "layers kept in full precision run in int8"
