"""Prepared calls as one program: the same bits on any number of threads, and no step behind one that fails."""

from __future__ import annotations

import pytest
import torch
from instruction_sets import libraries
from torch import nn

from qmambair_basicsr.ops import glue
from qmambair_basicsr.ops.glue.native import Codes8, Rule
from qmambair_basicsr.ops.prepared import Prepared, PreparedProgram, joined

pytestmark = pytest.mark.skipif(not libraries(), reason="the CPU kernels are not built")
ROWS, COLUMNS = 3000, 24


def steps_of(x: torch.Tensor) -> tuple[list[Prepared], list[torch.Tensor]]:
    """A pass with statistics, one that needs the grid that follows from them, and small ones; what they write."""
    norm, grid = nn.LayerNorm(COLUMNS).requires_grad_(False), torch.zeros(4)
    rule = Rule(torch.tensor([0.0, 0.5, 0.0, 0.1]), torch.tensor([0.1, 0.0, 0.2, 0.0]), -8, 7, 1.0)
    normed, codes, few = torch.zeros_like(x), torch.zeros(x.shape, dtype=torch.uint8), torch.zeros(3, COLUMNS)
    statistics = torch.zeros(4)
    calls = [
        glue.native.rows(x, norm=norm, out=normed, statistics=statistics, rule=rule, new_grid=grid),
        glue.native.rows(normed, codes=Codes8(codes, grid, 8)),
        *(glue.native.rows(x[3 * i : 3 * i + 3], added=few, out=few) for i in range(50)),
        glue.native.rows(x, added=normed, out=normed),
    ]
    return calls, [normed, codes, few, statistics, grid]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_a_program_is_its_calls_whatever_the_number_of_threads_is(threads):
    x, results = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(0)), []
    for count in (1, 1, 2, 3):
        threads(count)
        calls, written = steps_of(x)
        whole = PreparedProgram(calls) if results else None
        for _ in range(20 if count > 1 else 1):
            for t in written:
                t.zero_()
            if whole is None:
                for call in calls:
                    call()
            else:
                whole()
            results.append([t.clone() for t in written])
    assert all(torch.equal(a, b) for result in results for a, b in zip(result, results[0], strict=True))
    assert results[0][1].unique().numel() > 8  # codes on the grid that the step in front found


@pytest.mark.parametrize("count", [1, 2])
def test_nothing_runs_behind_a_call_that_fails(threads, count):
    threads(count)
    x, early, late = torch.randn(ROWS, COLUMNS), torch.zeros(ROWS, COLUMNS), torch.zeros(ROWS, COLUMNS)
    calls = [glue.native.rows(x, out=t) for t in (early, torch.empty_like(x), late)]
    calls[1].arguments.rows = 0  # the kernel refuses
    program = PreparedProgram(calls)
    for _ in range(2):
        with pytest.raises(ValueError, match="qm_glue_rows: the CPU kernels refuse"):
            program()
    assert torch.equal(early, x) and not late.any()
    calls[1].arguments.rows = ROWS
    program()
    assert torch.equal(late, x)


def test_what_is_not_prepared_runs_in_its_turn():
    seen, x = [], torch.randn(3, COLUMNS)
    a, b = torch.zeros(3, COLUMNS), torch.zeros(3, COLUMNS)
    steps = [
        glue.native.rows(x, out=a),
        glue.native.rows(x, added=a, out=a),
        lambda: seen.append(a.clone()),
        lambda: b.copy_(a),
        glue.native.rows(b, added=x, out=b),
    ]
    together = joined(steps)
    assert len(together) == 4
    for step in together:
        step()
    assert torch.allclose(seen[0], 2 * x) and torch.allclose(b, 3 * x)
    assert joined([]) == []
