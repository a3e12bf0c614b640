"""Benchmark TensorRT engines on a Jetson: latency, throughput, memory, power, temperature, accuracy.

    python3 deploy/benchmark_jetson.py --engine net.int8.plan --engine net.fp16.plan --reference refs/

Several engines run in interleaved rounds (each round gives every engine its share, in rotating order), so that clocks
and temperature drift over all of them alike. ``--reference`` is a folder of ``.npz`` files with the arrays
``input`` and ``output`` (what the ONNX graph gives on real images): the engine's output on each input is compared.

Imports numpy, tensorrt and pycuda or cuda-python; nothing of qmambair_basicsr.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import numpy as np
from bench_report import SCHEMA_VERSION, markdown, psnr, summarize, write_json
from board import board_state, monitor, throttle_alerts
from trt_runtime import EngineRunner, RuntimeUnavailable
from whole_files import write_text

MODEL_FACTS = ("onnx_sha256", "engine_sha256", "opset", "arch", "bits_w", "bits_a", "scan_impl", "dls", "params")
"""Entries that the report takes over from the manifest of an engine."""


class BenchmarkError(Exception):
    """A wrong argument or input file; the message names it and says what to do."""


def load_references(folder: Path | None) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """The (name, input, output) triples of a reference folder, sorted by name.

    Raises:
        BenchmarkError: the folder is empty or a file is not a reference.
    """
    if folder is None:
        return []
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise BenchmarkError(
            f"--reference {folder} holds no .npz file; write them with numpy.savez(FILE, input=..., output=...) from an onnxruntime run"
        )
    triples = []
    for file in files:
        try:
            with np.load(file, allow_pickle=False) as stored:
                triples.append((file.stem, stored["input"], stored["output"]))
        except Exception as err:
            raise BenchmarkError(f"{file} is not a reference (arrays `input` and `output`): {err}") from err
    return triples


def engine_facts(engine: Path) -> dict:
    """Name and manifest facts of an engine (build_engine.sh writes the manifest beside it); absent ones are None."""
    manifest_file = engine.with_suffix(".json")
    manifest = json.loads(manifest_file.read_text()) if manifest_file.is_file() else {}
    model, build = manifest.get("model", {}), manifest.get("build", {})
    return {
        "model": {
            "name": engine.name.removesuffix(".plan"),
            **{key: model.get(key) for key in MODEL_FACTS},
        },
        "build": {
            k: build.get(k)
            for k in ("cmd", "precision", "opt_level", "workspace", "seconds", "int8_layers", "float_layers")
        },
    }


def check_accuracy(runner, references) -> dict | None:
    """Compare with the ONNX outputs whose inputs fit the runner's shape; None when there are none."""
    worst, largest, names = [], 0.0, []
    for name, array, expected in references:
        if array.shape != runner.shape:
            continue
        output = runner.infer(array)
        if output.shape != expected.shape:
            raise BenchmarkError(f"reference {name} has output shape {expected.shape}, the engine gives {output.shape}")
        for whose, values in (("the reference", expected), ("the engine's output", output)):
            if not np.isfinite(values).all():
                raise BenchmarkError(f"reference {name}: {whose} holds NaN or infinity")
        worst.append(psnr(output, expected))
        largest = max(largest, float(np.abs(output - expected).max()))
        names.append(name)
    if not names:
        return None
    finite = [value for value in worst if value is not None]
    return {
        "psnr_vs_onnx": round(min(finite), 3) if finite else None,
        "equal": not finite,
        "max_abs_err": largest,
        "images": names,
    }


