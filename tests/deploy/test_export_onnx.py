"""The ONNX file computes what the fake-quantized network computes."""

from __future__ import annotations

import copy
import json

import cv2
import numpy as np
import pytest
import torch
from basicsr.archs import build_network
from skimage import data

import qmambair_basicsr  # noqa: F401  (registers the networks)
from qmambair_basicsr.artifacts.packed import load_packed
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.layers.convert import FrozenCodes, freeze_dls, frozen
from qmambair_basicsr.layers.sites import parameter_sites
from qmambair_basicsr.lowering import lower
from qmambair_basicsr.lowering.grids import grid_of
from qmambair_basicsr.ops.onnx_nodes import DOMAIN
from qmambair_basicsr.ops.ss2d_scan import ss2d_scan
from qmambair_basicsr.ops.ss2d_scan.onnx import SCAN_NODE
from qmambair_basicsr.tools import export as tool

onnx = pytest.importorskip("onnx", reason="extra: export")
pytest.importorskip("onnxruntime", reason="extra: export")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from qmambair_basicsr.artifacts.onnx.errors import ExportError  # noqa: E402
from qmambair_basicsr.artifacts.onnx.file import ExportSettings, export_onnx, session, settle_scans  # noqa: E402
from qmambair_basicsr.artifacts.onnx.scan_graph import constant_grid, expand_scan  # noqa: E402


def network(bits, **changes):
    quant = {
        "weight": {"type": "RFA", "bits": bits},
        "act": {"type": "LSQOffset", "bits": bits},
        "scan": {"type": "DLS", "bits": bits},
    }
    options = {"embed_dim": 32, "depths": [1], "d_state": 4, "mlp_ratio": 1.0, "upscale": 2}
    return {"type": "QMambaIR", "upsampler": "pixelshuffledirect", **options, "quant": quant, **changes}


CASES = {
    "light x2 w4a4": network(4),
    "light x2 w2a2": network(2),
    "denoiser w4a4": network(4, upsampler="", upscale=1),
    "car w4a4": network(4, upsampler="", upscale=1, in_chans=1),
    "v2 light x2 w4a4": {
        **network(4),
        **{"type": "QMambaIRv2Light", "num_heads": [2], "embed_dim": 24, "window_size": 8},
        **{"inner_rank": 4, "num_tokens": 8, "eval_routing": "argmax"},
    },
}
CASES["v2 light x2 plus w4a4"] = CASES["v2 light x2 w4a4"] | {"quant": {"preset": "plus", "bits": 4}}


def photo(channels, height, width):
    image = torch.from_numpy(data.astronaut()[60 : 60 + height, 180 : 180 + width]).permute(2, 0, 1)
    return image[:channels].float().div(255).unsqueeze(0)


def calibrated(description, height=16, width=24):
    torch.manual_seed(0)
    net = build_network(copy.deepcopy(description)).eval()
    calibrate(net, [photo(description.get("in_chans", 3), height, width)])
    with torch.no_grad():  # offsets as after training
        for name, parameter in net.named_parameters():
            if name.endswith("quantizer.offset"):
                parameter.copy_(torch.linspace(0.03, 0.06, parameter.numel()))
    return net


@pytest.mark.parametrize(("case", "dls"), [(c, "frozen") for c in CASES] + [("light x2 w4a4", "dynamic")])
def test_output_is_that_of_the_fake_quantized_network(case, dls, exported_case, instruction_set):
    net, path = exported_case(case, dls)
    x = photo(CASES[case].get("in_chans", 3), 16, 24)
    codes = {s.parameter: frozen(s).codes for s in parameter_sites(net)}
    model = onnx.load(path)
    with torch.no_grad():
        wanted = net(x).numpy()
    got = session(str(path)).run(None, {"input": x.numpy()})[0]
    assert -10 * np.log10(np.mean((got - wanted) ** 2) + 1e-20) >= 50
    stored = [numpy_helper.to_array(i) for i in model.graph.initializer if i.data_type == TensorProto.INT8]
    sizes = sorted(a.size for a in stored if a.ndim)
    assert sizes, "no integer weights in the graph"
    assert not any(list(t.dims)[2:] == [16, 24] for t in model.graph.initializer), "a feature map as a constant"
    assert {p.key: p.value for p in model.metadata_props}["dls"] == dls
    expected = codes["layers.0.conv.weight"].numpy()
    assert any(a.shape[1:] == expected.shape[1:] and np.array_equal(a[: len(expected)], expected) for a in stored)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_integer_codes_of_an_activation_are_equal(bits):
    torch.manual_seed(bits)
    description = network(bits)
    quantizer = calibrated(description).layers[0].residual_group["blocks"][0].self_attention.in_proj.act_quantizer
    x = torch.randn(5000) * 2
    codes = quantizer.to_int(x)[0].numpy()
    grid = grid_of(quantizer, products=True)
    nodes = [helper.make_node("Add", ["x", "offset"], ["shifted"])]
    constants = {"offset": grid.shift.item(), "step": grid.step.item()}
    last = "shifted"
    if grid.low is not None:
        constants |= {"low": grid.low.item(), "high": grid.high.item()}
        nodes.append(helper.make_node("Clip", ["shifted", "low", "high"], ["clipped"]))
        last = "clipped"
    nodes.append(helper.make_node("QuantizeLinear", [last, "step", "zero"], ["codes"]))
    initializers = [numpy_helper.from_array(np.float32(v), k) for k, v in constants.items()]
    initializers.append(numpy_helper.from_array(np.int8(0), "zero"))
    graph = helper.make_graph(
        nodes,
        "q",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [5000])],
        [helper.make_tensor_value_info("codes", TensorProto.INT8, [5000])],
        initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    assert np.array_equal(session(model).run(None, {"x": x.numpy()})[0], codes)


