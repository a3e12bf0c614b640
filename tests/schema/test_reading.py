"""Option files are read as data: what YAML can do beyond that is named, never done."""

from __future__ import annotations

import pytest
import yaml
from basicsr.utils.options import ordered_yaml

from qmambair_basicsr import __version__, schema
from qmambair_basicsr.schema import OptionError
from qmambair_basicsr.schema.reading import DEEPEST, MOST_VALUES, parse

RUN = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [ran]]"


def mistakes(text: str) -> str:
    """All mistakes of a file, found by the reader alone."""
    file = parse(text, "file.yml")
    return str(schema.error("file.yml", file.problems, file.lines)) if file.problems else ""


def test_values_are_those_of_basicsrs_own_loader():
    text = (
        "a: 1\nb: 1.5\nc: 1e-4\nd: 1.0e-4\ne: true\nf: 'true'\ng: ~\nh: null\ni: 2024-01-01\nj: 0x10\nk: [1, [2, x]]\n"
        "l: {m: no, n: .inf}\no: !!float 3\np: !!str 3\nq: !!int '4'\nr: 012\ns: 1_000\nt: |\n  two\n  lines\nu: yes\n"
    )
    assert parse(text).data == yaml.load(text, Loader=ordered_yaml()[0])


def test_plugin_line_is_the_version_and_imports_nothing():
    assert parse("plugin: !!python/name:qmambair_basicsr.__version__\n").data == {"plugin": __version__}


@pytest.mark.parametrize(
    "text",
    [
        f"name: {RUN}\n",
        f"x: [1, {{y: {RUN}}}]\n",
        "plugin: !!python/name:os.system\n",
        "sub:\n  plugin: !!python/name:qmambair_basicsr.__version__\n",
        "other: !!python/name:qmambair_basicsr.__version__\n",
        "plugin: !!python/module:antigravity\n",
        "x: !!python/object/new:os.system ['touch ran']\n",
        "x: !!python/tuple [1, 2]\n",
        "x: !!binary aGFsbG8=\n",
        "x: !own {a: 1}\n",
        "x: !!set {a, b}\n",
        f"? {RUN}\n: 1\n",
        f"<<: {RUN}\n",
    ],
)
def test_a_tag_that_is_not_plain_data_is_named_and_not_run(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = mistakes(text)
    assert "is not allowed: option files hold plain data" in found and "(line " in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: !!float abc\n", "x: 'abc' is no float (line 1)"),
        ("a: 1\nx: !!int 1.5\n", "x: '1.5' is no int (line 2)"),
        ("x: !!bool perhaps\n", "x: 'perhaps' is no bool"),
        ("x: 2024-13-45\n", "x: '2024-13-45' is no timestamp"),
        ("x: !!null 3\n", ""),
        ("val:\n  a: 1\nname: t\nval:\n  b: 2\n", "val: stands twice, first in line 1; keep one of them (line 4)"),
        ("a: {b: 1, b: 2}\n", "a.b: stands twice, first in line 1"),
        ("a: 1\n---\nb: 2\n", "a second document begins here"),
        ("a: *gone\n", "*gone: no &gone comes before it"),
        ("a: &x [1, *x]\n", "a section cannot hold itself"),
        ("[1, 2]: 3\na: 1\n", "a section or list stands where a key belongs"),
        ("a: 1\n<<: 3\n", "<<: needs a section"),
    ],
)
def test_mistakes_of_the_file_itself(text, said):
    assert said in mistakes(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no options"),
        (b"# nothing\n", "holds no options"),
        (b"just text\n", "holds no options"),
        (b"- 1\n- 2\n", "holds no options"),
        (b"a: [1, 2\nb: 3\n", "is not valid YAML"),
        (b"a: 1\n\tb: 2\n", "is not valid YAML"),
        (b"a: \x07\n", "is not valid YAML"),
        ("name: Größe\n".encode("latin-1"), "byte 0xf6 in line 1 is not UTF-8"),
        ("a: 1\n# 中文\n".encode("gbk"), "in line 2 is not UTF-8"),
        ("name: a\n".encode("utf-16"), "is in UTF-16; save it as UTF-8"),
        (b"a: " + b"[" * (DEEPEST + 5) + b"]" * (DEEPEST + 5), "nested more than"),
        (b"[" * 100_000, ""),
        (b"a: 1\n" * 300_000, "that is no option file"),
        (
            b"a: &a [1,1,1,1,1,1,1,1]\n"
            + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 8)) for c in b"bcdefgh"),
            "aliases",
        ),
    ],
)
def test_what_is_no_option_file_is_one_error(content, said):
    with pytest.raises(OptionError) as caught:
        parse(content, "file.yml")
    assert said in str(caught.value) and str(caught.value).startswith("file.yml")


def test_byte_order_mark_and_any_language_are_read():
    assert parse("\ufeffname: größe  # 中文\n".encode()).data == {"name": "größe"}


def test_merge_keys_work_and_share_nothing():
    text = "train: &d\n  io: {type: disk}\n  name: A\nval:\n  <<: *d\n  name: B\nother:\n  <<: [{io: 1}, *d]\n"
    data = parse(text).data
    assert data["val"] == {"io": {"type": "disk"}, "name": "B"}
    assert data["other"] == {"io": 1, "name": "A"}
    assert data["val"]["io"] is not data["train"]["io"]


def test_aliases_are_counted_once_written_out():
    width = int(MOST_VALUES**0.5) + 2
    lists = f"a: &a [{', '.join(['1'] * width)}]\nb: [{', '.join(['*a'] * width)}]\n"
    with pytest.raises(OptionError, match="values once its aliases are written out"):
        parse(lists)


@pytest.mark.parametrize("name", ["gone.yml", ".", "nul\0byte", "x" * 5000])
def test_a_file_that_cannot_be_read_is_one_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OptionError, match="give an option file"):
        schema.read_file(name)


def test_a_message_stays_short():
    problems = [schema.Problem(f"key{index}", "x" * 5000) for index in range(100)]
    text = str(schema.error("file.yml", [*problems, *problems]))
    assert len(text) < 41 * 1600 and text.endswith("and 60 more")
