"""How many operators a computation calls."""

from __future__ import annotations

from collections.abc import Callable

from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile


def operator_calls(computation: Callable[[], object]) -> int:
    """Operators that Python or the autograd engine call, by ``torch.profiler``.

    Counted are ATen operators, registered ones and autograd functions written in Python, forward and backward. An operator
    that another one calls belongs to that one; the engine's own bookkeeping around an operator is none.
    """
    with profile(activities=[ProfilerActivity.CPU]) as record:
        computation()
    return sum(_is_operator(event) and not _inside_another(event) for event in record.events())


def _is_operator(event: FunctionEvent) -> bool:
    engine = event.name.startswith(("autograd::", "torch::autograd::", "Optimizer.", "ProfilerStep"))
    return not (engine or event.name == "detach" or event.name.endswith("Backward0"))


def _inside_another(event: FunctionEvent) -> bool:
    parent = event.cpu_parent
    while parent is not None and not _is_operator(parent):
        parent = parent.cpu_parent
    return parent is not None
