"""Build a TensorRT engine with trtexec, from TensorRT 10.3 (JetPack 6) to 11.4 (JetPack 7.2.2).

Looks at the graph and at trtexec's version before anything is built, refuses what would yield a meaningless
engine, and writes the plan, the log and a JSON manifest; an interrupted or failed build leaves no plan behind.

What differs between the versions (NVIDIA's 10.x to 11.x migration guide):

- 10.x takes ``--fp16`` and ``--int8``; 11.x removed them: every network is strongly typed, so FP16 must be in the
  graph and INT8 is the graph's Q/DQ nodes.
- ``--int8`` without Q/DQ nodes makes trtexec 10.x install dummy ranges: the engine runs, its output is meaningless.
  This script never builds that.

Needs python3 (standard library) and ``onnx`` to look into the graph. Imports nothing from qmambair_basicsr.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import re
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from onnx_graph import BuildRefused, Graph, read_graph
from trtexec import BuildFailed, count_layers, dotted, explain_failure, find_trtexec, run_logged, trtexec_version
from whole_files import write_text

SCHEMA_VERSION = 1
OLDEST, NEWEST = (10, 3), (11, 4)  # the versions this script was written against
EXIT_REFUSED, EXIT_FAILED, EXIT_INTERRUPTED = 2, 1, 130


@dataclass(frozen=True)
class Request:
    """One build, as asked for on the command line."""

    graph: Graph
    precision: str
    opt_shapes: str | None
    min_shapes: str | None
    max_shapes: str | None
    shapes_given: bool
    workspace: str
    opt_level: int
    plugins: tuple[Path, ...]
    timing_cache: Path | None
    extra: tuple[str, ...] = ()


def check_shapes(request: Request) -> None:
    """Refuse shapes that do not fit the graph's inputs.

    Raises:
        BuildRefused: shapes for a static graph, an unknown input, a wrong rank, or a fixed dimension changed.
    """
    graph = request.graph
    if not graph.dynamic:
        if request.shapes_given:
            fixed = ", ".join(f"{name}:{'x'.join(map(str, dims))}" for name, dims in graph.inputs.items())
            raise BuildRefused(
                f"{graph.path} has static shapes ({fixed}); TensorRT refuses --optShapes for it. Leave the shape "
                "options out, or export with dynamic height and width "
                "(python -m qmambair_basicsr.tools.export --dynamic)"
            )
        return
    for option, text in (
        ("--opt-shapes", request.opt_shapes),
        ("--min-shapes", request.min_shapes),
        ("--max-shapes", request.max_shapes),
    ):
        for part in (text or "").split(",") if text else ():
            name, _, size = part.rpartition(":")
            if name not in graph.inputs:
                raise BuildRefused(f"{option} names input '{name}', the graph has {', '.join(graph.inputs)}")
            if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", size):
                raise BuildRefused(f"{option} {part}: a shape is written like {name}:1x3x256x256")
            dims = [int(n) for n in size.split("x")]
            expected = graph.inputs[name]
            if len(dims) != len(expected) or any(e not in (None, d) for d, e in zip(dims, expected, strict=True)):
                shown = "x".join("?" if e is None else str(e) for e in expected)
                raise BuildRefused(f"{option} {part} does not fit the graph's input {name}:{shown} (? may be chosen)")


def trtexec_flags(request: Request, version: tuple[int, int, int]) -> list[str]:
    """The trtexec options of a build, without paths of what it writes.

    Raises:
        BuildRefused: the combination gives no meaningful engine on this version.
    """
    graph, old = request.graph, version[0] < 11
    if version[:2] < OLDEST:
        raise BuildRefused(
            f"TensorRT {dotted(version)} is older than {dotted(OLDEST)}, the oldest this script supports"
        )
    if request.precision == "int8" and not graph.qdq_nodes:
        raise BuildRefused(
            f"{graph.path} has no QuantizeLinear/DequantizeLinear nodes: an INT8 engine of it would run on dummy "
            "ranges and its output would be meaningless. Export the graph with Q/DQ "
            "(python -m qmambair_basicsr.tools.export --dls frozen)"
        )
    if request.precision in ("fp16", "fp32") and graph.qdq_nodes:
        raise BuildRefused(
            f"{graph.path} has {graph.qdq_nodes} Q/DQ nodes, which force INT8 arithmetic: build it with --precision "
            f"int8, or export the FP network for a {request.precision} engine"
        )
    if not old and request.precision == "fp16" and not graph.float16:
        raise BuildRefused(
            f"TensorRT {dotted(version)} has no --fp16: FP16 must be in the graph, and {graph.path} computes in FP32. "
            "Export it with --fp16 (python -m qmambair_basicsr.tools.export) or build --precision fp32"
        )
    if request.precision == "fp32" and graph.float16:
        raise BuildRefused(f"{graph.path} computes in FP16: build it with --precision fp16, or export without --fp16")
    if graph.custom_ops and not request.plugins:
        raise BuildRefused(
            f"{graph.path} needs a plugin for {', '.join(graph.custom_ops)}: build kernels/tensorrt and give "
            "--plugin FILE.so"
        )
    check_shapes(request)
    flags = []
    if old:
        flags += {"fp32": [], "fp16": ["--fp16"], "int8": ["--int8", "--fp16"]}[request.precision]
    if graph.dynamic:
        for option, text in (
            ("optShapes", request.opt_shapes),
            ("minShapes", request.min_shapes),
            ("maxShapes", request.max_shapes),
        ):
            if text:
                flags.append(f"--{option}={text}")
    flags += [f"--memPoolSize=workspace:{request.workspace}", f"--builderOptimizationLevel={request.opt_level}"]
    flags += [f"--staticPlugins={plugin}" for plugin in request.plugins]
    if request.timing_cache:
        flags.append(f"--timingCacheFile={request.timing_cache}")
    return [*flags, "--skipInference", "--profilingVerbosity=detailed", *request.extra]


def sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def build(request: Request, trtexec: Path, version: tuple[int, int, int], out: Path, quiet: bool = False) -> dict:
    """Build the engine; write ``<out>.plan``, ``<out>.log``, ``<out>.json`` and return the manifest.

    Raises:
        BuildFailed: trtexec failed, or wrote no engine.
    """
    plan, log, manifest_path = (out.with_name(out.name + ending) for ending in (".plan", ".log", ".json"))
    part, layers = out.with_name(out.name + ".plan.part"), out.with_name(out.name + ".layers.json")
    out.parent.mkdir(parents=True, exist_ok=True)
    flags = trtexec_flags(request, version)
    command = [
        str(trtexec),
        f"--onnx={request.graph.path}",
        f"--saveEngine={part}",
        *flags,
        f"--exportLayerInfo={layers}",
    ]
    started = time.time()
    try:
        code, text = run_logged(command, log, quiet)
        if code != 0:
            raise BuildFailed(f"{explain_failure(text, code)} Log: {log}")
        if not part.is_file() or part.stat().st_size == 0:
            raise BuildFailed(f"trtexec reported success but wrote no engine. Log: {log}")
        seconds = time.time() - started
        part.replace(plan)
    finally:
        part.unlink(missing_ok=True)
    graph = request.graph
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "model": {
            "onnx": graph.path.name,
            "onnx_sha256": sha256(graph.path),
            "engine": plan.name,
            "engine_sha256": sha256(plan),
            "engine_bytes": plan.stat().st_size,
            "opset": graph.opset,
            **graph.model_facts(),
            "inputs": graph.inputs,
            "qdq_nodes": graph.qdq_nodes,
            "custom_ops": graph.custom_ops,
            "float16": graph.float16,
        },
        "build": {
            "cmd": shlex.join(command),
            "tensorrt": dotted(version),
            "precision": request.precision,
            "opt_shapes": request.opt_shapes if graph.dynamic else None,
            "min_shapes": request.min_shapes,
            "max_shapes": request.max_shapes,
            "workspace": request.workspace,
            "opt_level": request.opt_level,
            "plugins": {str(p): sha256(p) for p in request.plugins},
            "seconds": round(seconds, 1),
            **(count_layers(layers) or {"int8_layers": None, "float_layers": None}),
        },
        "host": {"machine": platform.machine(), "system": platform.platform(), "python": platform.python_version()},
    }
    write_text(manifest_path, json.dumps(manifest, indent=2) + "\n")
    return manifest


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="build_engine.sh", description="Build a TensorRT engine from an exported ONNX graph."
    )
    parser.add_argument("--onnx", type=Path, required=True, help="the exported graph")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16", "int8"), default="int8", help="int8 needs a graph with Q/DQ"
    )
    parser.add_argument(
        "--output", type=Path, help="path without ending; default: beside the graph, <name>.<precision>"
    )
    parser.add_argument("--opt-shapes", help="default for a dynamic graph: <its input>:1x3x256x256 (its own channels)")
    parser.add_argument("--min-shapes", help="default: as --opt-shapes")
    parser.add_argument("--max-shapes", help="default: as --opt-shapes")
    parser.add_argument("--workspace", default="4096M", help="e.g. 4096M or 8192M (default 4096M)")
    parser.add_argument(
        "--opt-level",
        type=int,
        choices=range(6),
        default=1,
        help="builderOptimizationLevel; default 1, TensorRT's own is 3",
    )
    parser.add_argument("--plugin", type=Path, action="append", default=[], help="plugin library, may be repeated")
    parser.add_argument("--timing-cache", type=Path, help="file that later builds reuse")
    parser.add_argument("--trtexec", help="default: PATH, then where JetPack installs it")
    parser.add_argument("--quiet", action="store_true", help="log to the file only")
    parser.add_argument("--dry-run", action="store_true", help="print the trtexec command and stop")
    parser.add_argument(
        "--extra", action="append", default=[], metavar="FLAG", help="handed to trtexec as it is: --extra=--verbose"
    )
    return parser.parse_args(argv)


def make_request(args: argparse.Namespace) -> Request:
    """Check the arguments against the graph.

    Raises:
        BuildRefused: a file is missing or a value is malformed.
    """
    if not re.fullmatch(r"[1-9]\d*[BKMG]?", args.workspace):
        raise BuildRefused(
            f"--workspace {args.workspace}: write a size like 4096M (B, K, M or G; MiB without a letter)"
        )
    for plugin in args.plugin:
        if not plugin.is_file():
            raise BuildRefused(f"no such file: --plugin {plugin}. Build it with make -C kernels/tensorrt")
    graph = read_graph(args.onnx)
    default = ",".join(
        f"{name}:" + "x".join(str(d or fallback) for d, fallback in zip(dims, (1, 3, 256, 256), strict=False))
        for name, dims in graph.inputs.items()
    )
    return Request(
        graph=graph,
        precision=args.precision,
        opt_shapes=args.opt_shapes or default,
        min_shapes=args.min_shapes,
        max_shapes=args.max_shapes,
        shapes_given=any((args.opt_shapes, args.min_shapes, args.max_shapes)),
        workspace=args.workspace,
        opt_level=args.opt_level,
        plugins=tuple(p.resolve() for p in args.plugin),
        timing_cache=args.timing_cache,
        extra=tuple(args.extra),
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit status (0 built, 1 failed, 2 refused, 130 interrupted)."""
    args = parse_arguments(argv)
    for sent in (signal.SIGINT, signal.SIGTERM):  # shells start background jobs with SIGINT ignored
        signal.signal(sent, signal.default_int_handler)
    try:
        request = make_request(args)
        trtexec = find_trtexec(args.trtexec)
        version = trtexec_version(trtexec)
        if version[:2] > NEWEST:
            sys.stderr.write(
                f"build_engine: TensorRT {dotted(version)} is newer than {dotted(NEWEST)}, the newest known here\n"
            )
        if version >= (11,) and request.precision == "int8" and not request.graph.float16:
            sys.stderr.write(
                f"build_engine: {args.onnx} computes in FP32 what is not quantized, and TensorRT {dotted(version)} "
                "changes no precision; export with --fp16 for a faster engine\n"
            )
        out = args.output or args.onnx.with_name(f"{args.onnx.stem}.{args.precision}")
        if args.dry_run:
            sys.stdout.write(shlex.join([str(trtexec), f"--onnx={args.onnx}", *trtexec_flags(request, version)]) + "\n")
            return 0
        manifest = build(request, trtexec, version, out, args.quiet)
    except BuildRefused as err:
        sys.stderr.write(f"build_engine: refused: {err}\n")
        return EXIT_REFUSED
    except BuildFailed as err:
        sys.stderr.write(f"build_engine: failed: {err}\n")
        return EXIT_FAILED
    except KeyboardInterrupt:
        sys.stderr.write("build_engine: interrupted; nothing was kept but the log\n")
        return EXIT_INTERRUPTED
    made = manifest["build"]
    sys.stdout.write(
        f"engine {out.name}.plan: TensorRT {made['tensorrt']}, {made['precision']}, {made['seconds']} s, "
        f"{manifest['model']['engine_bytes'] / 2**20:.1f} MiB, Int8 layers {made['int8_layers']}, "
        f"other {made['float_layers']}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
