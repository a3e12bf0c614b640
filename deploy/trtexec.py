"""Finding trtexec, asking for its version, running it, and reading what it left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from onnx_graph import BuildRefused

TRTEXEC_PLACES = ("/usr/src/tensorrt/bin/trtexec", "/usr/local/tensorrt/bin/trtexec", "/opt/tensorrt/bin/trtexec")


class BuildFailed(Exception):
    """trtexec ran and failed; the message says what its log shows."""


def find_trtexec(given: str | None) -> Path:
    """The trtexec to use: ``--trtexec``, then PATH, then where JetPack installs it.

    Raises:
        BuildRefused: there is none.
    """
    if given:
        found = shutil.which(given)
        if not found:
            raise BuildRefused(f"--trtexec {given} is not an executable file")
        return Path(found)
    for candidate in ("trtexec", *TRTEXEC_PLACES):
        if found := shutil.which(candidate):
            return Path(found)
    raise BuildRefused(
        "trtexec was found neither on PATH nor in " + ", ".join(TRTEXEC_PLACES) + ". On a Jetson install it with "
        "'sudo apt install tensorrt libnvinfer-bin', elsewhere add TensorRT's bin folder to PATH or give --trtexec"
    )


def parse_version(text: str) -> tuple[int, int, int]:
    """TensorRT's version from trtexec's banner, e.g. ``[TensorRT v100300]`` -> (10, 3, 0).

    Up to 8.6 the number is major * 1000 + minor * 100 + patch; since 10 it is major * 10000 + minor * 100 + patch.

    Raises:
        BuildRefused: no banner in the text.
    """
    match = re.search(r"\[TensorRT v(\d+)\]", text)
    if not match:
        raise BuildRefused(
            "trtexec printed no '[TensorRT v...]' banner, so its version is unknown. It printed:\n" + text[:400]
        )
    number = int(match.group(1))
    if number < 100_000:
        return number // 1000, number // 100 % 10, number % 100
    return number // 10_000, number // 100 % 100, number % 100


def trtexec_version(trtexec: Path) -> tuple[int, int, int]:
    """Ask a trtexec for its version (from the banner that every call prints)."""
    try:
        done = subprocess.run([str(trtexec), "--help"], capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as err:
        raise BuildRefused(f"{trtexec} does not run: {err}") from err
    return parse_version(done.stdout + done.stderr)


def dotted(version: tuple[int, ...]) -> str:
    """(10, 3, 0) -> '10.3.0'."""
    return ".".join(map(str, version))


def count_layers(path: Path) -> dict[str, int] | None:
    """INT8 and floating-point layers of a trtexec ``--exportLayerInfo`` file; None when there is no such file.

    A layer counts as INT8 when one of its inputs is an Int8 tensor.
    """
    try:
        layers = json.loads(path.read_text())["Layers"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    kinds = {"int8_layers": 0, "float_layers": 0}
    for layer in layers:
        if not isinstance(layer, dict) or not layer.get("Inputs"):
            continue
        formats = [str(t.get("Format/Datatype", t.get("Datatype", ""))) for t in layer["Inputs"]]
        kinds["int8_layers" if any("int8" in f.lower() for f in formats) else "float_layers"] += 1
    return kinds


def explain_failure(log: str, code: int) -> str:
    """Diagnosis of a failed build's log, in one sentence with the remedy."""
    lowered = log.lower()
    errors = [line.strip() for line in log.splitlines() if "[E]" in line]
    last = f" trtexec's last error: {errors[-1]}" if errors else ""
    if code in (-9, 137) or "out of memory" in lowered or "outofmemory" in lowered or "cuda failure: 2" in lowered:
        return (
            "out of memory while building. Close other programs, lower --workspace (an 8 GB Orin Nano cannot give "
            "8192M), add swap, or build at a smaller --opt-shapes." + last
        )
    if "unknown option" in lowered or "unrecognized option" in lowered:
        return "this trtexec does not know an option it was given." + last
    if "getplugincreator" in lowered or "plugin not found" in lowered or "no importer registered for op" in lowered:
        return "an operator of the graph has no implementation: give the plugin with --plugin FILE.so." + last
    if "failed to parse" in lowered or "parsing model failed" in lowered:
        return "TensorRT could not parse the graph." + last
    return f"trtexec ended with status {code}." + last


def run_logged(command: list[str], log: Path, quiet: bool) -> tuple[int, str]:
    """Run a command with its output on the screen and in a file; the child dies with this process's signals."""
    with log.open("w") as stream:
        stream.write("# " + shlex.join(command) + "\n")
        child = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        lines = []
        try:
            for line in child.stdout:
                stream.write(line)
                stream.flush()
                lines.append(line)
                if not quiet:
                    sys.stdout.write(line)
                    sys.stdout.flush()
            return child.wait(), "".join(lines)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
