"""What the pickle inside a checkpoint refers to, found without running it."""

from __future__ import annotations

import io
import pickletools
import re
import zipfile
from pathlib import Path

# what pickles of state_dicts refer to: rebuild functions, storages, dtypes, plain containers
_PLAIN = re.compile(r"torch\.\w+$|torch\.(_utils|_tensor|storage)\.|collections\.(OrderedDict|Counter)$")


def foreign_global(path: Path) -> str | None:
    """First name in the file's pickle that is not tensor data; found by reading opcodes, nothing is executed."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
                content = archive.read(name)
        else:
            content = path.read_bytes()
        strings: list[str] = []
        stream = io.BytesIO(content)
        # torch's old format is several pickles in a row
        while stream.tell() < len(content):
            for opcode, argument, _ in pickletools.genops(stream):
                if isinstance(argument, str):
                    strings.append(argument)
                named = None
                if opcode.name in ("GLOBAL", "INST"):
                    named = argument.replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    named = ".".join(strings[-2:])
                if named is not None and _PLAIN.match(named) is None:
                    return named
    except (
        ValueError,
        OSError,
        StopIteration,
        zipfile.BadZipFile,
        KeyError,
        IndexError,
        EOFError,
        NotImplementedError,
    ):
        return None  # not a readable pickle: damaged rather than unsafe
    return None
