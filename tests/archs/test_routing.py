"""Prompt look-up and token permutation against plain formulas."""

from __future__ import annotations

import torch

from qmambair_basicsr.archs.routing import RoutingNoise, flat_order, permute_tokens, pick_prompt, semantic_order


def test_pick_prompt_equals_hard_gumbel_softmax():
    scores = torch.randn(2, 7, 5, dtype=torch.float64, requires_grad=True)
    table = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 7, 3, dtype=torch.float64)
    picked, prompt = pick_prompt(scores, table)
    grads = torch.autograd.grad((prompt * weight).sum(), (scores, table))

    soft = scores.softmax(-1)
    hard = torch.nn.functional.one_hot(scores.argmax(-1), 5).double()
    expected = (hard - soft.detach() + soft) @ table
    torch.testing.assert_close(prompt, expected)
    torch.testing.assert_close(grads, torch.autograd.grad((expected * weight).sum(), (scores, table)))
    assert torch.equal(picked, scores.argmax(-1))


def test_pick_without_straight_through_is_a_constant():
    scores = torch.randn(1, 4, 5, requires_grad=True)
    table = torch.randn(5, 3, requires_grad=True)
    pick_prompt(scores, table, straight_through=False)[1].sum().backward()
    assert scores.grad is None
    assert table.grad is not None


def test_permute_and_back_with_gradient():
    x = torch.randn(3, 6, 2, dtype=torch.float64, requires_grad=True)
    order = torch.stack([torch.randperm(6) for _ in range(3)])
    forward, inverse = flat_order(order)
    out = permute_tokens(x, forward, inverse)
    assert torch.equal(out, x.gather(1, order.unsqueeze(-1).expand_as(x)))
    assert torch.equal(permute_tokens(out, inverse, forward), x)
    assert torch.autograd.gradcheck(lambda t: permute_tokens(t, forward, inverse), x)


def test_semantic_order_is_stable():
    picked = torch.tensor([[2, 0, 2, 1, 0, 2]])
    order, inverse = semantic_order(picked)
    assert order.tolist() == [1, 4, 3, 0, 2, 5]
    assert inverse[order].tolist() == list(range(6))


def test_noise_is_standard_gumbel():
    noise = RoutingNoise(False, "gumbel", 3, torch.device("cpu")).add_to(torch.zeros(4, 20000, 2))
    assert noise.shape == (4, 20000, 2)
    assert torch.equal(noise[0], noise[3])
    assert abs(noise[0].mean().item() - 0.5772) < 0.02
    assert abs(noise[0].std().item() - 1.2825) < 0.02
