"""tools.verify accepts what was exported from the network, and notices every kind of difference."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_export_onnx import CASES, calibrated

from qmambair_basicsr.artifacts import verification, verify
from qmambair_basicsr.artifacts.packed import save_packed
from qmambair_basicsr.inference.image_sets import load_samples
from qmambair_basicsr.tools import verify as tool

onnx = pytest.importorskip("onnx", reason="extra: export")
from onnx import numpy_helper  # noqa: E402

from qmambair_basicsr.artifacts.verification import open_artifact  # noqa: E402
from qmambair_basicsr.lowering.capture import NO_CODE, captured_codes  # noqa: E402


def arguments(exported, *artifacts, checkpoint="net.pth"):
    listed = [word for name in artifacts for word in ("--artifact", str(name))]
    return ["-opt", exported["net.yml"], "--checkpoint", exported[checkpoint], "--images", exported["inputs"], *listed]


def changed(exported, source, target, name, change):
    """A copy of an ONNX file with one stored tensor changed."""
    model = onnx.load(exported[source])
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor).copy()), name))
    onnx.save(model, target)
    return target


def test_what_was_exported_is_verified(exported, tmp_path, capsys):
    names = [exported[f] for f in ("net.safetensors", "frozen.onnx", "exact.onnx", "dynamic.onnx")]
    more = ["--truth", exported["truth"], "--output", str(tmp_path / "report")]
    assert tool.main([*arguments(exported, *names), *more]) == 0
    document = json.loads((tmp_path / "report.json").read_text())
    rows = {row["name"]: row for row in document["rows"]}
    assert list(rows) == ["fake quantization", "net.safetensors", "frozen.onnx", "exact.onnx", "dynamic.onnx"]
    assert rows["net.safetensors"]["psnr"]["equal"]
    assert [rows[f]["dls"] for f in list(rows)[1:]] == ["packed", "frozen", "frozen", "dynamic"]
    assert rows["exact.onnx"]["psnr"]["equal"] or rows["exact.onnx"]["psnr"]["min"] > 150
    for row in list(rows.values())[1:]:
        parameters, codes = row["parameters"], row["activations"]
        assert parameters["equal"] == parameters["compared"] == 13, "every quantized parameter of the network"
        assert parameters["folded"] == []
        assert codes["own_input_equal"] == codes["own_input_codes"] > 0
        assert codes["whole_network_equal"] >= 0.999 * codes["codes"]
        assert row["psnr"]["equal"] or row["psnr"]["min"] >= 50
        assert row["verdict"] == "verified"
        assert row["truth_psnr"] == pytest.approx(row["truth_psnr_fake_quantization"], abs=1)
    assert rows["frozen.onnx"]["activations"]["own_input_codes"] == rows["frozen.onnx"]["activations"]["codes"]
    assert rows["dynamic.onnx"]["activations"]["own_input_codes"] < rows["dynamic.onnx"]["activations"]["codes"]
    own = rows["frozen.onnx"]["rounding_psnr"]
    assert own["equal"] or own["min"] > 50, "a shallow network does not magnify rounding"
    assert rows["exact.onnx"]["rounding_psnr"] is rows["exact.onnx"]["rounding_truth_psnr"] is None
    moved, truth = (rows["frozen.onnx"][name] for name in ("rounding_truth_psnr", "truth_psnr_fake_quantization"))
    assert moved == pytest.approx(truth, abs=0.1)
    table = (tmp_path / "report.md").read_text()
    assert f"| {rows['frozen.onnx']['truth_psnr'] - truth:+.3f} | {moved - truth:+.3f} | verified |" in table
    assert "| verified |" in table and table == capsys.readouterr().out


BLOCK = "layers.0.residual_group.blocks.0.self_attention"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layers.0.conv.weight.codes", lambda a: np.where(np.arange(a.size).reshape(a.shape) == 5, -a - 1, a).astype(np.int8),
         "1 parameters differ, first layers.0.conv.weight"),
        (f"{BLOCK}/SS2DScan.A", lambda a: a * np.float32(1.01), "1 parameters differ, first layers.0.residual"),
        ("layers.0.conv.act.step", lambda a: a * np.float32(1.02), "other codes for the same input"),
    ],
)  # fmt: skip
def test_a_changed_file_is_not_verified(exported, tmp_path, capsys, name, change, message):
    file = changed(exported, "frozen.onnx", tmp_path / "changed.onnx", name, change)
    assert tool.main(arguments(exported, file)) == 1
    assert message in capsys.readouterr().out


def test_other_weights_are_not_verified(exported, tmp_path, capsys):
    other = calibrated(CASES["light x2 w4a4"])
    with torch.no_grad():
        other.layers[0].conv.weight.neg_()
    torch.save({"params": other.state_dict()}, tmp_path / "other.pth")
    command = arguments(exported, exported["net.safetensors"])
    command[command.index("--checkpoint") + 1] = str(tmp_path / "other.pth")
    assert tool.main(command) == 1
    assert "1 parameters differ, first layers.0.conv.weight" in capsys.readouterr().out


def test_threshold(exported, capsys):
    strict = ["--min-psnr", "150", "--count", "1"]
    assert tool.main([*arguments(exported, exported["frozen.onnx"]), *strict]) == 1
    said = capsys.readouterr().out
    assert "below 150 dB" in said and "`export --onnx-fp64`" in said
    both = arguments(exported, exported["frozen.onnx"], exported["exact.onnx"])
    assert tool.main([*both, *strict]) == 0, "what is left is the rounding of float32"
    assert "Verified up to rounding (frozen.onnx)" in capsys.readouterr().out


def test_rounding_is_drawn_again_where_one_draw_explains_too_little(exported, capsys, monkeypatch):
    """A deep network may magnify one draw of the noise and not the other: the worst of several is what rounding can do."""
    drawn, real = [], [2]

    def lucky(net, size, seed=0):
        drawn.append(seed)
        return true(net, size if seed in real else size * 1e-4, seed)

    true = verification.with_rounding
    monkeypatch.setattr(verification, "with_rounding", lucky)
    files = [*arguments(exported, exported["frozen.onnx"], exported["exact.onnx"]), "--count", "1"]
    assert tool.main([*files, "--min-psnr", "150"]) == 0
    assert "Verified up to rounding (frozen.onnx)" in capsys.readouterr().out and drawn == [0, 1, 2]
    assert tool.main(files) == 0 and drawn[3:] == [0], "what is verified anyway needs one draw"
    drawn.clear()
    real.clear()
    assert tool.main([*files, "--min-psnr", "150"]) == 1 and drawn == [*range(verify.DRAWS)]
    assert "dB from the network's, below 150 dB" in capsys.readouterr().out


def test_middle_of_images(exported, capsys):
    command = arguments(exported, exported["net.safetensors"])
    assert tool.main([*command, "--truth", exported["truth"], "--middle", "16"]) == 0
    assert "3 images, the middle 16 x 16 pixels of each" in capsys.readouterr().out


def row(psnr=40.0, own=41.0, precision="fp32", codes=(10, 10), failures=()):
    activations = {"codes": codes[0], "whole_network_equal": codes[1]}
    spreads = {"psnr": {"min": psnr, "equal": psnr is None}, "rounding_psnr": None if own is None else {"min": own}}
    return {"precision": precision, "activations": activations, "worst": "p0", "failures": [*failures], **spreads}


@pytest.mark.parametrize(
    ("given", "proven", "verdict"),
    [
        (row(psnr=None), False, verify.VERIFIED),
        (row(psnr=50.0), False, verify.VERIFIED),
        (row(psnr=49.9), False, verify.NOT_VERIFIED),
        (row(), True, verify.UP_TO_ROUNDING),
        (row(psnr=37.9), True, verify.NOT_VERIFIED),
        (row(psnr=49.0, own=51.9), True, verify.UP_TO_ROUNDING),
        (row(psnr=49.0, own=52.1), True, verify.NOT_VERIFIED),
        (row(own=None), True, verify.NOT_VERIFIED),
        (row(failures=["1 parameters differ"]), True, verify.NOT_VERIFIED),
        (row(psnr=200.0, own=None, precision="fp64"), True, verify.VERIFIED),
        (row(psnr=200.0, own=None, precision="fp64", codes=(10, 9)), True, verify.NOT_VERIFIED),
        (row(precision="fp16"), True, verify.UP_TO_ROUNDING),
        (row(psnr=34.9, precision="fp16"), True, verify.NOT_VERIFIED),
    ],
)
def test_verdicts(given, proven, verdict):
    assert verify.judge(given, 50.0, proven)[0] == verdict


@pytest.mark.parametrize(
    ("artifact", "extra", "message"),
    [
        ("gone.onnx", [], "there is no file"),
        ("net.yml", [], "damaged or no ONNX file"),
        ("frozen.onnx", ["--middle", "24"], "is 30x20, smaller than 24x24"),
        ("frozen.onnx", ["--truth", "inputs"], "is 30x20, 2 times p0x2.png is 60x40"),
        ("frozen.onnx", ["--images", "gone"], "gone: no such folder"),
    ],
)
def test_mistakes_are_said(exported, capsys, artifact, extra, message):
    extra = [exported[word] if word in ("inputs", "gone") else word for word in extra]
    assert tool.main([*arguments(exported, exported[artifact]), *extra]) == 2
    assert message in capsys.readouterr().err


def test_files_of_another_network_are_refused(exported, tmp_path, capsys):
    model = onnx.load(exported["frozen.onnx"])
    next(p for p in model.metadata_props if p.key == "arch").value = "QMambaIRUNet"
    onnx.save(model, tmp_path / "other.onnx")
    assert tool.main(arguments(exported, tmp_path / "other.onnx")) == 2
    assert "holds a QMambaIRUNet, the checkpoint a QMambaIR" in capsys.readouterr().err


def test_nodes_are_named_after_modules_and_carry_no_notes(exported):
    model = onnx.load(exported["frozen.onnx"])
    names = [node.name for node in model.graph.node]
    assert "layers.0.conv.act/QuantizeLinear" in names and len(set(names)) == len(names)
    assert f"{BLOCK}.projections.dt_projs.3.weight/DequantizeLinear" in names
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_codes_are_compared_in_as_many_runs_as_memory_asks_for(exported, monkeypatch):
    image = load_samples(exported["inputs"], None, 3, 2, 1)[0].image[..., :16, :24].contiguous()
    artifact = open_artifact(exported["frozen.onnx"], exported.net)
    runs = []

    def track(groups):
        runs.append(len(groups))
        return groups

    together = artifact.activations(image, track)
    monkeypatch.setattr("qmambair_basicsr.artifacts.onnx.codes.RUN_BYTES", 400_000)
    assert artifact.activations(image, track) == together
    assert runs[0] == 1 and runs[1] > 3


def test_captured_codes_know_what_is_not_finite(exported):
    """NaN has no code, though an integer type gives it one: both networks would agree on it."""
    image = load_samples(exported["inputs"], None, 3, 2, 1)[0].image[..., :16, :24].clone()
    image[0, 1, 3, 5] = float("nan")
    codes = captured_codes(exported.net, image)
    broken = {name: sum(int((call == NO_CODE).sum()) for call in calls) for name, calls in codes.items()}
    assert all(count > 0 for count in broken.values())
    artifact = open_artifact(exported["net.safetensors"], exported.net)
    checks = artifact.activations(image, iter)
    assert [check.not_finite for check in checks] == [broken[check.name] for check in checks]
    assert all(check.whole_network < check.count for check in checks)


@pytest.mark.parametrize(
    ("kind", "value"), [("frozen", np.nan), ("frozen", np.inf), ("half", np.nan), ("exact", -np.inf)]
)
def test_an_output_that_is_not_finite_is_not_verified(exported, exported_case, tmp_path, capsys, kind, value):
    """One pixel of the output, behind the last code: all codes are equal and every comparison with NaN is false."""
    source = exported_case("light x2 w4a4", "frozen", "fp16")[1] if kind == "half" else exported[f"{kind}.onnx"]
    model = onnx.load(source)
    shape = [d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    spoilt = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(model.graph.output[0].type.tensor_type.elem_type))
    spoilt[0, 0, 2, 3] = value
    model.graph.initializer.append(numpy_helper.from_array(spoilt, "spoilt"))
    last = next(node for node in model.graph.node if "output" in node.output)
    last.output[list(last.output).index("output")] = "before"
    model.graph.node.append(onnx.helper.make_node("Add", ["before", "spoilt"], ["output"], name="spoil"))
    onnx.save(model, tmp_path / "spoilt.onnx")
    twins = [exported["exact.onnx"]] if kind == "frozen" else []  # which prove what rounding is allowed for
    command = [*arguments(exported, *twins, tmp_path / "spoilt.onnx"), "--count", "1", "--truth", exported["truth"]]
    assert tool.main([*command, "--output", str(tmp_path / "report")]) == 1
    assert "- spoilt.onnx: output of the file for p0x2 holds NaN or infinity" in capsys.readouterr().out
    spoilt_row = json.loads((tmp_path / "report.json").read_text())["rows"][-1]
    assert spoilt_row["verdict"] == verify.NOT_VERIFIED
    assert spoilt_row["psnr"] == {"min": None, "mean": None, "equal": False}
    assert spoilt_row["truth_psnr"] is None


def test_a_network_that_is_not_finite_verifies_nothing(exported, tmp_path, capsys):
    """A packed file and the network in it agree in every bit, and compute NaN."""
    net = calibrated(CASES["light x2 w4a4"])
    with torch.no_grad():
        net.conv_first.bias[0] = 3e38  # finite itself, as checkpoints with NaN are not even opened
    save_packed(net, CASES["light x2 w4a4"], tmp_path / "nan.safetensors")
    command = arguments(exported, tmp_path / "nan.safetensors")
    command[command.index("--checkpoint") + 1] = str(tmp_path / "nan.safetensors")
    assert tool.main(command) == 1
    said = capsys.readouterr().out
    assert "output of the network for p0x2 holds NaN or infinity" in said
    assert "activations meet NaN or infinity" in said


@pytest.mark.parametrize("psnr", [[40.0, np.nan], [np.nan, 40.0], [np.inf, np.nan]])
def test_a_psnr_that_is_not_a_number_is_never_enough(psnr):
    spread = verify._spread(psnr)
    assert spread == {"min": None, "mean": None, "equal": False}
    assert verify.judge(row() | {"psnr": spread}, 30.0, True)[0] == verify.NOT_VERIFIED
    assert verify.judge(row() | {"psnr": {"min": np.nan, "equal": False}}, 30.0, True)[0] == verify.NOT_VERIFIED
