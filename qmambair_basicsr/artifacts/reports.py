"""Reports of the tools: the document as JSON, its table as Markdown."""

from __future__ import annotations

import json
import sys

from ..files import write_text


def write_report(document: dict, table: str, output: str | None) -> None:
    """Print a table; with ``output``, write ``output.json`` and ``output.md`` first."""
    if output:
        write_text(f"{output}.json", json.dumps(document, indent=2) + "\n")
        write_text(f"{output}.md", table)
    sys.stdout.write(table)
