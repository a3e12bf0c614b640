"""Time and peak memory of the inference command on large pictures: a photograph of 3000 x 2000 and a panorama of 12,000 x 4,000.

    python kernels/bench/bench_photo.py --threads 2
    python kernels/bench/bench_photo.py --sizes 12000x4000 --model sr_x4 --ext tif

Each picture is made, written as JPEG and restored by ``tools.inference`` in a process of its own. Seconds are of the clock and of
all processors, from starting Python to its end; memory is the largest resident set of that process (Linux and macOS). The
result is read back, and its size and brightness compared with the picture's. Exit code 1 where memory passes ``--most``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
MOST = 1.5  # GB, that a large photograph may need
BRIGHTNESS = 2  # of 255, that the mean of a result may differ


@dataclass(frozen=True)
class Measured:
    """One picture.

    Attributes:
        size: (width, height) of the picture.
        after: of its result.
        wall, cpu: seconds.
        memory: GB (10^9 bytes).
    """

    size: tuple[int, int]
    after: tuple[int, int]
    wall: float
    cpu: float
    memory: float


def size_of(text: str) -> tuple[int, int]:
    """``3000x2000`` -> (3000, 2000)."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 3000x2000")
    return int(parts[0]), int(parts[1])


def write_photo(path: Path, width: int, height: int) -> float:
    """Write a picture with large and small structures; its mean, 0 to 255."""
    random = np.random.default_rng(0)
    coarse, fine = (
        Image.fromarray(random.integers(0, 256, (height // step + 2, width // step + 2, 3), dtype=np.uint8)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        for step in (64, 8)
    )
    picture = Image.blend(coarse, fine, 0.3)
    picture.save(path, quality=95)
    return float(np.asarray(picture.resize((64, 64), Image.Resampling.BOX)).mean())


def measure(size: tuple[int, int], args: argparse.Namespace, folder: Path) -> Measured:
    """Restore one picture.

    Raises:
        SystemExit: the command failed, or its result is no enlargement of the picture.
    """
    source, out = folder / f"{size[0]}x{size[1]}.jpg", folder / "results"
    brightness = write_photo(source, *size)
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "qmambair_basicsr.tools.inference",
        "-i",
        str(source),
        "-o",
        str(out),
    ]
    command += ["--model", args.model, "--tile", args.tile, "--ext", args.ext, "--threads", str(args.threads)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(args.threads)}
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)  # progress stays visible
    _, status, used = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    kilo = 1 if sys.platform == "darwin" else 1024  # unit of the resident set
    Image.MAX_IMAGE_PIXELS = None
    with Image.open(out / f"{source.stem}.{args.ext}") as result:
        after = result.size
        got = float(np.asarray(result.resize((64, 64), Image.Resampling.BOX)).mean())
    if after[0] * size[1] != after[1] * size[0] or abs(got - brightness) > BRIGHTNESS:
        raise SystemExit(f"{source.name}: a result of {after}, brightness {got:.1f} instead of {brightness:.1f}")
    return Measured(size, after, wall, used.ru_utime + used.ru_stime, used.ru_maxrss * kilo / 1e9)


def build_parser() -> argparse.ArgumentParser:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", nargs="+", type=size_of, default=[(3000, 2000), (12000, 4000)], metavar="WIDTHxHEIGHT"
    )
    parser.add_argument("--model", default="sr_x2", help="a shipped network, or a file (default: sr_x2)")
    parser.add_argument("--ext", default="png", help="ending of the result (default: png)")
    parser.add_argument("--tile", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--most", type=float, default=MOST, metavar="GB", help=f"memory that may be used (default: {MOST})"
    )
    return parser


def main() -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(size, args, Path(folder)) for size in args.sizes]
    table = Table("picture", "result", "seconds", "of processors", "peak memory, GB")
    for row in rows:
        sizes = (f"{width} x {height}" for width, height in (row.size, row.after))
        table.add_row(*sizes, f"{row.wall:.1f}", f"{row.cpu:.1f}", f"{row.memory:.2f}")
    Console(width=100).print(table)
    return 1 if max(row.memory for row in rows) > args.most else 0


if __name__ == "__main__":
    sys.exit(main())