def measure(configurations, rounds: int, iters: int, warmup: int, board, progress=None) -> list[dict]:
    """Time every configuration in interleaved rounds.

    Args:
        configurations: (label, runner) pairs; a runner has ``time(transfers)``.
        rounds: how often every configuration has its turn.
        iters: timed iterations of each configuration, over all rounds.
        warmup: untimed iterations before each turn.
        board: a monitor with ``samples``.
        progress: called with (done, total) turns.

    Returns:
        For each configuration its latencies in ms, power samples (W), temperatures (C) and GPU clocks (MHz).
    """
    out = [
        {"gpu": [], "end_to_end": [], "power": [], "temperature": [], "mhz": [], "throttled": None}
        for _ in configurations
    ]
    shares = [iters // rounds + (i < iters % rounds) for i in range(rounds)]
    total = rounds * len(configurations)
    for turn, share in enumerate(shares):
        order = [(turn + i) % len(configurations) for i in range(len(configurations))]
        for position, index in enumerate(order):
            runner, result = configurations[index][1], out[index]
            for _ in range(warmup):
                runner.time(transfers=True)
            seen = time.monotonic()
            for _ in range(share):
                timing = runner.time(transfers=True)
                result["gpu"].append(timing.gpu)
                result["end_to_end"].append(timing.end_to_end)
            for sample in [s for s in board.samples if s.time >= seen]:
                if sample.power_w is not None:
                    result["power"].append(sample.power_w)
                if sample.temperature_c is not None:
                    result["temperature"].append(sample.temperature_c)
                if sample.gpu_mhz and (sample.gpu_percent or 0) > 50:
                    result["mhz"].append(sample.gpu_mhz)
            alert = throttle_alerts()
            if alert is not None:
                result["throttled"] = bool(result["throttled"]) or alert
            if progress:
                progress(turn * len(configurations) + position + 1, total)
    return out


def clock_dropped(mhz: list[int]) -> bool | None:
    """Whether the loaded GPU clock fell below 90 % of its highest value in the run; None without readings."""
    return min(mhz) < 0.9 * max(mhz) if len(mhz) > 1 else None


def result_row(facts: dict, cuda_graph: bool, runner, measured: dict, accuracy: dict | None) -> dict:
    """One entry of the report's ``results``."""
    gpu, total = summarize(measured["gpu"]), summarize(measured["end_to_end"])
    power = float(np.mean(measured["power"])) if measured["power"] else None
    dropped = clock_dropped(measured["mhz"])
    known = [state for state in (measured["throttled"], dropped) if state is not None]
    return {
        "model": {**facts["model"], "input_shape": list(runner.shape)},
        "build": facts["build"],
        "cuda_graph": cuda_graph,
        "latency_ms": {"gpu": gpu, "end_to_end": total},
        "throughput_fps": round(1000 * runner.shape[0] / total["mean"], 3),
        "memory": {"device_bytes": runner.memory_bytes},
        "power_w": round(power, 3) if power is not None else None,
        "energy_mj_per_frame": round(power * total["mean"] / runner.shape[0], 3) if power is not None else None,
        "temperature_c": max(measured["temperature"], default=None),
        "throttled": any(known) if known else None,
        "accuracy": accuracy,
    }


def run(args: argparse.Namespace, make_runner=EngineRunner, open_monitor=monitor) -> dict:
    """The whole benchmark; returns the report document.

    Raises:
        BenchmarkError: an input file is missing or malformed.
        RuntimeUnavailable: TensorRT or CUDA does not do it.
    """
    references = load_references(args.reference)
    shape = args.shape or (references[0][1].shape if references else None)
    graphs = {"on": [True], "off": [False], "both": [False, True]}[args.cuda_graph]
    configurations, facts = [], []
    for engine in args.engine:
        if not engine.is_file():
            raise BenchmarkError(f"no such file: --engine {engine}; build it with deploy/build_engine.sh")
        for graph in graphs:
            runner = make_runner(engine, shape=shape, cuda_graph=graph, plugins=args.plugin)
            configurations.append((engine.name, runner))
            facts.append((engine_facts(engine), graph))
    accuracies = [check_accuracy(runner, references) for _, runner in configurations]
    noise = np.random.default_rng(0)
    for (_, runner), accuracy in zip(configurations, accuracies, strict=True):
        if accuracy is None:  # timing runs on seeded noise where no reference image fits
            runner.infer(noise.random(runner.shape, dtype=np.float32))
    with open_monitor(args.interval) as board:
        time.sleep(args.settle)
        measured = measure(configurations, args.rounds, args.iters, args.warmup, board, show_progress)
    notes = [board.reason] if board.reason else []
    if not references:
        notes.append("no --reference given: accuracy was not checked")
    elif None in accuracies:
        notes.append("no reference fits the input shape of an engine: its accuracy was not checked")
    return {
        "schema_version": SCHEMA_VERSION,
        "created": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "device": {**board_state(), "tensorrt": configurations[0][1].version},
        "method": {
            "warmup": args.warmup, "iters": args.iters, "rounds": args.rounds, "binding": configurations[0][1].device.name,
            "transfers_included": {"gpu": False, "end_to_end": True},
        },
        "results": [
            result_row(fact, graph, runner, values, accuracy)
            for (fact, graph), (_, runner), values, accuracy in zip(facts, configurations, measured, accuracies, strict=True)
        ],
        "notes": notes,
    }  # fmt: skip


def show_progress(done: int, total: int) -> None:
    """One line on stderr that counts the turns."""
    sys.stderr.write(f"\rturn {done}/{total}" + ("\n" if done == total else ""))
    sys.stderr.flush()


def parse_shape(text: str) -> tuple[int, ...]:
    """'1x3x256x256' -> (1, 3, 256, 256)."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){3}", text):
        raise argparse.ArgumentTypeError(f"'{text}': write a shape like 1x3x256x256")
    return tuple(int(n) for n in text.split("x"))


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}': write a whole number of at least 1")
    return int(text)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Benchmark TensorRT engines on a Jetson")
    parser.add_argument("--engine", type=Path, action="append", required=True, help=".plan file, may be repeated")
    parser.add_argument(
        "--reference", type=Path, help="folder of .npz files with the arrays input and output of the ONNX graph"
    )
    parser.add_argument("--shape", type=parse_shape, help="input shape; default: the references', or the engine's own")
    parser.add_argument("--iters", type=positive, default=200, help="timed iterations of each engine (default 200)")
    parser.add_argument("--warmup", type=positive, default=10, help="untimed iterations before each turn (default 10)")
    parser.add_argument("--rounds", type=positive, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--cuda-graph", choices=("on", "off", "both"), default="both")
    parser.add_argument("--plugin", type=Path, action="append", default=[], help="plugin library, may be repeated")
    parser.add_argument("--interval", type=positive, default=100, help="tegrastats interval in ms (default 100)")
    parser.add_argument(
        "--settle", type=float, default=1.0, help="seconds between opening the monitor and the first turn"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmark"), help="writes OUTPUT.json and OUTPUT.md")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, **injected) -> int:
    """Entry point; returns the exit status (0 done, 1 the runtime failed, 2 a wrong input)."""
    args = parse_arguments(argv)
    try:
        document = run(args, **injected)
    except BenchmarkError as err:
        sys.stderr.write(f"benchmark_jetson: {err}\n")
        return 2
    except RuntimeUnavailable as err:
        sys.stderr.write(f"benchmark_jetson: {err}\n")
        return 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(document, args.output.with_name(args.output.name + ".json"))
    table = markdown(document)
    write_text(args.output.with_name(args.output.name + ".md"), table)
    sys.stdout.write(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