@pytest.mark.parametrize("chunk", [1, 4, 16])
@pytest.mark.parametrize("directions", [(0, 1, 2, 3), (0,), (3, 1)])
def test_scan_graph_is_the_scan(chunk, directions):
    generator = torch.Generator().manual_seed(chunk)
    b, h, w, d, n, k = 2, 3, 5, 4, 3, len(directions)
    sizes = {"x": (b, h, w, d), "delta": (b, h, w, k, d), "A": (k, d, n), "B": (b, h, w, k, n), "C": (b, h, w, k, n)}
    sizes |= {"D": (k, d), "bias": (k, d)}
    values = {name: torch.randn(size, generator=generator) for name, size in sizes.items()}
    values["A"] = -values["A"].exp()
    names = [("row", "col", "row_rev", "col_rev")[i] for i in directions]
    wanted = ss2d_scan(*values.values(), directions=names)
    node = helper.make_node("SS2DScan", list(values), ["y"], name="scan", directions=directions, delta_softplus=1)
    nodes, constants = expand_scan(node, chunk)
    graph = helper.make_graph(
        nodes,
        "scan",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(size)) for name, size in sizes.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [b, h, w, d])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    got = session(model).run(None, {name: value.numpy() for name, value in values.items()})[0]
    np.testing.assert_allclose(got, wanted.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scan", ["onnx", "plugin"])
def test_every_scan_has_constants_of_its_own_name(scan):
    """``codes`` finds A, D and dt_bias by them; the exporter lets scans share equal constants."""
    b, h, w, d, n, k = 1, 2, 3, 4, 2, 1
    inputs = {"x": (b, h, w, d), "delta": (b, h, w, k, d), "B": (b, h, w, k, n), "C": (b, h, w, k, n)}
    constants = {"flat": np.full(k * d * n, -1.0), "D": np.ones((k, d)), "bias": np.zeros((k, d))}
    constants = {name: value.astype(np.float32) for name, value in constants.items()} | {"shape": np.array([k, d, n])}
    order = ["x", "delta", "A", "B", "C", "D", "bias"]
    nodes = [helper.make_node("Reshape", ["flat", "shape"], ["A"])]  # large constants stay reshaped
    nodes += [
        helper.make_node(SCAN_NODE, [source, *order[1:]], [y], name=f"{y}/scan", domain=DOMAIN, directions=[0])
        for source, y in (("x", "y1"), ("y1", "y2"), ("y2", "y3"))
    ]
    graph = helper.make_graph(
        nodes,
        "scans",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(size)) for name, size in inputs.items()],
        [helper.make_tensor_value_info("y3", TensorProto.FLOAT, [b, h, w, d])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid(DOMAIN, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    settle_scans(model, ExportSettings(h, w, scan=scan, scan_chunk=2))
    names = {tensor.name for tensor in model.graph.initializer}
    assert {f"y{i}/scan.{c}" for i in (1, 2, 3) for c in ("A", "D", "delta_bias")} <= names
    assert not names & constants.keys(), "constants that nothing reads are dropped"


def test_plugin_node(tmp_path):
    net = calibrated(network(4))
    freeze_dls(net, [photo(3, 8, 8)])
    model = export_onnx(net, tmp_path / "net.onnx", ExportSettings(8, 8, scan="plugin", scan_table=True))
    scans = [node for node in model.graph.node if node.op_type == "SS2DScan"]
    assert len(scans) == 1
    attributes = {a.name: helper.get_attribute_value(a) for a in scans[0].attribute}
    assert attributes["directions"] == [0, 1, 2, 3]
    assert len(scans[0].input) == 7
    delta = next(m for name, m in lower(net).named_modules() if name.endswith("sites.delta.grid"))
    step, shift, lowest, highest = attributes["delta_grid"]  # the plugin looks decays up by the code of delta
    assert [step, shift] == pytest.approx([float(delta.step), float(delta.offset)])
    assert (lowest, highest) == (-8, 7)
    assert scans[0].domain == "qmambair"  # outside the standard domains, so that build_engine asks for the plugin
    assert not any(node.op_type == "Scan" for node in model.graph.node)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, [0.5, 0.25, -8.0, 7.0]),
        ({"low": -64.0, "high": 63.5}, None),  # 8 bits: a table as large as the map
        ({"other": 0.25, "Dequantize": "other"}, None),
        ({"zero": np.int8(3)}, None),
        ({"step": np.ones(4)}, None),  # one for each channel
        ({"Clip": "Identity"}, None),
    ],
)
def test_grids_that_the_plugin_looks_up(change, wanted):
    values = {"shift": 0.25, "low": -4.0, "high": 3.5, "step": 0.5, "zero": np.int8(0), **change}
    numbers = {k: np.asarray(v, np.int8 if k == "zero" else np.float32) for k, v in values.items() if k.islower()}
    constants = {name: numpy_helper.from_array(number, name) for name, number in numbers.items()}
    nodes = [
        helper.make_node(change.get("Clip", "Clip"), ["x", "low", "high"], ["clipped"]),
        helper.make_node("QuantizeLinear", ["clipped", "step", "zero"], ["codes"]),
        helper.make_node("DequantizeLinear", ["codes", change.get("Dequantize", "step"), "zero"], ["value"]),
        helper.make_node("Sub", ["value", "shift"], ["shifted"]),
        helper.make_node("Cast", ["shifted"], ["delta"], to=TensorProto.FLOAT16),
    ]
    assert constant_grid({node.output[0]: node for node in nodes}, constants, "delta") == wanted


