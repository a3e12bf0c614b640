"""TensorRT-RTX, which builds engines without a GPU, runs every quantized convolution and linear with int8 inputs."""

from __future__ import annotations

import re

import pytest

trt = pytest.importorskip("tensorrt_rtx", reason="wheel tensorrt-rtx-cu13, x86-64 Linux only (extra: dev)")
pytest.importorskip("onnx", reason="extra: export")

from test_export_onnx import CASES, calibrated, photo  # noqa: E402

from qmambair_basicsr.exporting.onnx_file import ExportSettings, export_onnx  # noqa: E402
from qmambair_basicsr.layers.convert import freeze_dls, parameter_sites  # noqa: E402


class Log(trt.ILogger):
    """Keeps every message; TensorRT-RTX prints its layer table at verbose level."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        self.lines.append(message)


def built_layers(path):
    """(name, type, data type of the first input) of every matrix product and convolution of the engine."""
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
    row = re.compile(r"^Name: (\S+), LayerType: (gemm|correlation), Inputs: \[ \{.*?Datatype: (\w+)", re.MULTILINE)
    return row.findall("\n".join(log.lines))  # the table is one message of many lines


def test_every_quantized_layer_is_int8(tmp_path):
    net = calibrated(CASES["light x2 w4a4"])
    freeze_dls(net, [photo(3, 16, 24)])
    export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 24, scan_chunk=1))
    layers = built_layers(tmp_path / "net.onnx")
    # every weight is one layer, but the four directions of dt_projs are one each
    matrices = [s.name for s in parameter_sites(net) if s.attribute in ("weight", "x_proj_weight", "dt_projs_weight")]
    expected = len(matrices) + 3 * sum(name.endswith("dt_projs_weight") for name in matrices)
    assert sum(kind == "Int8" for _, _, kind in layers) == expected, layers
