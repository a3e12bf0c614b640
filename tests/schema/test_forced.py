"""``--force_yml``: BasicSR's rules for values, and nothing of it is run."""

from __future__ import annotations

import pytest

from qmambair_basicsr.schema.forced import apply, value_of


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("~", None),
        ("none", None),
        ("True", True),
        ("false", False),
        ("3", 3),
        ("0.5", 0.5),
        ("-1", -1),
        ("1e-4", 1e-4),
        ("!!float 2e-4", 2e-4),
        ("[1, 2]", [1, 2]),
        ("['a', 1e-4]", ["a", 1e-4]),
        ("[a, b]", ["a", "b"]),
        ("{type: L1Loss}", {"type": "L1Loss"}),
        ("a=b", "a=b"),
        ("datasets/x", "datasets/x"),
        ("1_000", "1_000"),
        ("[1, 2", "[1, 2"),
        ("[__import__('os').getcwd()]", "[__import__('os').getcwd()]"),
        ("[!!python/object/apply:os.getcwd []]", "[!!python/object/apply:os.getcwd []]"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_values(text, value):
    assert value_of(text) == value and type(value_of(text)) is type(value)


def test_names_stay_text():
    opt = {"name": "a", "val": {}}
    assert apply(opt, ["name=2024", "val:suffix=5", "val:suffix2=5"]) == []
    assert opt == {"name": "2024", "val": {"suffix": "5", "suffix2": 5}}


def test_a_value_may_hold_the_sign():
    opt = {"datasets": {"train": {"dataroot_gt": "x"}}}
    assert apply(opt, ["datasets:train:dataroot_gt=run=1/HR"]) == []
    assert opt["datasets"]["train"]["dataroot_gt"] == "run=1/HR"


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("train", "must be KEY=VALUE"),
        ("=5", "must be KEY=VALUE"),
        ("a::b=5", "must be KEY=VALUE"),
        ("trian:total_iter=5", "there is no key 'trian' (did you mean 'train'?)"),
        ("name:first=5", "name is no section, but 'a'"),
        ('train"]=print(1) or opt["x=5', ""),
    ],
)
def test_an_entry_that_cannot_be_applied_is_named_and_left_out(entry, said):
    opt = {"name": "a", "train": {"total_iter": 1}}
    mistakes = apply(opt, [entry])
    assert said in "".join(map(str, mistakes)) and opt["name"] == "a" and opt["train"] == {"total_iter": 1}