def test_command_writes_a_packed_checkpoint(tmp_path, capsys):
    net = calibrated(network(4))
    torch.save({"params": net.state_dict()}, tmp_path / "net.pth")
    (tmp_path / "net.yml").write_text(json.dumps({"network_g": network(4)}))
    command = ["-opt", str(tmp_path / "net.yml"), "--checkpoint", str(tmp_path / "net.pth")]
    assert tool.main([*command, "--packed", str(tmp_path / "net.safetensors")]) == 0
    assert "times smaller" in capsys.readouterr().out
    loaded = load_packed(tmp_path / "net.safetensors")
    assert all(isinstance(site.quantizer, FrozenCodes) for site in parameter_sites(loaded))
    assert tool.main(command) == 2
    assert "nothing to write" in capsys.readouterr().err
    assert tool.main([*command, "--onnx", str(tmp_path / "net.onnx")]) == 2
    assert "--calibration FOLDER" in capsys.readouterr().err


def test_constant_grids_need_no_images(tmp_path):
    """Post-training methods leave ranges that follow nothing: there is nothing to freeze."""
    config = network(4)
    config["quant"] = {kind: {"type": "MinMax", "bits": 4} for kind in ("weight", "act", "scan")}
    torch.save({"params": calibrated(config).state_dict()}, tmp_path / "net.pth")
    (tmp_path / "net.yml").write_text(json.dumps({"network_g": config}))
    command = ["-opt", str(tmp_path / "net.yml"), "--checkpoint", str(tmp_path / "net.pth"), "--height", "8"]
    assert tool.main([*command, "--width", "8", "--onnx", str(tmp_path / "net.onnx")]) == 0
    assert onnx.load(tmp_path / "net.onnx").graph.node


def test_command_writes_the_plugin_graph_and_its_fp64_form(tmp_path):
    torch.save({"params": calibrated(network(4)).state_dict()}, tmp_path / "net.pth")
    (tmp_path / "net.yml").write_text(json.dumps({"network_g": network(4)}))
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.png"), data.astronaut()[:20, :20])
    files = [str(tmp_path / name) for name in ("net.yml", "net.pth", "images", "plugin.onnx", "exact.onnx")]
    names = "-opt", "--checkpoint", "--calibration", "--onnx", "--onnx-fp64"
    command = [word for pair in zip(names, files, strict=True) for word in pair]
    assert tool.main([*command, "--scan", "plugin", "--height", "8", "--width", "16"]) == 0
    models = [onnx.load(file) for file in files[3:]]
    facts = [{p.key: p.value for p in model.metadata_props} for model in models]
    assert [(f["precision"], f["scan"]) for f in facts] == [("fp32", "plugin"), ("fp64", "onnx, chunk 16")]
    full = build_network({k: v for k, v in network(4).items() if k != "quant"} | {"type": "MambaIR"})
    assert facts[0]["params"] == facts[1]["params"] == str(sum(p.numel() for p in full.parameters()))
    assert facts[0]["grids"] == facts[1]["grids"], "the constants of DLS are the same"
    assert {t.data_type for t in models[1].graph.initializer} <= {
        TensorProto.DOUBLE,
        TensorProto.INT8,
        TensorProto.INT64,
    }


def test_the_plugin_has_no_fp64(tmp_path):
    with pytest.raises(ExportError, match="plugin has no FP64"):
        export_onnx(calibrated(network(4)), tmp_path / "n.onnx", ExportSettings(8, 8, scan="plugin", precision="fp64"))
