"""The report of a benchmark: percentiles, the JSON document (benchmark.schema.json) and the Markdown table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from whole_files import write_text

SCHEMA_VERSION = 1
PERCENTILES = (50, 90, 95, 99)

# Q-MambaIR paper, Table 5: MambaIR-light x2 on a Jetson Orin, INT8 TensorRT engines for the 4-bit rows.
# Input size, module and clock settings are not stated there, so these rows stand beside ours for orientation only.
PAPER_TABLE5_MS = {
    "FP": 198.21,
    "baseline (QuantSR) w4a4": 119.89,
    "DLS only w4a4": 120.87,
    "RFA only w4a4": 110.64,
    "Q-MambaIR w4a4": 119.74,
}


def summarize(milliseconds: list[float]) -> dict[str, float]:
    """Mean, extremes, spread and percentiles (linear interpolation) of a list of latencies in ms.

    Raises:
        ValueError: the list is empty.
    """
    if not milliseconds:
        raise ValueError("no latency was measured: give --iters at least 1")
    values = np.asarray(milliseconds, dtype=np.float64)
    out = {"mean": values.mean(), "std": values.std(), "min": values.min(), "max": values.max()}
    out.update({f"p{p}": np.percentile(values, p) for p in PERCENTILES})
    return {name: round(float(value), 4) for name, value in out.items()}


def psnr(output: np.ndarray, reference: np.ndarray) -> float | None:
    """PSNR in dB for values in [0, 1]; None when both are equal (infinite)."""
    error = float(np.mean((output.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return None if error == 0 else float(-10 * np.log10(error))


def write_json(document: dict, path: Path) -> None:
    """Write the document whole or not at all."""
    write_text(path, json.dumps(document, indent=2) + "\n")


def _cell(value, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(document: dict) -> str:
    """The table people read: one row per engine and mode, the paper's rows below."""
    device = document["device"]
    lines = [
        f"# {device['module'] or 'unknown module'}, TensorRT {device['tensorrt']}",
        "",
        f"JetPack {device['jetpack'] or '?'}, L4T {device['l4t'] or '?'}, power mode {device['power_mode'] or '?'}, "
        f"GPU clock fixed: {device['clocks_locked'] if device['clocks_locked'] is not None else '?'}. "
        f"{document['method']['iters']} iterations in {document['method']['rounds']} interleaved rounds after "
        f"{document['method']['warmup']} warm-up iterations. GPU = between events; end to end = with both copies.",
        "",
        "| engine | CUDA graph | input | GPU p50 ms | p90 | p95 | p99 | end to end p50 ms | p90 | fps | memory MiB | W | mJ/frame | max C | PSNR vs ONNX dB |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["results"]:
        gpu, total, accuracy = row["latency_ms"]["gpu"], row["latency_ms"]["end_to_end"], row["accuracy"] or {}
        lines.append(
            f"| {row['model']['name']} | {'on' if row['cuda_graph'] else 'off'} | {'x'.join(map(str, row['model']['input_shape']))} | "
            f"{gpu['p50']:.2f} | {gpu['p90']:.2f} | {gpu['p95']:.2f} | {gpu['p99']:.2f} | {total['p50']:.2f} | {total['p90']:.2f} | "
            f"{row['throughput_fps']:.2f} | {row['memory']['device_bytes'] / 2**20:.0f} | {_cell(row['power_w'])} | "
            f"{_cell(row['energy_mj_per_frame'], 0)} | {_cell(row['temperature_c'], 1)}{' (throttled)' if row['throttled'] else ''} | "
            f"{'equal' if accuracy.get('equal') else _cell(accuracy.get('psnr_vs_onnx'))} |"
        )
    lines += ["", "Published (Q-MambaIR Table 5, MambaIR-light x2, Jetson Orin; input size and clocks not stated):", ""]
    lines += ["| model | ms |", "|---|---|"] + [f"| {name} | {ms:.2f} |" for name, ms in PAPER_TABLE5_MS.items()]
    if document["notes"]:
        lines += ["", *(f"- {note}" for note in document["notes"])]
    return "\n".join(lines) + "\n"
