"""Test option files run one after the other, their logs as one table per task; ``tools.benchmark`` is the command."""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import yaml
from basicsr.archs import build_network
from basicsr.utils.options import ordered_yaml

from .. import made_from
from ..files import write_text
from ..layers.info import full_precision_twin
from ..layers.policy import remark
from ..layers.sites import sites_of
from ..metrics.perceptual import MetricError
from ..metrics.strict_metric import check_metric, needs_truth
from ..recipes.option_files import TEST_KEYS, OptionFileError, read_options
from ..recipes.ptq_contents import METHODS as PTQ_ROWS
from ..schema.forced import apply
from .benchmark_page import write_benchmark_page
from .benchmark_table import (
    SCAN_ALONE,
    Entry,
    csv_table,
    latex_table,
    markdown_table,
    read_published,
)
from .demo_report import stored_kib
from .result_log import latest_log, read_made_from, read_results

__all__ = ["run"]

logger = logging.getLogger("benchmark")

# quantizers of (weight, act, scan) -> name of the method in the papers' tables
_METHODS = {
    ("RFA", "LSQOffset", "DLS"): "Q-MambaIR",
    ("LSQ", "LSQ", "LSQ"): "LSQ",
    ("QuantSR", "QuantSR", "QuantSR"): "QuantSR",
}
_PTQ_NAMES = {"TwoDQuant": "2DQuant", "FIMAQ": "FIMA-Q", "APHQViT": "APHQ-ViT", "QuantDLLM": "Quant-dLLM"}
_EXTRA_METRICS = {
    "lpips": {"type": "calculate_lpips"},
    "lpips_vgg": {"type": "calculate_lpips", "net": "vgg"},
    "st_lpips": {"type": "calculate_st_lpips"},
}


class RunError(RuntimeError):
    """A test file could not be run, or gave no figures."""


def describe(opt: dict) -> Entry:
    """Model, task, method and bits of an option file; the task is the third part of its name.

    A post-training method leaves an ordinary network: it is known by the last part of the name alone.
    """
    network = opt["network_g"]
    parts = opt["name"].split("_")
    task = parts[2] if len(parts) > 2 else opt["name"]
    quant = network.get("quant")
    if quant is None:
        return Entry(network["type"], task, "FP", (32, 32))
    kinds = tuple((quant.get(site) or {}).get("type", "-") for site in ("weight", "act", "scan"))
    bits = tuple((quant.get(site) or {}).get("bits", 32) for site in ("weight", "act"))
    model = full_precision_twin(network["type"]) or network["type"]
    if parts[-1] in PTQ_ROWS:
        name = parts[-1].removesuffix("Scan")
        return Entry(model, task, _PTQ_NAMES.get(name, name) + (SCAN_ALONE if name != parts[-1] else ""), bits)
    methods = _METHODS
    if "scan" not in quant and not _scans(network):
        kinds, methods = kinds[:2], {known[:2]: name for known, name in _METHODS.items()}
    method = (methods.get(kinds) or "+".join(dict.fromkeys(kinds))) + remark(quant)
    return Entry(model, task, method, bits)


def _scans(network: dict) -> bool:
    """Whether a network has a scan that could be quantized."""
    with torch.device("meta"):
        net = build_network(dict(network))
    return any(site.kind == "scan" for module in net.modules() for site in sites_of(module))


def with_metrics(opt: dict, extra: Sequence[str]) -> dict:
    """Options with further metrics, with the border of the file's own.

    Raises:
        RunError: the file has no metrics.
        MetricError: it has one that cannot be computed.
    """
    metrics = (opt["val"] or {}).get("metrics")
    if not metrics:
        raise RunError(f"{opt['name']}: val has no metrics, so there is nothing to put into a table")
    for name, metric in metrics.items():
        check_metric(name, metric)
    crop = max((metric.get("crop_border", 0) for metric in metrics.values()), default=0)
    added = {name: _EXTRA_METRICS[name] | {"crop_border": crop} for name in extra}
    return opt | {"val": opt["val"] | {"metrics": metrics | added}}


def is_complete(results: dict, opt: dict) -> bool:
    """Whether a log holds every metric of every set of the file; sets without ground truth have those without reference."""
    metrics = opt["val"]["metrics"]
    blind = {name for name, metric in metrics.items() if not needs_truth(metric["type"])}
    return all(
        (metrics.keys() if section.get("dataroot_gt") else blind) <= results.get(section["name"], {}).keys()
        for section in opt["datasets"].values()
    )


