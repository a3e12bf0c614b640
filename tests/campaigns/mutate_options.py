"""Seeded changes to an option file: what typing mistakes, tools and bad luck do to one."""

from __future__ import annotations

import copy
import datetime
import random
from collections.abc import Iterator

import yaml

MARKER = "code_was_executed"
HOSTILE = (
    f"!!python/object/apply:os.system ['touch {MARKER}']",
    f"!!python/object/apply:builtins.open [{MARKER}, w]",
    f"!!python/object/new:pathlib.Path [{MARKER}]",
    "!!python/name:os.system",
    "!!python/name:qmambair_basicsr.__version__",
    "!!python/module:this",
    "!!binary aGk=",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!own 1",
    "!!float abc",
    "!!int 1.5",
    "!!bool maybe",
    "2024-13-45",
    "*nothing",
    "&loop [*loop]",
    "'unclosed",
    "[1, 2",
    "{a: 1",
    "? [a, b]",
    "<<: *x",
    "%TAG",
    "---",
    "@at",
)
VALUES = (
    *(None, True, False, 0, 1, 2, 3, -1, -7, 10**6, 10**9, 10**30, 0.0, 0.5, 1.5, -0.1, 1e-9, 1e300),
    *(
        float("nan"),
        float("inf"),
        -float("inf"),
        "",
        " ",
        "~",
        "x",
        "a/b",
        "..",
        "true",
        "false",
        "no",
        "1",
        "-1",
        "1e-4",
    ),
    *(
        "0.5",
        "none",
        "auto",
        "größe",
        "名",
        "\0",
        "\n",
        "x" * 3000,
        "%s",
        "{}",
        "{0}",
        "{}{}",
        "{x}",
        "../../etc/passwd",
    ),
    *([], {}, [None], [1], [1, 2], [0.9, 0.99], ["x"], [[]], {"a": 1}, {"type": "x"}, {"type": None}, {1: 2}, [{}]),
    *(datetime.date(2024, 1, 1), {None: 1}, {"a": {"b": {"c": [1, {"d": 2}]}}}),
)


def paths(node: object, path: tuple = ()) -> Iterator[tuple]:
    """Every place in nested data, the root left out."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in entries:
        yield (*path, key)
        yield from paths(value, (*path, key))


def at(node, path: tuple):
    """The value at a place."""
    for key in path:
        node = node[key]
    return node


def misspell(rng: random.Random, word: str) -> str:
    """A word with one slip of the fingers."""
    if not word:
        return "x"
    index = rng.randrange(len(word))
    kind = rng.randrange(4)
    if kind == 0:
        return word[:index] + word[index + 1 :]
    if kind == 1:
        return word[:index] + word[index] + word[index:]
    if kind == 2:
        return word[:index] + rng.choice("abcxyz_-.: 1") + word[index + 1 :]
    return word.swapcase()


def change_data(rng: random.Random, opt: dict, names: list[str]) -> dict:
    """Options with one change to a key or a value.

    Args:
        rng: source of chance.
        opt: options; not changed.
        names: registered names to put in place of others.
    """
    opt = copy.deepcopy(opt)
    places = list(paths(opt))
    path = rng.choice(places)
    parent, key = at(opt, path[:-1]), path[-1]
    value = parent[key]
    kind = rng.randrange(10)
    if kind <= 3:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif kind == 4:
        del parent[key]
    elif kind == 5 and isinstance(parent, dict):
        parent[misspell(rng, str(key))] = parent.pop(key)
    elif kind == 6:
        parent[key] = misspell(rng, value) if isinstance(value, str) else copy.deepcopy(at(opt, rng.choice(places)[:1]))
    elif kind == 7 and isinstance(value, (int, float)) and not isinstance(value, bool):
        parent[key] = rng.choice(
            [-value, value * 10, value / 3, value + 1, str(value), [value], float(value), bool(value)]
        )
    elif kind == 8:
        parent[key] = rng.choice(names)
    else:
        target = rng.choice([opt, *(at(opt, p) for p in places if isinstance(at(opt, p), dict))])
        target[rng.choice(["extra", misspell(rng, str(key)), str(key)])] = copy.deepcopy(value)
    return opt


def change_text(rng: random.Random, content: bytes) -> bytes:
    """The file with one change to its bytes."""
    lines = content.split(b"\n")
    index = rng.randrange(len(lines))
    kind = rng.randrange(11)
    if kind == 0:
        del lines[index]
    elif kind == 1:
        lines.insert(index, rng.choice(lines))
    elif kind == 2:
        lines[index] = rng.choice([b" ", b"  ", b"\t", b"      "]) + lines[index]
    elif kind == 3:
        lines[index] = lines[index].strip()
    elif kind == 4:
        head, colon, _ = lines[index].partition(b":")
        lines[index] = head + colon + b" " + rng.choice(HOSTILE).encode()
    elif kind == 5:
        lines.insert(index, rng.choice(HOSTILE).encode())
    elif kind == 6:
        return content[: rng.randrange(len(content))]
    elif kind == 7:
        at_byte = rng.randrange(len(content))
        return content[:at_byte] + bytes([rng.randrange(256)]) + content[at_byte + 1 :]
    elif kind == 8:
        at_byte = rng.randrange(len(content))
        return (
            content[:at_byte]
            + rng.choice([b"\xff", b"\x00", b"\xd6\xd0", b"\x1b", b"'", b'"', b"{", b": ", b"- ", b"#"])
            + content[at_byte:]
        )
    elif kind == 9:
        coding = rng.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1", "gbk", "cp500"])
        return ("# größe 1\n" + content.decode()).encode(coding, "replace")
    else:
        lines[index] = lines[index].replace(
            b": ", rng.choice([b":", b" : ", b"= ", b": &a ", b": *a ", b": !!str ", b": >\n"]), 1
        )
    return b"\n".join(lines)


def mutants(seed: int, count: int, options: list[dict], names: list[str]) -> Iterator[tuple[bool, bytes]]:
    """Changed option files, and whether each is for training.

    Args:
        seed: of the changes.
        count: how many.
        options: files without mistakes; the first is for training, the second a test.
        names: registered names.
    """
    rng = random.Random(seed)
    plugin = b"plugin: !!python/name:qmambair_basicsr.__version__\n"
    for _ in range(count):
        which = rng.randrange(len(options))
        opt = options[which]
        for _ in range(rng.choice([0, 1, 1, 1, 1, 1, 2, 3])):
            if isinstance(opt, dict) and opt:
                opt = change_data(rng, opt, names)
        content = (
            plugin + yaml.dump(opt, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False).encode()
        )
        if rng.random() < 0.3:
            content = change_text(rng, content)
        yield "train" in options[which], content
