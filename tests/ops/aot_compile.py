"""Compiles every Triton kernel of the package for given GPUs, none needed, and prints what the compiler reports.

Run as ``python aot_compile.py 90 [80 ...]``: one JSON object, kernel -> registers per thread, bytes of local memory (spilled
registers) and of shared memory; the first two are null where Triton's CUDA tools are not at hand. Exit status 3 and a
line of text: this Triton has another compiler interface.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "0"

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qmambair_basicsr.ops.dls import triton_kernels as dls
from qmambair_basicsr.ops.lsq import triton_channels
from qmambair_basicsr.ops.lsq import triton_kernels as lsq
from qmambair_basicsr.ops.rfa import triton_kernels as rfa
from qmambair_basicsr.ops.ss2d_scan import triton_gradient, triton_kernels
from qmambair_basicsr.ops.table_scan import triton_kernels as table
from qmambair_basicsr.ops.window_attention import triton_kernels as attention
from qmambair_basicsr.ops.window_attention.triton import TILES

CUDA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FLOATS = {"qmin", "qmax", "cap_share", "floor_share", "floor", "grad_scale", "scale"}
SCAN = {"N": 16, "BD": 32, "CHUNK": 64, "SOFTPLUS": True, "HAS_BIAS": True, "LISTED": False}
TABLE = {
    "N": 16, "BN": 16, "BD": 32, "CHUNK": 64, "LEVELS": 16, "ROW": 16, "BITS": 4, "X_BITS": 4, "B_BITS": 4, "C_BITS": 4,
    "HAS_SKIP": True, "LISTED": False,
}  # fmt: skip
LSQ = {"PER_SCALE": True, "PER_OFFSET": True, "HAS_OFFSET": True}

ATTENTION = {"MASKED": -100.0, "HAS_REGIONS": True, "PRECISION": "tf32x3"}

# label -> kernel, its constants, warps, element type of x, delta, B, C and dy
KERNELS = {
    **{
        f"forward_chunk[mode {mode}, {kind}]": (
            triton_kernels.forward_chunk, {**SCAN, "BN": 16, "T": 16, "HAS_SKIP": True, "MODE": mode}, 1, kind,
        )
        for mode, kind in ((0, "fp32"), (1, "fp32"), (2, "fp32"), (1, "bf16"))
    },
    "adjoint_chunk": (triton_kernels.adjoint_chunk, {**SCAN, "BN": 16}, 1, "fp32"),
    **{
        f"forward_chunk[mode {mode}, listed]": (
            triton_kernels.forward_chunk,
            {**SCAN, "BN": 16, "T": 16, "HAS_SKIP": True, "MODE": mode, "LISTED": True}, 1, "fp32",
        )
        for mode in (0, 1, 2)
    },
    "adjoint_chunk[listed]": (triton_kernels.adjoint_chunk, {**SCAN, "BN": 16, "LISTED": True}, 1, "fp32"),
    "carry": (triton_kernels.carry, {"N": 16, "BC": 16, "BD": 32, "REVERSE": True}, 1, "fp32"),
    "to_sequence": (triton_gradient.to_sequence, {"N": 16, "BN": 16, "BT": 64, "LISTED": False}, 2, "fp16"),
    "to_raster": (triton_gradient.to_raster, {"N": 16, "BN": 16, "BT": 64, "LISTED": False}, 2, "fp32"),
    "to_sequence[listed]": (triton_gradient.to_sequence, {"N": 16, "BN": 16, "BT": 64, "LISTED": True}, 2, "fp16"),
    "to_raster[listed]": (triton_gradient.to_raster, {"N": 16, "BN": 16, "BT": 64, "LISTED": True}, 2, "fp32"),
    "gradient_chunk[listed]": (triton_gradient.gradient_chunk, {**SCAN, "HAS_SKIP": True, "LISTED": True}, 1, "fp32"),
    "gradient_chunk[fp32]": (triton_gradient.gradient_chunk, {**SCAN, "HAS_SKIP": True}, 1, "fp32"),
    "gradient_chunk[bf16]": (triton_gradient.gradient_chunk, {**SCAN, "HAS_SKIP": True}, 1, "bf16"),
    **{
        f"lsq_{way}[{kind}]": (
            getattr(lsq, f"lsq_{way}"),
            {
                "MANY": many, "PER_SCALE": rows, "PER_OFFSET": rows, "HAS_OFFSET": True, "ALIGNED": not rows,
                "BLOCK": 256 if rows else 1024,
                **({"FC": 32 if rows else 1, "FP": 32 if rows else 1024} if way == "backward" else {}),
            }, 4, "fp32",
        )
        for way in ("forward", "backward")
        for kind, many, rows in (("one", False, False), ("many", True, False), ("many rows", True, True))
    },
    "lsq_forward[channels]": (triton_channels.lsq_forward, {**LSQ, "BLOCK": 1024}, 4, "fp32"),
    "lsq_backward[channels]": (triton_channels.lsq_backward, {**LSQ, "BC": 16, "BE": 64}, 4, "fp32"),
    **{
        f"{name}[{slots} slots]": (getattr(dls, name), {"SLOTS": slots, "ALIGNED": slots > 0, **constants}, warps, "fp32")
        for slots in (0, 1, 4)
        for name, constants, warps in (
            ("statistics", {"BLOCK": 4096}, 8),
            ("quantize", {"BP": 256, "BLOCK": 1024, "BLOCKS": 4}, 4),
            ("gradient_sums", {"BLOCK": 1024}, 4),
            ("input_gradient", {"BP": 256, "BLOCK": 1024, "BLOCKS": 4, "BR": 32}, 4),
        )
    },
    **{
        f"{name}[{tokens} tokens, {channels} channels]": (
            getattr(attention, name),
            {**ATTENTION, "T": tokens, "D": channels, "BQ": min(queries, tokens), "BK": min(keys, tokens)}, 4, "fp32",
        )
        for name, tiles in TILES.items()
        for tokens, channels, (queries, keys) in (
            (16, 16, tiles[16]), (64, 32, tiles[32]), (256, 16, tiles[16]), (256, 64, tiles[64]),
        )
    },
    "table_gradient": (attention.table_gradient, {"T": 256, "BLOCK": 256}, 4, "fp32"),
    "rfa_forward": (rfa.rfa_forward, {"BLOCK": 1024}, 4, "fp32"),
    **{
        f"rfa_backward[{levels} levels]": (rfa.rfa_backward, {"LEVELS": levels, "BLOCK": 4096}, 8, "fp32")
        for levels in (4, 16, 256)
    },
    **{
        f"table_chunk[{'output' if output else 'local'}, kind {kind}]": (
            table.table_chunk,
            {**TABLE, **dict.fromkeys(("X_KIND", "Q_KIND", "B_KIND", "C_KIND"), kind), "OUTPUT": output}, 1, element,
        )
        for output, kind, element in ((False, 1, "u8"), (True, 1, "u8"), (True, 2, "fp32"))
    },
    "table_carry": (table.table_carry, {"N": 16, "BC": 16, "BD": 32}, 1, "fp32"),
}  # fmt: skip
INTEGERS = {
    "order_ptr": "*i32",
    "tiles_ptr": "*i32",
    "counter_ptr": "*i32",
    "counters_ptr": "*i32",
    "ints_ptr": "*i64",
    "regions_ptr": "*i32",
    "pairs_ptr": "*i32",
    "starts_ptr": "*i32",
}
MAPS = {"x_ptr", "dt_ptr", "q_ptr", "b_ptr", "c_ptr", "dy_ptr", "src_ptr"}


def _type(name: str, kind: str) -> str:
    if name in INTEGERS:
        return INTEGERS[name]
    if re.fullmatch("[a-z][0-3]", name):  # one of four tensors
        return "*fp32"
    if name.endswith(("_ptr", "_grid")):
        return f"*{kind if name in MAPS else 'fp32'}"
    return "fp32" if name in FLOATS else "i32"


def _compile(kernel, constants, warps, kind, capability):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else _type(name, kind) for name in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})


def _usage(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers and bytes of local memory per thread."""
    tool = CUDA_TOOLS / "cuobjdump"
    if not tool.is_file():
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()
    return int(registers), int(stack)


def main() -> None:
    """Compile for the compute capabilities of the command line."""
    if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 3):
        sys.stdout.write(f"Triton {triton.__version__} has another compiler interface; 3.3 or newer is needed")
        sys.exit(3)
    report = {}
    for capability in sys.argv[1:]:
        for label, spec in KERNELS.items():
            compiled = _compile(*spec, int(capability))
            registers, local = _usage(compiled.asm["cubin"])
            report[f"{label} sm_{capability}"] = {
                "registers": registers,
                "local": local,
                "shared": compiled.metadata.shared,
                "warps": spec[2],
            }
    json.dump(report, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
