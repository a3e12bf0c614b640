#!/usr/bin/env python3
"""Stands in for trtexec in tests: knows the options of TensorRT 10.3 or 11.4 and fails in the ways the real one does.

Environment: FAKE_TRT=10.3|11.4, FAKE_MODE=ok|oom|killed|parse|plugin|silent|hang.
"""

import json
import os
import sys
import time

VERSIONS = {"8.6": "8601", "10.3": "100300", "11.4": "110401", "12.0": "120000"}
COMMON = {
    "onnx", "saveEngine", "optShapes", "minShapes", "maxShapes", "memPoolSize", "builderOptimizationLevel",
    "staticPlugins", "timingCacheFile", "skipInference", "profilingVerbosity", "exportLayerInfo", "help", "verbose",
}  # fmt: skip
REMOVED_IN_11 = {"fp16", "int8", "bf16", "best", "calib"}


def main() -> int:
    version, mode = os.environ.get("FAKE_TRT", "10.3"), os.environ.get("FAKE_MODE", "ok")
    sys.stdout.write(f"&&&& RUNNING TensorRT.trtexec [TensorRT v{VERSIONS[version]}] # {' '.join(sys.argv)}\n")
    options = dict(arg[2:].partition("=")[::2] for arg in sys.argv[1:])
    if "help" in options:
        return 0
    known = COMMON if version.startswith(("11", "12")) else COMMON | REMOVED_IN_11
    if unknown := sorted(set(options) - known):
        sys.stdout.write(f"[01/01/2026-00:00:00] [E] Unknown option: --{unknown[0]}\n&&&& FAILED TensorRT.trtexec\n")
        return 1
    with open(options["saveEngine"], "wb") as stream:
        stream.write(b"half")
    if mode == "oom":
        sys.stdout.write(
            "[E] Error[2]: [virtualMemoryBuffer.cpp] Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)\n"
        )
        return 1
    if mode == "killed":
        os.kill(os.getpid(), 9)
    if mode == "parse":
        sys.stdout.write("[E] [TRT] ModelImporter.cpp:950: ERROR: invalid node\n[E] Failed to parse onnx file\n")
        return 1
    if mode == "plugin":
        sys.stdout.write("[E] [TRT] getPluginCreator could not find plugin: SelectiveScan4D version: 1\n")
        return 1
    if mode == "hang":
        sys.stdout.write("[I] building\n")
        sys.stdout.flush()
        time.sleep(60)
    if mode == "silent":
        os.remove(options["saveEngine"])
        return 0
    with open(options["saveEngine"], "wb") as stream:
        stream.write(b"engine of " + version.encode())
    if "exportLayerInfo" in options:
        layers = [
            {"Name": "conv", "Inputs": [{"Name": "a", "Format/Datatype": "Int8 NC/32HW32"}]},
            {"Name": "norm", "Inputs": [{"Name": "b", "Format/Datatype": "Row major linear FP32"}]},
            {"Name": "constant", "Inputs": []},
        ]
        with open(options["exportLayerInfo"], "w") as stream:
            json.dump({"Layers": layers, "Bindings": []}, stream)
    sys.stdout.write("&&&& PASSED TensorRT.trtexec\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