def run_test(file: Path, opt: dict, args: argparse.Namespace) -> None:
    """Run one test in a process of its own.

    Raises:
        RunError: it failed; the message ends with its last lines.
    """
    command = [sys.executable, "-W", "ignore", "-m", "qmambair_basicsr.test", "-opt", str(file)]
    if args.metrics:  # --force_yml changes keys but adds none, so the file is written anew
        command[-1] = str(args.out / f"{opt['name']}.yml")
        write_text(command[-1], yaml.dump(opt, Dumper=ordered_yaml()[1], sort_keys=False))
    command += ["--force_yml", *args.force_yml] if args.force_yml else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n    ".join((done.stderr or done.stdout).strip().splitlines()[-6:])
        raise RunError(f"{file}: exit code {done.returncode}\n    {last}")


def stale(log: Path | None, opt: dict) -> str | None:
    """Why the figures of a log are not those that a run would give now; None where they are.

    Inputs that are gone cannot be compared, and are named in the log of this command.
    """
    if log is None:
        return None
    now, before = made_from.of_test(opt), read_made_from(log)
    gone = [name for name, digest in now.items() if digest is None]
    changed = made_from.differences(before, now)
    if gone and not changed:
        logger.warning("%s: %s is gone; the figures of its log are kept", opt["name"], ", ".join(gone))
    return made_from.reason(changed) if changed else None


def measure(file: Path, args: argparse.Namespace) -> Entry:
    """One row: run the file unless its log is complete and of the same inputs, then read the log.

    Raises:
        OptionFileError: no test option file.
        RunError: no figures.
        MetricError: see :func:`with_metrics`.
    """
    opt = read_options(file, TEST_KEYS)
    if mistakes := apply(opt, args.force_yml):
        raise RunError("; ".join(map(str, mistakes)))
    opt = with_metrics(opt, args.metrics)
    entry = describe(opt)
    log = latest_log(args.results, opt["name"])
    results = read_results(log)[0] if log else {}
    complete = is_complete(results, opt)
    reason = "--rerun" if args.rerun else stale(log, opt) if complete or args.read_only else None
    if args.read_only:
        if not results:
            raise RunError(f"{file}: no log with results below {args.results / opt['name']}")
        if reason is not None and read_made_from(log) is not None:
            raise RunError(f"{file}: {log} is of {reason}; run this without --read-only")
        if reason is not None:
            logger.warning("%s: %s cannot be checked: %s", file, log, reason)
    elif not complete or reason is not None:
        logger.info("%s: running%s", file, f" again: {reason}" if complete else "")
        run_test(file, opt, args)
        log = latest_log(args.results, opt["name"])
        results = read_results(log)[0] if log else {}
        if not is_complete(results, opt):
            raise RunError(f"{file}: the run ended without figures for every set")
    # of the log's figures those that the file asks for: of others nobody has checked what they are of
    entry.results = {
        section["name"]: {m: v for m, v in results[section["name"]].items() if m in opt["val"]["metrics"]}
        for section in opt["datasets"].values()
        if section["name"] in results
    }
    try:
        entry.size = stored_kib(build_network(opt["network_g"]))
    except (ValueError, KeyError, TypeError) as err:
        logger.warning("%s: size unknown (%s)", file, err)
    return entry


def write_tables(entries: Sequence[Entry], failures: Sequence[str], out: Path) -> None:
    """Rewrite every table and the list of failures."""
    published = read_published()
    tasks = dict.fromkeys(entry.task for entry in entries)
    for task in tasks:
        # full precision first, then from many bits to few
        rows = sorted((e for e in entries if e.task == task), key=lambda e: (e.model, -e.bits[0], -e.bits[1], e.method))
        for suffix, render in (("md", markdown_table), ("csv", csv_table), ("tex", latex_table)):
            write_text(out / f"{task}.{suffix}", render(task, rows, published))
    write_text(out / "failures.txt", "".join(f"{line}\n" for line in failures))


def run(args: argparse.Namespace) -> int:
    """Run the files of ``tools.benchmark`` and write their tables; returns 0, or 1 when at least one file failed."""
    entries, failures, shown = [], [], []
    for file in args.opt:
        try:
            entries.append(measure(file, args))
            shown.append((read_options(file, TEST_KEYS), entries[-1]))
        except (OptionFileError, RunError, MetricError) as err:
            failures.append(str(err))
            logger.error("%s", err)
        write_tables(entries, failures, args.out)
    if args.page and entries:
        write_benchmark_page(args.out / "page.html", shown, args.results)
    for task in dict.fromkeys(entry.task for entry in entries):
        sys.stdout.write((args.out / f"{task}.md").read_text(encoding="utf-8"))
    logger.info("%d rows, %d failures, tables in %s", len(entries), len(failures), args.out)
    return 1 if failures else 0
