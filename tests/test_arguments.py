"""The commands share one vocabulary: a flag means the same in every one of them."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections import defaultdict
from pathlib import Path

import pytest

import qmambair_basicsr
from qmambair_basicsr.arguments import VOCABULARY, add, add_formats, command_line, natural, positive
from qmambair_basicsr.command_lines import parser_of

TOOLS = sorted(p.stem for p in (Path(qmambair_basicsr.__file__).parent / "tools").glob("*.py") if p.stem != "__init__")


def command_lines(parser):
    """A command line and those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from command_lines(sub)


def parsers():
    for tool in TOOLS:
        yield from command_lines(importlib.import_module(f"qmambair_basicsr.tools.{tool}").build_parser())


@pytest.fixture(scope="module")
def uses():
    """Flag -> every action it stands for, of all commands."""
    found = defaultdict(list)
    for parser in parsers():
        for action in parser._actions:
            for flag in action.option_strings:
                if flag not in ("-h", "--help"):
                    found[flag].append((parser.prog, action))
    return found


@pytest.mark.parametrize("tool", TOOLS)
def test_every_file_in_tools_is_a_command(tool):
    module = importlib.import_module(f"qmambair_basicsr.tools.{tool}")
    assert callable(module.main)
    assert module.build_parser().prog == f"python -m qmambair_basicsr.tools.{tool}"


@pytest.mark.parametrize("tool", TOOLS)
def test_a_command_holds_nothing_but_its_main(tool):
    path = Path(qmambair_basicsr.__file__).parent / "tools" / f"{tool}.py"
    names = [node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if hasattr(node, "name")]
    assert names == ["main"]


def test_libraries_do_not_call_commands():
    package = Path(qmambair_basicsr.__file__).parent
    calls = re.compile(r"^\s*(from|import) (\.\.|qmambair_basicsr\.)tools\b", re.MULTILINE)
    found = [p for p in package.rglob("*.py") if p.parent.name != "tools" and calls.search(p.read_text("utf-8"))]
    assert not found


def test_a_flag_means_the_same_in_every_command(uses):
    for flag, places in uses.items():
        said = {action.help.split(";")[0].split(" (default")[0] for _, action in places}
        kinds = {(action.type, action.metavar, type(action)) for _, action in places}
        assert len(said) == len(kinds) == 1, f"{flag} differs between {', '.join(prog for prog, _ in places)}: {said}"


def test_the_vocabulary_is_what_the_commands_say(uses):
    unused = VOCABULARY.keys() - uses.keys()
    assert not unused
    for flag, entry in VOCABULARY.items():
        for prog, action in uses[flag]:
            assert action.help.startswith(entry.meaning) and action.type is entry.type, f"{flag} of {prog}"
            assert entry.choices is None or action.choices == entry.choices, f"{flag} of {prog}"


def test_every_flag_is_explained(uses):
    silent = [f"{flag} of {prog}" for flag, places in uses.items() for prog, action in places if not action.help]
    assert not silent


def test_the_documentation_uses_flags_that_exist():
    """READMEs and the commands' own docstrings."""
    root = Path(qmambair_basicsr.__file__).parents[1]
    folders = ("qmambair_basicsr", "deploy", "kernels")
    documents = [root / "README.md", *(p for f in folders for p in (root / f).rglob("*.md"))]
    documents += (root / "qmambair_basicsr" / "tools").glob("*.py")
    known = {
        tool: {
            flag
            for line in command_lines(parser_of(f"tools.{tool}"))
            for a in line._actions
            for flag in a.option_strings
        }
        for tool in TOOLS
    }
    call = re.compile(r"-m qmambair_basicsr\.tools\.(\w+)((?:[^\n]*\\\n)*[^\n`]*)")
    found = [
        (document.name, tool, flag)
        for document in documents
        for tool, words in call.findall(document.read_text(encoding="utf-8").replace("\\\\\n", "\\\n"))
        if tool in known
        for flag in re.findall(r"(?<=[\s\[])--?[a-z][\w-]*", words)
    ]
    assert len(found) > 50
    assert not [entry for entry in found if entry[2] not in known[entry[1]]]


def test_flags_of_several_commands_are_in_the_vocabulary(uses):
    own = {flag for flag, places in uses.items() if len({prog.split()[2] for prog, _ in places}) > 1}
    assert own <= VOCABULARY.keys()


def test_no_flag_can_be_abbreviated():
    assert not any(parser.allow_abbrev for parser in parsers())


@pytest.mark.parametrize(("kind", "good", "bad"), [(positive, "1", "0"), (natural, "0", "-1"), (positive, "12", "1.5")])
def test_numbers(kind, good, bad):
    assert kind(good) == int(good)
    with pytest.raises(argparse.ArgumentTypeError, match="not a whole number of at least"):
        kind(bad)


def test_help_shows_meaning_note_and_default(capsys):
    parser = command_line("What it does.", "package.tools.name")
    add(parser, "--count", "of --images", default=16)
    add(parser, "--bits", default=[4, 2], nargs="+", choices=(2, 4))
    add(parser, "--full")
    add_formats(parser, "csv", "json")
    text = " ".join(parser.format_help().split())
    assert text.startswith("usage: python -m package.tools.name")
    assert "images to use, the first by name; of --images (default: 16)" in text
    assert "of weights and activations (default: 4 2)" in text
    args = parser.parse_args(["--bits", "4", "--json"])
    assert (args.count, args.bits, args.full, args.form) == (16, [4], False, "json")
    assert parser.parse_args([]).form == "table"
    for wrong in (["--coun", "3"], ["--bits", "3"], ["--csv", "--json"], ["--count", "0"]):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(wrong)
        assert stop.value.code == 2


@pytest.mark.parametrize(("text", "key"), [("~", None), ("null", None), ("params_ema", "params_ema")])
def test_no_key_of_weights_is_written_as_in_yaml(text, key):
    assert VOCABULARY["--param-key"].type(text) == key
