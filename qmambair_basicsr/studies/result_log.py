"""Reads the figures that BasicSR's test pipeline writes into its log."""

from __future__ import annotations

import re
from pathlib import Path

from ..made_from import parse_log_line

__all__ = ["latest_log", "read_made_from", "read_results"]

_SET = re.compile(r"Validation (\S.*)$")
_METRIC = re.compile(r"^\s*# (\w+): (-?(?:\d+\.?\d*|inf|nan))")
_SIZE = re.compile(r"Network: .*?, with parameters: ([\d,]+)")


def latest_log(results: Path, name: str) -> Path | None:
    """The newest log of a test run.

    Args:
        results: BasicSR's ``results`` folder.
        name: the option file's ``name``.

    Returns:
        Its path, or None where the test has not run.
    """
    logs = sorted((results / name).glob(f"test_{name}_*.log"), key=lambda file: file.stat().st_mtime)
    return logs[-1] if logs else None


def read_results(log: Path) -> tuple[dict[str, dict[str, float]], int | None]:
    """Metrics of every test set that a log reports as finished.

    Args:
        log: log of ``python -m qmambair_basicsr.test``.

    Returns:
        ``({set: {metric: value}}, parameters of the network or None)``.
    """
    results: dict[str, dict[str, float]] = {}
    parameters, current = None, None
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        if found := _SIZE.search(line):
            parameters = int(found[1].replace(",", ""))
        elif found := _SET.search(line):
            current = found[1].strip()
        elif (found := _METRIC.match(line)) and current is not None:
            results.setdefault(current, {})[found[1]] = float(found[2])
    return results, parameters


def read_made_from(log: Path) -> dict[str, str | None] | None:
    """Record of a test's inputs (``made_from.of_test``); None for logs without one, such as older ones."""
    records = (parse_log_line(line) for line in log.read_text(encoding="utf-8", errors="replace").splitlines())
    return next((record for record in records if record is not None), None)
