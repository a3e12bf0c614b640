"""Comparison of artifacts with the fake-quantized network they were exported from; ``tools.verify`` is its command."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from ..inference.image_sets import Sample, load_samples, mean, psnr_between, psnr_of
from ..inference.networks import network_of
from ..layers.convert import require_quantized
from ..layers.info import network_info
from .reports import write_report
from .verify_report import markdown

SCHEMA_VERSION = 3
ROUNDING = {"fp32": 1e-7, "fp16": 5e-4}  # of the largest value of a tensor: the last bit
MARGIN = 3.0  # dB below the worst draw of the noise
DRAWS = 8  # of the noise, at most: further ones where a file is below the first
VERIFIED, UP_TO_ROUNDING, NOT_VERIFIED = "verified", "verified up to rounding", "not verified"


class Outputs:
    """Outputs of networks on all samples, computed once for each network and tile size.

    Args:
        samples: the images.
        multiple: sides of whole images are padded to multiples of this.
        overlap: pixels that tiles share.
        progress: shows which network is at work, and how far.
    """

    def __init__(self, samples: list[Sample], multiple: int, overlap: int, progress: Progress):
        self.samples, self.multiple, self.overlap, self.progress = samples, multiple, overlap, progress
        self.kept: dict[tuple[str, tuple[int, int] | None], list[Tensor]] = {}

    def of(self, key: str, network: Callable[[Tensor], Tensor], size: tuple[int, int] | None) -> list[Tensor]:
        """Outputs of a network, known by ``key``."""
        from .restoring import restore

        if (key, size) not in self.kept:
            found = []
            for sample in self.progress.track(self.samples, description=key):
                with torch.no_grad():
                    found.append(restore(network, sample.image, size, self.multiple, self.overlap))
            self.kept[key, size] = found
        return self.kept[key, size]

    def track(self, runs: list) -> Iterable:
        """Show how many of the runs that codes are compared in are done."""
        return self.progress.track(runs, description="codes of activations")


def verify(args: argparse.Namespace, console: Console) -> dict:
    """The report document of a comparison; ``args`` are those of ``tools.verify``.

    Raises:
        ValueError: arguments or files that do not fit together.
    """
    from .verification import open_artifact

    checkpoint = args.checkpoint or _own_checkpoint(args)
    net = network_of(args.opt, checkpoint, args.param_key)
    require_quantized(net)
    info = network_info(net)
    scale, multiple = info.scale, info.size_multiple
    samples = load_samples(args.images, args.truth, info.channels, scale, args.count, args.middle)
    artifacts = [open_artifact(path, net, args.backend) for path in args.artifact]
    full = network_of(args.fp_opt, args.fp_checkpoint) if args.fp_checkpoint else None
    crop = args.crop if args.crop is not None else (scale if scale > 1 else 0)
    on_y = (args.channel or ("y" if scale > 1 else "rgb")) == "y"

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        outputs = Outputs(samples, multiple, args.overlap, progress)

        def scored(results: list[Tensor]) -> float | None:
            pairs = [(y, s.truth) for y, s in zip(results, samples, strict=True) if s.truth is not None]
            if not all(bool(torch.isfinite(y).all()) for y, _ in pairs):
                return None  # rounded to 8 bits, NaN would give a figure
            return mean([psnr_of(y, truth, crop, on_y) for y, truth in pairs])

        rows = []
        if full is not None:
            rows.append({"name": "full precision", "truth_psnr": scored(outputs.of("full precision", full, None))})
        exact = outputs.of("fake quantization", net, None)
        rows.append({"name": "fake quantization", "truth_psnr": scored(exact)})
        exact_files = any(a.precision == "fp64" or a.proof is not None for a in artifacts)
        draws = DRAWS if exact_files else 1  # rounding explains nothing without codes in FP64
        judged = [
            _artifact_row(artifact, net, samples, outputs, scored, multiple, args.min_psnr, draws)
            for artifact in artifacts
        ]
    for artifact, row in zip(artifacts, judged, strict=True):
        own = row["fp64"]
        proven = own is not None and own["equal"] == own["codes"]
        proven = proven or any(
            twin.precision == "fp64"
            and (twin.mode, twin.grids) == (artifact.mode, artifact.grids)
            and _holds(exact_row)
            for twin, exact_row in zip(artifacts, judged, strict=True)
        )
        row["verdict"], reason = judge(row, args.min_psnr, proven)
        row["failures"] += [reason] if reason else []
    return {
        "schema_version": SCHEMA_VERSION,
        "network": type(net).__name__,
        "checkpoint": Path(checkpoint).name,
        "images": [sample.name for sample in samples],
        "middle": args.middle,
        "min_psnr": args.min_psnr,
        "truth": {"crop": crop, "channel": "y" if on_y else "rgb"} if args.truth else None,
        "rows": rows + judged,
        "verified": all(row["verdict"] != NOT_VERIFIED for row in judged),
    }


def _own_checkpoint(args: argparse.Namespace) -> str:
    """The packed checkpoint that an integer network is compared with where no other is given: its own."""
    if args.backend == "integer" and len(args.artifact) == 1:
        return args.artifact[0]
    raise ValueError("--checkpoint is needed: the network that the artifacts are compared with")


def _artifact_row(
    artifact, net: nn.Module, samples: list[Sample], outputs: Outputs, scored, multiple: int, least: float, draws: int
) -> dict:
    from .verification import probe, summary_of, with_rounding

    reference_name = "fake quantization" if artifact.reference is net else f"reference of {artifact.name}"
    reference = outputs.of(reference_name, artifact.reference, artifact.size)
    got = outputs.of(artifact.name, artifact.network, artifact.size)
    failures = [
        f"output of {whose} for {sample.name} holds NaN or infinity"
        for whose, results in (("the network", reference), ("the file", got))
        for sample, y in zip(samples, results, strict=True)
        if not bool(torch.isfinite(y).all())
    ]
    psnr = [psnr_between(y, r) for y, r in zip(got, reference, strict=True)]
    own, own_truth, size = None, None, ROUNDING.get(artifact.precision)
    if size is not None:
        drawn: list[float] = []
        for seed in range(draws):
            name = f"{reference_name}, rounded by {size:g}" + (f" (seed {seed})" if seed else "")
            moved = outputs.of(name, with_rounding(artifact.reference, size, seed), artifact.size)
            drawn += [psnr_between(y, r) for y, r in zip(moved, reference, strict=True)]
            if seed == 0:
                own_truth = scored(moved)
            if not min(psnr) < min(least, min(drawn) - MARGIN):  # nor where one is not a number
                break
        own = _spread(drawn)
    part = probe(samples[0].image, artifact.size, multiple)
    checks = artifact.activations(part, outputs.track)
    proof = None if artifact.proof is None else dict(zip(("codes", "equal"), artifact.proof(part), strict=True))
    stored = {kind: [c for c in artifact.weights if c.stored == kind] for kind in ("codes", "values", "folded")}
    wrong = [c.name for c in artifact.weights if c.equal is False]
    if proof is not None and proof["equal"] != proof["codes"]:
        failures.append(
            f"{proof['codes'] - proof['equal']:,} codes of the lowered network in FP64 are not the network's"
        )
    turned = [c.name for c in checks if c.own_input is not None and c.own_input != c.count]
    broken = [c.name for c in checks if c.not_finite]
    if broken:
        failures.append(f"{len(broken)} activations meet NaN or infinity, first {broken[0]}")
    if wrong:
        failures.append(f"{len(wrong)} parameters differ, first {wrong[0]}")
    if turned:
        failures.append(f"{len(turned)} activations get other codes for the same input, first {turned[0]}")
    truth = scored(got)
    exact = scored(outputs.of("fake quantization", net, artifact.size)) if truth is not None else None
    return {
        "name": artifact.name,
        "dls": artifact.mode,
        "precision": artifact.precision,
        "tiles": list(artifact.size) if artifact.size else None,
        "parameters": {
            "compared": len(stored["codes"]) + len(stored["values"]),
            "equal": sum(c.equal is True for c in artifact.weights),
            "codes": sum(c.count for c in stored["codes"]),
            "as_values": [c.name for c in stored["values"]],
            "folded": [c.name for c in stored["folded"]],
        },
        "activations": summary_of(checks),
        "fp64": proof,
        "psnr": _spread(psnr),
        "worst": samples[min(range(len(psnr)), key=lambda i: (not math.isnan(psnr[i]), psnr[i]))].name,
        "rounding_psnr": own,
        "truth_psnr": truth,
        "rounding_truth_psnr": own_truth,
        "truth_psnr_fake_quantization": exact,
        "failures": failures,
    }


def _spread(psnr: list[float]) -> dict:
    """Least and mean of PSNR values: None for infinity, where ``equal`` is true, and where one is not a number."""
    if any(math.isnan(p) for p in psnr):
        return {"min": None, "mean": None, "equal": False}
    return {"min": _finite(min(psnr)), "mean": _finite(mean(psnr)), "equal": all(p == math.inf for p in psnr)}


def _finite(value: float | None) -> float | None:
    return None if value is None or math.isinf(value) else value


def _holds(row: dict) -> bool:
    """Whether an FP64 file is the network: every code over the whole network is equal."""
    codes = row["activations"]
    return not row["failures"] and codes["whole_network_equal"] == codes["codes"]


def judge(row: dict, least: float, proven: bool) -> tuple[str, str | None]:
    """Decide about an artifact.

    Args:
        row: its row of the report.
        least: PSNR in dB that its outputs must have to those of the network.
        proven: an FP64 file of the same graph has the codes of the network, all of them.

    Returns:
        Verdict, and the reason where PSNR or FP64 codes decide against it.
    """
    if row["failures"]:
        return NOT_VERIFIED, None
    if row["precision"] == "fp64" and not _holds(row):
        turned = row["activations"]["codes"] - row["activations"]["whole_network_equal"]
        return NOT_VERIFIED, f"{turned:,} codes over the whole network differ, which rounding cannot explain in FP64"
    psnr = math.inf if row["psnr"]["equal"] else row["psnr"]["min"]
    if psnr is None:
        return NOT_VERIFIED, f"the PSNR of {row['worst']} is not a number"
    if psnr >= least:
        return VERIFIED, None
    reason = f"output of {row['worst']} is {psnr:.2f} dB from the network's, below {least:g} dB"
    own = row["rounding_psnr"] and row["rounding_psnr"]["min"]
    if own is None:
        return NOT_VERIFIED, reason
    reason += f" (the network itself with noise of {ROUNDING[row['precision']]:g}: {own:.2f} dB)"
    if not proven:
        return (
            NOT_VERIFIED,
            f"{reason}; add the file of `export --onnx-fp64` as --artifact to see whether that is rounding",
        )
    if not psnr >= own - MARGIN:
        return NOT_VERIFIED, f"{reason}, and more than {MARGIN:g} dB worse than rounding explains"
    return UP_TO_ROUNDING, None


def run(args: argparse.Namespace) -> int:
    """Compare, print the report and write it where asked; returns the exit status."""
    document = verify(args, Console(stderr=True))
    write_report(document, markdown(document), args.output)
    return 0 if document["verified"] else 1
