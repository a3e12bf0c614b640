"""One way to refuse unknown names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qmambair_basicsr
from qmambair_basicsr.strict import check_keys, did_you_mean, nearest, strict_options, unknown

PACKAGE = Path(qmambair_basicsr.__file__).parent


def test_names_the_nearest_and_all_that_are_allowed():
    assert unknown("quant", "key", "wieght", ["weight", "act"]) == (
        "quant: unknown key 'wieght' (did you mean 'weight'?); allowed: weight, act"
    )
    assert unknown("tile", "key", "zzz", ["size"]) == "tile: unknown key 'zzz'; allowed: size"


def test_names_need_not_be_strings():
    assert did_you_mean(31, [32, 4]) == ""
    assert nearest("w4a5", ["w4a4", "w2a2"], 2, 0.1) == ["w4a4", "w2a2"]


def test_first_unknown_key_is_refused():
    check_keys("tile", {"size": 1}, ("size", "overlap"))
    with pytest.raises(
        ValueError, match=r"tile: unknown option 'sise' \(did you mean 'size'\?\); allowed: size, overlap"
    ):
        check_keys("tile", ["size", "sise"], ("size", "overlap"), "option")


def test_constructor_lists_its_own_and_its_bases_keywords():
    class Base:
        def __init__(self, depth=1):
            self.depth = depth

    class Net(Base):
        def __init__(self, width=2, **options):
            super().__init__(**options)

        __init__ = strict_options(__init__, base=Base.__init__)

    assert Net(depth=3).depth == 3
    with pytest.raises(
        ValueError, match=r"Net: unknown option 'wdth' \(did you mean 'width'\?\); allowed: depth, width"
    ):
        Net(wdth=3)


def test_no_other_module_looks_for_near_names():
    found = [p for p in PACKAGE.rglob("*.py") if re.search("get_close_matches|difflib", p.read_text(encoding="utf-8"))]
    assert found == [PACKAGE / "strict.py"]
