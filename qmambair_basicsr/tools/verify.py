"""Verify artifacts against the fake-quantized network they were exported from, on real images.

python -m qmambair_basicsr.tools.verify -opt options/test_QMambaIR_lightSRx2_w4a4.yml --checkpoint net_g_latest.pth \\
    --artifact net.safetensors --artifact net_frozen.onnx --artifact net_dynamic.onnx \\
    --images datasets/Set5/LR_bicubic/X2 --truth datasets/Set5/HR --output verify

Compared are: the integer codes of every quantized parameter; the codes of every quantized activation on one image; the
outputs (PSNR before rounding, against the network with the same DLS mode, on the same tiles). With --truth also the
PSNR against ground truth of each, and of the full-precision network when --fp-checkpoint is given. What equal codes
mean in detail is in exporting/codes.py. Exit status: 0 verified, 1 not, 2 wrong arguments or files.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import qmambair_basicsr  # noqa: F401  (registers the networks)

from ..cli import run_tool
from ..layers.convert import require_quantized
from .image_sets import Sample, load_samples, mean, psnr_between, psnr_of
from .networks import network_of
from .reports import write_report

SCHEMA_VERSION = 1
ROUNDING = 1e-7  # of a pixel value in [0, 1]: the last bits of float32


def build_parser() -> argparse.ArgumentParser:
    """Command line of the tool."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-opt", help="option file with the quantized network_g; not needed with a packed checkpoint")
    parser.add_argument("--checkpoint", required=True, help="the network: BasicSR .pth, or packed .safetensors")
    parser.add_argument("--param-key", default="params", help="params (default) or params_ema")
    parser.add_argument("--artifact", action="append", required=True, help=".safetensors or .onnx, may be repeated")
    parser.add_argument("--images", required=True, help="folder of inputs")
    parser.add_argument("--truth", help="folder of ground truth")
    parser.add_argument("--count", type=int, help="use only the first images (default: all)")
    parser.add_argument("--fp-opt", help="option file of the full-precision network")
    parser.add_argument("--fp-checkpoint", help="checkpoint of the full-precision network")
    parser.add_argument("--min-psnr", type=float, default=50.0, help="least PSNR between outputs, in dB (default 50)")
    parser.add_argument("--overlap", type=int, default=16, help="pixels that tiles share, for files of fixed size")
    parser.add_argument("--crop", type=int, help="border left out against ground truth (default: the scale, 0 for x1)")
    parser.add_argument("--channel", choices=("y", "rgb"), help="for ground truth (default: y for scales above 1)")
    parser.add_argument("--output", metavar="STEM", help="write STEM.json and STEM.md")
    return parser


class Outputs:
    """Outputs of networks on all samples, computed once for each network and tile size.

    Args:
        samples: the images.
        multiple: sides of whole images are padded to multiples of this.
        overlap: pixels that tiles share.
        advance: called after every image, with the network's name.
    """

    def __init__(self, samples: list[Sample], multiple: int, overlap: int, advance: Callable[[str], None]):
        self.samples, self.multiple, self.overlap, self.advance = samples, multiple, overlap, advance
        self.kept: dict[tuple[str, tuple[int, int] | None], list[Tensor]] = {}

    def of(self, key: str, network: Callable[[Tensor], Tensor], size: tuple[int, int] | None) -> list[Tensor]:
        """Outputs of a network, known by ``key``."""
        from ..exporting.runtime import restore

        if (key, size) not in self.kept:
            found = []
            for sample in self.samples:
                with torch.no_grad():
                    found.append(restore(network, sample.image, size, self.multiple, self.overlap))
                self.advance(key)
            self.kept[key, size] = found
        return self.kept[key, size]


def verify(args: argparse.Namespace, console: Console) -> dict:
    """Do what the command line asks; returns the report document.

    Raises:
        ValueError: arguments or files that do not fit together.
    """
    from ..exporting.onnx_file import input_channels, output_scale
    from ..exporting.verification import open_artifact

    if args.count is not None and args.count < 1:
        raise ValueError(f"--count must be at least 1, got {args.count}")
    if args.overlap < 0:
        raise ValueError(f"--overlap must not be negative, got {args.overlap}")
    net = network_of(args.opt, args.checkpoint, args.param_key)
    require_quantized(net)
    scale, multiple = output_scale(net), getattr(net, "size_multiple", 1)
    samples = load_samples(args.images, args.truth, input_channels(net), scale, args.count)
    artifacts = [open_artifact(path, net) for path in args.artifact]
    full = network_of(args.fp_opt, args.fp_checkpoint) if args.fp_checkpoint else None
    crop = args.crop if args.crop is not None else (scale if scale > 1 else 0)
    on_y = (args.channel or ("y" if scale > 1 else "rgb")) == "y"

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("verify", total=(2 * len(artifacts) + 2 + (full is not None)) * len(samples))

        def advance(name: str) -> None:
            progress.update(task, advance=1, description=name)

        outputs = Outputs(samples, multiple, args.overlap, advance)

        def scored(results: list[Tensor]) -> float | None:
            pairs = [(y, s.truth) for y, s in zip(results, samples, strict=True) if s.truth is not None]
            return mean([psnr_of(y, truth, crop, on_y) for y, truth in pairs])

        rows = []
        if full is not None:
            rows.append({"name": "full precision", "truth_psnr": scored(outputs.of("full precision", full, None))})
        exact = outputs.of("fake quantization", net, None)
        rows.append({"name": "fake quantization", "truth_psnr": scored(exact)})
        moved = outputs.of("fake quantization, input moved", _moved(net), None)
        rounding = [psnr_between(y, r) for y, r in zip(moved, exact, strict=True)]
        for artifact in artifacts:
            rows.append(_artifact_row(artifact, net, samples, outputs, scored, args.min_psnr, multiple))
    return {
        "schema_version": SCHEMA_VERSION,
        "network": type(net).__name__,
        "checkpoint": Path(args.checkpoint).name,
        "images": [sample.name for sample in samples],
        "min_psnr": args.min_psnr,
        "truth": {"crop": crop, "channel": "y" if on_y else "rgb"} if args.truth else None,
        "rounding_psnr": {"min": _finite(min(rounding)), "mean": _finite(mean(rounding))},
        "rows": rows,
        "verified": not any(row.get("failures") for row in rows),
    }


