"""FP64 form of an exported file: its functions compute what the operators do, and nothing but rounding is different."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_export_networks import OURS, network
from test_export_onnx import CASES, calibrated, photo

from qmambair_basicsr.layers.info import network_info

onnx = pytest.importorskip("onnx", reason="extra: export")
pytest.importorskip("onnxruntime", reason="extra: export")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from qmambair_basicsr.artifacts.onnx import codes, float64  # noqa: E402
from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx  # noqa: E402
from qmambair_basicsr.artifacts.onnx.runtime import session  # noqa: E402
from qmambair_basicsr.artifacts.verification import open_artifact  # noqa: E402
from qmambair_basicsr.layers.sites import activation_sites, quantizers_of  # noqa: E402


def lowered(op, feeds, constants, kind=TensorProto.DOUBLE, **attributes):
    """Output of one node that went through ``lower``."""
    node = helper.make_node(op, [*feeds, *constants], ["y"], **attributes)
    if op == "QuantizeLinear":
        node.domain = float64.DOMAIN
    inputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, list(v.shape)) for name, v in feeds.items()]
    stored = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", kind, None)], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", float64.OPSET)], ir_version=10)
    float64.lower(model)
    return session(model).run(None, feeds)[0]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "out", "kernel", "geometry"),
    [
        (3, 4, (3, 3), {"padding": 1}),
        (4, 6, (1, 1), {}),
        (4, 8, (3, 3), {"padding": 1, "groups": 4}),
        (6, 4, (3, 2), {"groups": 2, "stride": (2, 1), "dilation": (1, 2), "padding": (2, 1)}),
    ],
)
def test_convolution(channels, out, kernel, geometry, bias):
    generator = torch.Generator().manual_seed(out)
    x = torch.randn(2, channels, 7, 9, generator=generator, dtype=torch.float64)
    w = torch.randn(out, channels // geometry.get("groups", 1), *kernel, generator=generator, dtype=torch.float64)
    b = torch.randn(out, generator=generator, dtype=torch.float64) if bias else None
    pair = {name: torch.nn.modules.utils._pair(geometry.get(name, d)) for name, d in (("stride", 1), ("dilation", 1))}
    pads = torch.nn.modules.utils._pair(geometry.get("padding", 0))
    constants = {"w": w.numpy()} | ({"b": b.numpy()} if bias else {})
    got = lowered(
        "Conv",
        {"x": x.numpy()},
        constants,
        strides=pair["stride"],
        dilations=pair["dilation"],
        pads=(*pads, *pads),
        group=geometry.get("groups", 1),
    )
    np.testing.assert_allclose(got, F.conv2d(x, w, b, **geometry).numpy(), rtol=1e-13, atol=1e-13)


def test_error_function():
    x = np.concatenate([np.linspace(-8, 8, 4001), [0.0, 1e-12, -1e-12]])
    np.testing.assert_allclose(lowered("Erf", {"x": x}, {}), [math.erf(v) for v in x], rtol=0, atol=1e-14)


def test_quantize_and_dequantize():
    x = np.array([-1e9, -12.8, -0.05, 0.05, 0.15, 0.25, 3.14159, 12.75, 1e9])
    scale, zero = np.array(0.1), np.array(0, np.int8)
    codes = lowered("QuantizeLinear", {"x": x}, {"scale": scale, "zero": zero}, TensorProto.INT8)
    assert codes.dtype == np.int8
    assert np.array_equal(codes, np.clip(np.round(x / 0.1), -128, 127))
    stored = np.array([[-3, 2], [1, 127]], np.int8)
    add = {"x": np.zeros((2, 2))}
    for scales, wanted in ((np.array(0.1), stored * 0.1), (np.array([0.1, 2.0]), stored * [[0.1], [2.0]])):
        axis = {"axis": 0} if scales.ndim else {}
        nodes = [
            helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["w"], **axis),
            helper.make_node("Add", ["x", "w"], ["y"]),
        ]
        values = {"codes": stored, "scale": scales, "zero": np.zeros_like(scales, np.int8)}
        kinds = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, [2, 2]) for n in ("x", "y")]
        graph = helper.make_graph(
            nodes, "g", kinds[:1], kinds[1:], [numpy_helper.from_array(v, k) for k, v in values.items()]
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", float64.OPSET)], ir_version=10)
        float64.lower(model)
        assert np.array_equal(session(model).run(None, add)[0], wanted)


def largest_difference(path, net, image):
    """Between what the network's activation quantizers are given and the same tensors of the graph."""
    given, quantizers = {}, quantizers_of(net)
    hooks = [
        quantizer.register_forward_pre_hook(lambda _, x, name=name: given.setdefault(name, []).append(x[0]))
        for name, quantizer in quantizers.items()
    ]
    with torch.no_grad():
        net(image)
    for hook in hooks:
        hook.remove()
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    sites = [site for site in codes._sites(model, path, net) if site.source is not None]
    tensors = codes._run_with(model, image, sites)
    differences = []
    for site in sites:
        wanted = (
            given[site.name][site.call]
            if site.direction is None
            else given[site.name][site.call][..., site.direction, :]
        )
        differences.append(np.abs(tensors[site.source].reshape(-1) - wanted.numpy().reshape(-1)).max())
    assert len(differences) >= min(8, len(activation_sites(net))) and np.isfinite(differences).all()
    return max(differences)


def check_all(path, net, image):
    """Every code of the whole network is equal, and so is what it is computed from."""
    artifact = open_artifact(path, net)
    exact = artifact.reference
    assert not [check.name for check in artifact.weights if check.equal is False]
    checks = artifact.activations(image, iter)
    # an input that is quantized slice by slice has a check for each
    names = {check.name.partition(" ")[0] for check in checks}
    assert names == {placed.name for placed in activation_sites(exact)}
    assert largest_difference(path, exact, image) < 1e-12, "something on the way computes in less than FP64"
    for check in checks:
        assert check.whole_network == check.count
        assert check.own_input in (None, check.count)
    with torch.no_grad():
        np.testing.assert_allclose(artifact.network(image), exact(image), rtol=2e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("case", "dls"), [("light x2 w4a4", "frozen"), ("light x2 w2a2", "frozen"), ("light x2 w4a4", "dynamic")]
)
def test_the_graph_is_the_network(case, dls, exported_case):
    _, path = exported_case(case, dls, "fp64")
    check_all(path, calibrated(CASES[case]), photo(3, 16, 24))


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("Q")])
def test_the_graph_of_every_quantized_network_is_the_network(name, tmp_path):
    """Statistics of DLS are computed in the graph; attention and routing of MambaIRv2 are quantized as well."""
    net = network(name)
    export_onnx(net, tmp_path / "net.onnx", ExportSettings(16, 24, scan_chunk=4, precision="fp64"))
    check_all(tmp_path / "net.onnx", net, photo(network_info(net).channels, 16, 24))
