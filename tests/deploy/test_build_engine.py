"""deploy/build_engine.sh against a fake trtexec that behaves like TensorRT 10.3 and 11.4."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="looking into a graph needs the onnx package (extra: export)")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "deploy" / "build_engine.sh"


def write_graph(
    path: Path, *, qdq: bool = True, dynamic: bool = True, half: bool = False, custom: bool = False, **facts: str
) -> Path:
    """A small conv network; ``facts`` are what tools.export notes in the metadata."""
    size = ["h", "w"] if dynamic else [64, 48]
    kind = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    weight = np.ones((3, 3, 3, 3), np.float16 if half else np.float32)
    nodes, source = [], "input"
    if qdq:
        nodes += [
            helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dq"]),
        ]
        source = "dq"
    nodes.append(helper.make_node("Conv", [source, "weight"], ["conv"], pads=[1, 1, 1, 1]))
    nodes.append(
        helper.make_node(
            "SelectiveScan4D" if custom else "Relu", ["conv"], ["output"], domain="qmambair" if custom else ""
        )
    )
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("input", kind, [1, 3, *size])],
        [helper.make_tensor_value_info("output", kind, [1, 3, *size])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.array(0.1, weight.dtype), "scale"),
            numpy_helper.from_array(np.array(0, np.int8), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("qmambair", 1)])
    if facts:
        helper.set_model_props(model, facts)
    onnx.save(model, path)
    return path


@pytest.fixture
def fake(tmp_path):
    """A folder with an executable ``trtexec``, to be put on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    target = folder / "trtexec"
    target.write_text(
        f"#!{sys.executable}\n" + (Path(__file__).parent / "fake_trtexec.py").read_text().split("\n", 1)[1]
    )
    target.chmod(0o755)
    return folder


