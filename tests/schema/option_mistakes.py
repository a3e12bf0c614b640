"""Options with a mistake in them, and what the check says of it."""

from __future__ import annotations

from qmambair_basicsr import schema

REMOVE = "<key left out>"  # text, so that names of tests are the same in every process


def change(opt: dict, where: str, value: object) -> dict:
    """Set or remove the value at a dotted path."""
    node = opt
    *parents, last = where.split(".")
    for key in parents:
        node = node[key]
    if value is REMOVE:
        del node[last]
    else:
        node[last] = value
    return opt


def found(opt: dict, training: bool | None = True, root: str | None = ".") -> list[str]:
    """All mistakes as text."""
    return [str(problem) for problem in schema.problems(opt, training, root=root)]
