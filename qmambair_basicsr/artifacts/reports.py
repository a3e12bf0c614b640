"""Reports of the tools: the document as JSON, its table as Markdown."""

from __future__ import annotations

import json
import sys

from ..data.image_files import write_atomically


def write_report(document: dict, table: str, output: str | None) -> None:
    """Print a table; with ``output``, write ``output.json`` and ``output.md`` first."""
    if output:
        write_atomically(f"{output}.json", (json.dumps(document, indent=2) + "\n").encode())
        write_atomically(f"{output}.md", table.encode())
    sys.stdout.write(table)
