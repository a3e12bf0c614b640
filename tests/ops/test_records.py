"""Structs of the CPU kernels: packed one by one, or for many items at once."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from qmambair_basicsr.ops import records


@pytest.mark.parametrize("count", [1, 2, 4, 8, 9, 40])
def test_addresses_and_numbers_of_every_item(count, monkeypatch):
    found = []

    def call(given, items, threads):
        size = 56
        data = given if isinstance(given, bytes) else ctypes.string_at(given, items * size)
        found.append(np.frombuffer(data, np.dtype([("at", "<i8", 4), ("n", "<i8"), ("d", "<f8"), ("f", "<f4", 2)])))

    monkeypatch.setattr(records, "function", lambda *_: call)
    form = records.Records(4, "qd2f")
    x = [torch.zeros(3) for _ in range(count)]
    y = [None if i == 1 else torch.zeros(1) for i in range(count)]
    numbers = [(i, 0.5 * i, -8, 7) for i in range(count)]
    for _ in range(2):  # the second time what is packed is remembered, and nothing of the first call is left in it
        form.run("any", numbers, x, None, y)
        (got,) = found[-1:]
        assert got["at"][:, 0].tolist() == [t.data_ptr() for t in x]
        assert got["at"][:, 1].tolist() == got["at"][:, 3].tolist() == [0] * count
        assert got["at"][:, 2].tolist() == [0 if t is None else t.data_ptr() for t in y]
        assert list(zip(got["n"], got["d"], got["f"][:, 0], got["f"][:, 1], strict=True)) == numbers
        x = [torch.zeros(3) for _ in range(count)]


def test_no_items_no_call(monkeypatch):
    monkeypatch.setattr(records, "function", None)
    records.Records(2, "q").run("any", [], None, None)
