"""Tensors that are kept: the last ones, and all that a CUDA graph may read."""

from __future__ import annotations

import gc
import weakref

import torch

from qmambair_basicsr.archs import scan_orders, windows
from qmambair_basicsr.ops.kept import kept


def test_the_last_ones_are_kept():
    made = []

    @kept(2)
    def zeros(n):
        made.append(n)
        return torch.zeros(n)

    assert zeros(3) is zeros(3)
    for n in (4, 5, 3):
        zeros(n)
    assert made == [3, 4, 5, 3]


def test_what_a_graph_was_recorded_with_outlives_all_others(monkeypatch):
    """A plan of windows for the training patch, when a validation sees more sizes than are kept."""

    def plan(size):
        return weakref.ref(windows.window_plan(size, 4, 4, 0, torch.device("cpu")).order)

    seen, recorded = plan(4 * 101), None
    with monkeypatch.context() as patch:
        patch.setattr(torch.cuda, "is_initialized", lambda: True)
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        recorded = plan(4 * 102)
        order = weakref.ref(scan_orders.mair_order(7, 13, torch.device("cpu"), scan_len=2))
    for n in range(1, 70):
        plan(4 * n)
        scan_orders.mair_order(7, 13 + n, torch.device("cpu"), scan_len=2)
    gc.collect()
    assert seen() is None
    assert recorded() is not None
    assert order() is not None