def _moved(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """The network with the last bits of its input changed: what float32 rounding alone does to its output."""

    def network(x: Tensor) -> Tensor:
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
        return net(x + ROUNDING * noise)

    return network


def _artifact_row(
    artifact, net: nn.Module, samples: list[Sample], outputs: Outputs, scored, least: float, multiple: int
) -> dict:
    from ..exporting.verification import probe, summary_of

    reference_name = "fake quantization" if artifact.reference is net else f"reference of {artifact.name}"
    reference = outputs.of(reference_name, artifact.reference, artifact.size)
    got = outputs.of(artifact.name, artifact.network, artifact.size)
    psnr = [psnr_between(y, r) for y, r in zip(got, reference, strict=True)]
    checks = artifact.activations(probe(samples[0].image, artifact.size, multiple))
    stored = {kind: [c for c in artifact.weights if c.stored == kind] for kind in ("codes", "values", "folded")}
    wrong = [c.name for c in artifact.weights if c.equal is False]
    moved = [c.name for c in checks if c.own_input is not None and c.own_input != c.count]
    failures = []
    if wrong:
        failures.append(f"{len(wrong)} parameters differ, first {wrong[0]}")
    if moved:
        failures.append(f"{len(moved)} activations get other codes for the same input, first {moved[0]}")
    if min(psnr) < least:
        worst = samples[psnr.index(min(psnr))].name
        failures.append(f"output of {worst} is {min(psnr):.2f} dB from the network's, below {least:g} dB")
    truth = scored(got)
    exact = scored(outputs.of("fake quantization", net, artifact.size)) if truth is not None else None
    return {
        "name": artifact.name,
        "dls": artifact.mode,
        "tiles": list(artifact.size) if artifact.size else None,
        "parameters": {
            "compared": len(stored["codes"]) + len(stored["values"]),
            "equal": sum(c.equal is True for c in artifact.weights),
            "codes": sum(c.count for c in stored["codes"]),
            "as_values": [c.name for c in stored["values"]],
            "folded": [c.name for c in stored["folded"]],
        },
        "activations": summary_of(checks),
        "psnr": {"min": _finite(min(psnr)), "mean": _finite(mean(psnr)), "equal": all(math.isinf(p) for p in psnr)},
        "truth_psnr": truth,
        "truth_psnr_fake_quantization": exact,
        "failures": failures,
    }


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _cell(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def markdown(document: dict) -> str:
    """The report as people read it."""
    truth = document["truth"]
    protocol = f"; ground truth: {truth['channel'].upper()}, {truth['crop']} border pixels left out" if truth else ""
    lines = [
        f"# {document['network']}, {document['checkpoint']}",
        "",
        f"{len(document['images'])} images{protocol}. PSNR in dB. Last column: against fake quantization with dynamic "
        "DLS on the same tiles.",
        "",
        "| network | DLS | tiles | parameters equal | codes equal, same input | codes equal, whole network | PSNR to network, min | mean | PSNR to truth | difference |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in document["rows"]:
        if "dls" not in row:
            lines.append(f"| {row['name']} | - | whole | - | - | - | - | - | {_cell(row['truth_psnr'])} | - |")
            continue
        codes, sizes = row["activations"], row["tiles"]
        share = [
            "-" if not codes[total] else f"{100 * codes[equal] / codes[total]:.4g} % of {codes[total]:,}"
            for equal, total in (("own_input_equal", "own_input_codes"), ("whole_network_equal", "codes"))
        ]
        psnr = ["equal", "equal"] if row["psnr"]["equal"] else [_cell(row["psnr"][k]) for k in ("min", "mean")]
        gap = None if row["truth_psnr"] is None else row["truth_psnr"] - row["truth_psnr_fake_quantization"]
        lines.append(
            f"| {row['name']} | {row['dls']} | {'x'.join(map(str, sizes)) if sizes else 'whole'} | "
            f"{row['parameters']['equal']} of {row['parameters']['compared']} | {share[0]} | {share[1]} | "
            f"{psnr[0]} | {psnr[1]} | {_cell(row['truth_psnr'])} | {'-' if gap is None else f'{gap:+.3f}'} |"
        )
    own = document["rounding_psnr"]
    lines += [
        "",
        f"The network itself with its input moved by {ROUNDING:g}: min {_cell(own['min'])}, mean {_cell(own['mean'])} dB to "
        "its output ('-': equal). Other float32 arithmetic cannot be expected to come nearer.",
    ]
    failures = [f"- {row['name']}: {reason}" for row in document["rows"] for reason in row.get("failures", ())]
    lines += ["", "Not verified:" if failures else f"Verified (at least {document['min_psnr']:g} dB).", *failures]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    args = build_parser().parse_args(argv)

    def tool() -> int:
        document = verify(args, Console(stderr=True))
        write_report(document, markdown(document), args.output)
        return 0 if document["verified"] else 1

    return run_tool(tool)


if __name__ == "__main__":
    sys.exit(main())
