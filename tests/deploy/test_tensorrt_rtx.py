"""TensorRT-RTX, which builds engines without a GPU, runs every quantized convolution, linear and product in int8."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from dataclasses import dataclass

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="wheel tensorrt-rtx-cu13, x86-64 Linux only (extra: dev)")
pytest.importorskip("onnx", reason="extra: export")

from test_export_onnx import CASES, calibrated, photo  # noqa: E402
from tiny_networks import QUANTIZED, SMALLEST, tiny_network  # noqa: E402

from qmambair_basicsr.archs.integer_projections import DirectionProducts  # noqa: E402
from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx  # noqa: E402
from qmambair_basicsr.layers import QuantConv2d, QuantLinear, QuantMatMul  # noqa: E402
from qmambair_basicsr.layers.convert import freeze_dls  # noqa: E402
from qmambair_basicsr.layers.quant_layers import QuantEmbedding  # noqa: E402
from qmambair_basicsr.layers.sites import parameter_sites  # noqa: E402
from qmambair_basicsr.lowering import lower  # noqa: E402


class Log(trt.ILogger):
    """Keeps every message; TensorRT-RTX prints its layer table at verbose level."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        self.lines.append(message)


@dataclass(frozen=True)
class Row:
    """A matrix product or convolution of the engine: data types of its inputs and of its constants."""

    inputs: list[str]
    constants: list[str]

    def __str__(self):
        return f"{' x '.join(self.inputs)}, constants {' x '.join(self.constants)}"


def built_layers(path):
    """Module -> matrix products and convolutions that the engine has for it."""
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
        r"^Name: (\S+)/\w+, LayerType: (?:gemm|correlation), Inputs: (.*?), Constants: (.*?), Outputs: ", re.MULTILINE
    )
    layers = defaultdict(list)
    for module, *tensors in row.findall("\n".join(log.lines)):  # the table is one message of many lines
        layers[module].append(Row(*(re.findall(r"Datatype: (\w+)", part) for part in tensors)))
    return layers


PROJECTIONS = {  # parameter of a scan -> the module of the exported network that multiplies it
    "x_proj_weight": "projections.x_proj",
    "dt_projs_weight": "projections.dt_projs",
    "xc_proj_weight": "channel_projections.x_proj",
    "dtc_projs_weight": "channel_projections.dt_projs",
}


def quantized_layers(net):
    """Names, in the exported graph, of the layers that multiply quantized weights: some have one for each direction."""
    names, integer = [], lower(net)
    for site in parameter_sites(net):
        owner = site.parameter.rpartition(".")[0]
        if isinstance(site.owner, QuantConv2d | QuantLinear):
            names.append(owner)
        elif site.site.parameter in PROJECTIONS:
            path = f"{owner}.{PROJECTIONS[site.site.parameter]}"
            each = integer.get_submodule(path)
            names += [f"{path}.{k}" for k in range(len(each))] if isinstance(each, DirectionProducts) else [path]
    return names


def check_layers(net, layers):
    """Every quantized layer multiplies int8 by int8, no other layer does; returns the names of the quantized ones."""
    expected = quantized_layers(net)
    others = {}
    for name in expected:
        rows = layers.get(name, [])
        if not rows or any(row.inputs[0] != "Int8" or row.constants[0] != "Int8" for row in rows):
            others[name] = [str(row) for row in rows] or "not in the layer table"
    assert not others, f"{len(others)} of {len(expected)} quantized layers do not run in int8: {others}"
    products = {name for name, module in net.named_modules() if isinstance(module, QuantMatMul)}
    extra = {name for name, rows in layers.items() for row in rows if "Int8" in row.inputs}
    assert extra <= {*expected, *products}, "layers kept in full precision run in int8"
    return expected


@pytest.mark.parametrize("case", CASES)
def test_every_quantized_layer_is_int8(case, exported_case):
    net, path = exported_case(case, "frozen")
    assert len(check_layers(net, built_layers(path))) >= 10


@pytest.mark.parametrize("name", QUANTIZED)
def test_every_network_is_int8(name, tmp_path):
    """All that a network can quantize, on grids that stay; every product of codes is one of int8 in the engine."""
    static = {"type": "LSQOffset", "bits": 4}
    quant = {"weight": {"type": "LSQ", "bits": 4}, **dict.fromkeys(("act", "scan", "attention", "routing"), static)}
    net = calibrated(tiny_network(name, quant, depths=[1], **SMALLEST))
    export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 24, scan_chunk=4))
    layers = built_layers(tmp_path / "net.onnx")
    expected = check_layers(net, layers)
    weights = [
        site
        for site in parameter_sites(net)
        if site.site.kind == "weight" and not isinstance(site.owner, QuantEmbedding)
    ]
    assert len(expected) >= len(weights) >= 2
    for product in (path for path, module in net.named_modules() if isinstance(module, QuantMatMul)):
        assert {tuple(row.inputs) for row in layers[product]} == {("Int8", "Int8")}, product


def test_quantized_attention_and_routing_are_int8(tmp_path):
    """MambaIRv2 with all it can quantize; two layers, so that shifted windows of every kind are there."""
    description = copy.deepcopy(CASES["v2 light x2 w4a4"]) | {"depths": [2]}
    description["quant"] |= {"attention": {"type": "LSQOffset", "bits": 8}, "routing": {"type": "DLS", "bits": 4}}
    net = calibrated(description)
    freeze_dls(net, [photo(3, 16, 24)])
    export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 24, scan_chunk=4))
    layers = built_layers(tmp_path / "net.onnx")
    assert any(".assm.route." in name for name in check_layers(net, layers))
    products = [name for name, module in net.named_modules() if isinstance(module, QuantMatMul)]
    assert len(products) == 6  # queries with keys, map with values, policy with dictionary; twice
    for name in products:
        # with shift, windows inside the map, on its right, lower and both borders are products of their own
        count = 4 if "layers.1.win_mhsa" in name else 1
        assert [row.inputs for row in layers[name]] == [["Int8", "Int8"]] * count, name
    # Exception: the two quantized factors of the dictionary. Both are constants, and TensorRT computes the product
    # of constants when it builds; the only product of assm itself is the one that sorts tokens, which is exact.
    tables = [site.parameter for site in parameter_sites(net) if isinstance(site.owner, QuantEmbedding)]
    assert len(tables) == 4
    assert not any("embedding" in name for name in layers)
    assert all(len(layers[f"layers.0.residual_group.layers.{i}.assm"]) == 1 for i in range(2))
