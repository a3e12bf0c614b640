"""Reports of the tools: the document as JSON, its table as Markdown."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ..files import write_text


def write_report(document: dict, table: str, output: Path | None) -> None:
    """Print a table; with ``output`` (with or without its ending), write ``output.json`` and ``output.md`` first."""
    if output is not None:
        stem = output.with_suffix("") if output.suffix in (".json", ".md") else output
        write_text(f"{stem}.json", json.dumps(document, indent=2) + "\n")
        write_text(f"{stem}.md", table)
    sys.stdout.write(table)
