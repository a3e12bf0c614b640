"""Record of what the files of an image set were made from, kept beside them in ``.made_from.json``.

A file is fresh while its sources have the content, and the command the options, that it was made with. A file without a
record (of an older version, or brought by hand) is compared with what its sources give.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import write_text
from ..made_from import digest_of, file_digest, file_state

__all__ = ["FILE", "UNKNOWN", "Ledger", "Task", "sources_of"]

FILE = ".made_from.json"
UNKNOWN = "no record says what it was made from"


@dataclass(frozen=True)
class Task:
    """One unit of work, finished when all its outputs exist and are fresh.

    Attributes:
        source: the file that the outputs are made from.
        outputs: what it writes.
        options: how.
        also: further files that the outputs are made from.
        decisive: names of the options that decide about the outputs and are not in their paths. Where there are some, the
            outputs belong together and one record stands for all.
        comparable: the outputs may be made in another folder, for a comparison.
    """

    source: Path
    outputs: tuple[Path, ...]
    options: dict = field(default_factory=dict)
    also: tuple[Path, ...] = ()
    decisive: tuple[str, ...] = ()
    comparable: bool = True


def sources_of(task: Task) -> list[list]:
    """Name, digest and state of every source of a task, as a record holds them.

    Raises:
        OSError: one cannot be read.
    """
    return [[file.name, file_digest(file), *file_state(file)] for file in (task.source, *task.also)]


class Ledger:
    """The records of one image set.

    Args:
        folder: of the set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.file = folder, folder / FILE
        try:
            content = json.loads(self.file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or damaged: everything is compared
            content = {}
        self._records: dict[str, dict] = content if isinstance(content, dict) else {}

    def _keys(self, task: Task) -> Iterator[str]:
        for path in task.outputs[:1] if task.decisive else task.outputs:
            yield str(path.relative_to(self.folder)) if path.is_relative_to(self.folder) else str(path)

    @staticmethod
    def _options(task: Task) -> str:
        return digest_of({name: task.options[name] for name in task.decisive})

    def judge(self, task: Task) -> str | None:
        """Why a task's outputs must be made again: None for fresh ones, :data:`UNKNOWN` where there is no record."""
        records = [self._records.get(key) for key in self._keys(task)]
        if any(not isinstance(record, dict) for record in records):
            return UNKNOWN
        for record in records:
            if record.get("options") != self._options(task):
                return f"made with other {' and '.join(task.decisive) or 'options'}"
            before = {name: (digest, state) for name, digest, *state in record.get("sources", [])}
            for file in (task.source, *task.also):
                if file.name not in before:
                    return f"made without {file}"
                digest, state = before[file.name]
                try:
                    if state != list(file_state(file)) and digest != file_digest(file):
                        return f"{file} has changed"
                except OSError:
                    return f"{file} has changed"  # the task will say what is wrong with it
        return None

    def keep(self, task: Task, sources: Sequence[Sequence]) -> None:
        """Remember what a task's outputs were made from: what :func:`sources_of` gave before they were made."""
        record = {"options": self._options(task), "sources": [list(source) for source in sources]}
        self._records |= dict.fromkeys(self._keys(task), record)

    def save(self) -> None:
        """Write the records, where the set has a folder."""
        if self._records and self.folder.is_dir():
            write_text(self.file, json.dumps(self._records))