def run(*args, fake=None, version="10.3", mode="ok"):
    """Run the shell script; returns the finished process."""
    env = dict(os.environ, FAKE_TRT=version, FAKE_MODE=mode, PYTHON=sys.executable)
    if fake:
        env["PATH"] = f"{fake}{os.pathsep}{env['PATH']}"
    return subprocess.run([str(SCRIPT), *map(str, args)], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_int8_build_writes_plan_log_and_manifest(tmp_path, fake, version):
    facts = {"arch": "QMambaIR", "bits": "w4a2", "scan": "onnx, chunk 64", "dls": "frozen", "params": "905012"}
    graph = write_graph(tmp_path / "net.onnx", precision="fp32", **facts)
    done = run("--onnx", graph, "--timing-cache", tmp_path / "cache", fake=fake, version=version)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "net.int8"
    manifest = json.loads(out.with_name("net.int8.json").read_text())
    plan = out.with_name("net.int8.plan")
    assert manifest["model"]["engine_sha256"] == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert manifest["model"]["onnx_sha256"] == hashlib.sha256(graph.read_bytes()).hexdigest()
    noted = {
        "arch": "QMambaIR",
        "bits_w": 4,
        "bits_a": 2,
        "scan_impl": "onnx, chunk 64",
        "dls": "frozen",
        "params": 905012,
    }
    assert noted.items() <= manifest["model"].items()
    assert manifest["build"]["tensorrt"].startswith(version)
    assert (manifest["build"]["int8_layers"], manifest["build"]["float_layers"]) == (1, 1)
    command = manifest["build"]["cmd"]
    for flag in (
        "--optShapes=input:1x3x256x256",
        "--memPoolSize=workspace:4096M",
        "--builderOptimizationLevel=1",
        "--timingCacheFile=",
    ):
        assert flag in command
    assert ("--int8" in command) == version.startswith("10")
    assert "PASSED" in out.with_name("net.int8.log").read_text()
    assert "Int8 layers 1" in done.stdout
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("version", ["10.3", "11.4"])
def test_fp16(tmp_path, fake, version):
    single, half = (
        write_graph(tmp_path / "single.onnx", qdq=False),
        write_graph(tmp_path / "half.onnx", qdq=False, half=True),
    )
    done = run("--onnx", single, "--precision", "fp16", fake=fake, version=version)
    if version == "10.3":
        assert done.returncode == 0
    else:
        assert done.returncode == 2 and "FP16 must be in the graph" in done.stderr
    assert run("--onnx", half, "--precision", "fp16", fake=fake, version=version).returncode == 0


@pytest.mark.parametrize(
    ("version", "precision", "noted"), [("11.4", "fp32", True), ("11.4", "fp16", False), ("10.3", "fp32", False)]
)
def test_int8_graph_that_computes_the_rest_in_fp32_is_noted(tmp_path, fake, version, precision, noted):
    graph = write_graph(tmp_path / "net.onnx", precision=precision)
    done = run("--onnx", graph, "--dry-run", fake=fake, version=version)
    assert done.returncode == 0 and ("export with --fp16" in done.stderr) == noted


def test_options_reach_trtexec(tmp_path, fake):
    graph, plugin = write_graph(tmp_path / "net.onnx", custom=True), tmp_path / "libscan.so"
    plugin.write_bytes(b"so")
    done = run(
        "--onnx", graph, "--workspace", "8192M", "--opt-level", 3, "--plugin", plugin,
        "--opt-shapes", "input:1x3x320x180", "--min-shapes", "input:1x3x64x64",
        "--max-shapes", "input:1x3x512x512", "--extra=--verbose",
        "--dry-run", fake=fake,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for flag in (
        "--memPoolSize=workspace:8192M", "--builderOptimizationLevel=3", f"--staticPlugins={plugin}",
        "--optShapes=input:1x3x320x180", "--minShapes=input:1x3x64x64", "--maxShapes=input:1x3x512x512", "--verbose",
    ):  # fmt: skip
        assert flag in done.stdout
    assert not (tmp_path / "net.int8.plan").exists()


REFUSALS = {
    "int8 without Q/DQ": ({"qdq": False}, ["--precision", "int8"], "10.3", "dummy ranges"),
    "fp16 of a Q/DQ graph": ({}, ["--precision", "fp16"], "10.3", "Q/DQ nodes, which force INT8"),
    "fp32 of an FP16 graph": ({"qdq": False, "half": True}, ["--precision", "fp32"], "11.4", "computes in FP16"),
    "FP64 graph": ({"precision": "fp64"}, [], "10.3", "is in FP64, for tools.verify only"),
    "shapes on a static graph": ({"dynamic": False}, ["--opt-shapes", "input:1x3x64x48"], "10.3", "static shapes"),
    "unknown input": ({}, ["--opt-shapes", "lq:1x3x64x48"], "10.3", "input 'lq'"),
    "wrong rank": ({}, ["--opt-shapes", "input:3x64x48"], "10.3", "does not fit"),
    "wrong channels": ({}, ["--opt-shapes", "input:1x1x64x48"], "10.3", "does not fit"),
    "malformed shape": ({}, ["--opt-shapes", "input:1,3,64"], "10.3", "--opt-shapes"),
    "zero size": ({}, ["--opt-shapes", "input:1x3x0x64"], "10.3", "is written like"),
    "workspace": ({}, ["--workspace", "lots"], "10.3", "write a size like 4096M"),
    "missing plugin": ({"custom": True}, [], "10.3", "needs a plugin for SelectiveScan4D"),
    "plugin file": ({"custom": True}, ["--plugin", "nowhere.so"], "10.3", "no such file: --plugin nowhere.so"),
    "old TensorRT": ({}, [], "8.6", "TensorRT 8.6.1 is older than 10.3"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(tmp_path, fake, case):
    graph, args, version, message = REFUSALS[case]
    done = run("--onnx", write_graph(tmp_path / "net.onnx", **graph), *args, fake=fake, version=version)
    assert done.returncode == 2, done.stdout + done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("*.plan*"))


def test_static_graph_builds_without_shapes(tmp_path, fake):
    done = run("--onnx", write_graph(tmp_path / "net.onnx", dynamic=False), fake=fake)
    assert done.returncode == 0, done.stderr
    assert "optShapes" not in json.loads((tmp_path / "net.int8.json").read_text())["build"]["cmd"]


def test_missing_trtexec_and_bad_files(tmp_path, fake):
    graph = write_graph(tmp_path / "net.onnx")
    if not any(shutil.which(p) for p in ("trtexec", "/usr/src/tensorrt/bin/trtexec")):
        done = run("--onnx", graph)
        assert done.returncode == 2 and "trtexec was found neither" in done.stderr
    assert "no such file" in run("--onnx", tmp_path / "gone.onnx", fake=fake).stderr
    (tmp_path / "junk.onnx").write_bytes(b"\x00\xffnot a graph")
    done = run("--onnx", tmp_path / "junk.onnx", fake=fake)
    assert done.returncode == 2 and "junk.onnx" in done.stderr
    (tmp_path / "empty.onnx").write_bytes(b"")
    assert "holds no graph" in run("--onnx", tmp_path / "empty.onnx", fake=fake).stderr


FAILURES = {
    "oom": "lower --workspace",
    "killed": "out of memory",
    "parse": "could not parse the graph",
    "plugin": "give the plugin with --plugin",
    "silent": "wrote no engine",
}


@pytest.mark.parametrize("mode", FAILURES)
def test_failed_build_keeps_the_old_plan(tmp_path, fake, mode):
    graph, old = write_graph(tmp_path / "net.onnx"), tmp_path / "net.int8.plan"
    old.write_bytes(b"yesterday's engine")
    done = run("--onnx", graph, fake=fake, mode=mode)
    assert done.returncode == 1 and FAILURES[mode] in done.stderr, done.stderr
    assert old.read_bytes() == b"yesterday's engine"
    assert not list(tmp_path.glob("*.part"))


def test_option_that_this_version_dropped_is_explained(tmp_path, fake):
    done = run("--onnx", write_graph(tmp_path / "net.onnx"), "--extra=--best", fake=fake, version="11.4")
    assert done.returncode == 1 and "does not know an option" in done.stderr and "--best" in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_leaves_no_plan(tmp_path, fake, sent):
    env = dict(os.environ, FAKE_MODE="hang", PYTHON=sys.executable, PATH=f"{fake}{os.pathsep}{os.environ['PATH']}")
    graph = write_graph(tmp_path / "net.onnx")
    child = subprocess.Popen(
        [str(SCRIPT), "--onnx", str(graph)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    part, deadline = tmp_path / "net.int8.plan.part", time.time() + 30
    while not part.exists() and time.time() < deadline:
        time.sleep(0.05)
    assert part.exists(), "the build never started"
    child.send_signal(sent)
    _, err = child.communicate(timeout=30)
    assert child.returncode == 130 and "interrupted" in err
    assert not part.exists() and not (tmp_path / "net.int8.plan").exists()


def test_version_newer_than_known_is_said(tmp_path, fake):
    done = run("--onnx", write_graph(tmp_path / "net.onnx"), fake=fake, version="12.0")
    assert done.returncode == 0 and "newer than 11.4" in done.stderr
