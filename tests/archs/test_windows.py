"""Window plans against masks and partitions built the slow way."""

from __future__ import annotations

import pytest
import torch

from qmambair_basicsr.archs.mambairv2_blocks import WindowAttention
from qmambair_basicsr.archs.windows import mirror_index, relative_position_index, window_plan

CPU = torch.device("cpu")


def slow_attention(attention, qkv, height, width, window, shift):
    """Every pair of tokens attends if both share a window after the shift and were not joined by it."""
    heads = attention.num_heads
    q, k, v = qkv[0].view(height * width, 3, heads, -1).permute(1, 2, 0, 3)  # (heads, L, head_dim)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    sy, sx = (y - shift) % height, (x - shift) % width  # position after the shift
    same_window = (sy[:, None] // window == sy // window) & (sx[:, None] // window == sx // window)
    wrapped_y, wrapped_x = (y < shift), (x < shift)
    apart = (wrapped_y[:, None] != wrapped_y) & (sy[:, None] // window == height // window - 1)
    apart |= (wrapped_x[:, None] != wrapped_x) & (sx[:, None] // window == width // window - 1)
    dy, dx = sy[:, None] - sy, sx[:, None] - sx
    row = (dy + window - 1) * (2 * window - 1) + dx + window - 1
    bias = attention.relative_position_bias_table[row.clamp(0, (2 * window - 1) ** 2 - 1)].permute(2, 0, 1)
    logits = q @ k.transpose(1, 2) * attention.scale + bias
    logits = (logits - 100.0 * apart).masked_fill(~same_window, float("-inf"))
    return attention.proj((logits.softmax(-1) @ v).transpose(0, 1).reshape(1, height * width, -1))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("size", [(4, 4), (8, 4), (4, 12), (12, 8)])
def test_window_attention_equals_slow_formula(size, shift, fused, instruction_set):
    attention = WindowAttention(dim=6, window_size=4, num_heads=2)
    torch.nn.init.normal_(attention.relative_position_bias_table)
    qkv = torch.randn(2, size[0] * size[1], 18)
    with torch.set_grad_enabled(not fused):  # the fused kernel has no gradient to the bias
        out = attention(qkv, window_plan(*size, 4, shift, CPU), relative_position_index(4))
    for index in range(2):
        expected = slow_attention(attention, qkv[index : index + 1], *size, 4, shift)
        torch.testing.assert_close(out[index : index + 1], expected, rtol=1e-5, atol=1e-5)


def test_plan_is_made_once_per_size():
    assert window_plan(8, 8, 4, 2, CPU) is window_plan(8, 8, 4, 2, CPU)


def test_plan_permutes_all_tokens():
    plan = window_plan(12, 16, 4, 2, CPU)
    assert sorted(plan.order.tolist()) == list(range(192))
    assert torch.equal(plan.order[plan.inverse], torch.arange(192))
    assert sum(count for count, _ in plan.kinds) == 12
    assert [mask is None for _, mask in plan.kinds] == [True, False, False, False]


def test_mirror_repeats_the_edge():
    assert mirror_index(3, 8).tolist() == [0, 1, 2, 2, 1, 0, 0, 1]
    assert mirror_index(1, 3).tolist() == [0, 0, 0]
